"""AdaGrad."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.server.optimizers.base import Optimizer, State


class Adagrad(Optimizer):
    """s ← s + g²; w ← w − learning_rate / (1 + t · learning_rate_decay) · g / (√s + eps) (Duchi et al. 2011)."""

    slots = ("sum",)

    def init(self, size: int, dtype: np.dtype[np.floating]) -> State:
        return {"sum": np.full(size, self.hyperparameters.initial_accumulator_value, dtype)}

    def update(self, parameters: Slab, gradient: Slab, state: State, out: Slab, learning_rate: float, step: int) -> None:
        self.decay(parameters, gradient)
        settings, scratch = self.hyperparameters, self.scratch(parameters)
        np.multiply(gradient, gradient, out=scratch)
        state["sum"] += scratch
        np.sqrt(state["sum"], out=scratch)
        scratch += settings.eps
        np.divide(gradient, scratch, out=scratch)
        scratch *= learning_rate / (1 + step * settings.learning_rate_decay)
        np.subtract(parameters, scratch, out=out)
