"""Adam with decoupled weight decay."""

from thalweg.learning.optimizers.adam import Adam


class AdamW(Adam):
    """w ← (1 − learning_rate · weight_decay) · w, then as Adam (Loshchilov and Hutter 2019)."""

    decoupled = True
