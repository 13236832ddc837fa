"""RMSProp."""

from typing import Any

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.server.optimizers.base import Optimizer, State


class RMSprop(Optimizer):
    """s ← alpha · s + (1 − alpha) · g²; w ← w − learning_rate · g / (√s + eps) (Tieleman and Hinton 2012).

    Centered, s less the square of the running mean of g (Graves 2013). With momentum, the quotient feeds a velocity.
    """

    def __init__(self, hyperparameters: Any) -> None:
        super().__init__(hyperparameters)
        self.slots = ("square",) + ("mean",) * hyperparameters.centered + ("momentum",) * (hyperparameters.momentum > 0)

    def update(self, parameters: Slab, gradient: Slab, state: State, out: Slab, learning_rate: float, step: int) -> None:
        self.decay(parameters, gradient)
        settings, scratch = self.hyperparameters, self.scratch(parameters)
        square = state["square"]
        square *= settings.alpha
        np.multiply(gradient, gradient, out=scratch)
        scratch *= 1 - settings.alpha
        square += scratch
        if settings.centered:
            mean = state["mean"]
            mean *= settings.alpha
            np.multiply(gradient, 1 - settings.alpha, out=scratch)
            mean += scratch
            np.multiply(mean, mean, out=scratch)
            np.subtract(square, scratch, out=scratch)
            # A variance is never below zero; rounding may bring it there when the gradient hardly changes.
            np.maximum(scratch, 0, out=scratch)
            np.sqrt(scratch, out=scratch)
        else:
            np.sqrt(square, out=scratch)
        scratch += settings.eps
        np.divide(gradient, scratch, out=scratch)
        if settings.momentum > 0:
            state["momentum"] *= settings.momentum
            state["momentum"] += scratch
            np.multiply(state["momentum"], learning_rate, out=scratch)
        else:
            scratch *= learning_rate
        np.subtract(parameters, scratch, out=out)
