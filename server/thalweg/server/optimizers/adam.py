"""Adam."""

import math
from typing import Any

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.server.optimizers.base import Optimizer, State


class Adam(Optimizer):
    """m ← β₁ m + (1 − β₁) g; v ← β₂ v + (1 − β₂) g²; w ← w − learning_rate · m̂ / (√v̂ + eps) (Kingma and Ba 2015).

    m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ), t counted from 1. AMSGrad takes the greatest v so far (Reddi et al. 2018).
    """

    def __init__(self, hyperparameters: Any) -> None:
        super().__init__(hyperparameters)
        self._beta1, self._beta2 = hyperparameters.betas
        self.slots = ("mean", "square") + ("greatest",) * hyperparameters.amsgrad

    def update(self, parameters: Slab, gradient: Slab, state: State, out: Slab, learning_rate: float, step: int) -> None:
        self.decay(parameters, gradient)
        np.subtract(parameters, self.direction(gradient, state, learning_rate, step), out=out)

    def direction(self, gradient: Slab, state: State, learning_rate: float, step: int) -> Slab:
        """By how much the parameters fall, in scratch. Changes the state."""
        scratch, mean, square = self.scratch(gradient), state["mean"], state["square"]
        np.subtract(gradient, mean, out=scratch)
        scratch *= 1 - self._beta1
        mean += scratch
        square *= self._beta2
        np.multiply(gradient, gradient, out=scratch)
        scratch *= 1 - self._beta2
        square += scratch
        if self.hyperparameters.amsgrad:
            square = np.maximum(state["greatest"], square, out=state["greatest"])
        # m̂ / (√v̂ + eps), numerator and denominator multiplied by √(1 − β₂ᵗ): that spares a pass over the block.
        correction = math.sqrt(1 - self._beta2 ** (step + 1))
        np.sqrt(square, out=scratch)
        scratch += self.hyperparameters.eps * correction
        np.divide(mean, scratch, out=scratch)
        scratch *= learning_rate * correction / (1 - self._beta1 ** (step + 1))
        return scratch
