"""Adam with decoupled weight decay."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.server.optimizers.adam import Adam
from thalweg.server.optimizers.base import State


class AdamW(Adam):
    """w ← (1 − learning_rate · weight_decay) · w, then as Adam (Loshchilov and Hutter 2019)."""

    def update(self, parameters: Slab, gradient: Slab, state: State, out: Slab, learning_rate: float, step: int) -> None:
        direction = self.direction(gradient, state, learning_rate, step)
        np.multiply(parameters, 1 - learning_rate * self.weight_decay, out=out)
        out -= direction
