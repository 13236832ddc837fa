"""Adam."""

import math
from typing import Any

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.server.optimizers.base import Descent, Optimizer, State


class Adam(Optimizer):
    """m ← β₁ m + (1 − β₁) g; v ← β₂ v + (1 − β₂) g²; w ← w − learning_rate · m̂ / (√v̂ + eps) (Kingma and Ba 2015).

    m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ), t counted from 1. AMSGrad takes the greatest v so far (Reddi et al. 2018).
    """

    def __init__(self, hyperparameters: Any) -> None:
        super().__init__(hyperparameters)
        self._beta1, self._beta2 = hyperparameters.betas
        self.slots = ("mean", "square") + ("greatest",) * hyperparameters.amsgrad

    def descent(self, learning_rate: float, step: int) -> Descent:
        beta1, beta2, amsgrad = self._beta1, self._beta2, self.hyperparameters.amsgrad
        # m̂ / (√v̂ + eps), numerator and denominator multiplied by √(1 − β₂ᵗ): that spares a pass over the block.
        correction = math.sqrt(1 - beta2 ** (step + 1))
        eps = self.hyperparameters.eps * correction
        rate = learning_rate * correction / (1 - beta1 ** (step + 1))

        def descend(gradient: Slab, state: State, fall: Slab, scratch: Slab) -> None:
            mean, square = state["mean"], state["square"]
            np.subtract(gradient, mean, out=scratch)
            scratch *= 1 - beta1
            mean += scratch
            square *= beta2
            np.multiply(gradient, gradient, out=scratch)
            scratch *= 1 - beta2
            square += scratch
            if amsgrad:
                square = np.maximum(state["greatest"], square, out=state["greatest"])
            np.sqrt(square, out=fall)
            fall += eps
            np.divide(mean, fall, out=fall)
            fall *= rate

        return descend
