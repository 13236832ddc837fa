"""RMSProp."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.learning.optimizers.base import Optimizer, OptimizerState, UpdateRule
from thalweg.v1 import job_pb2


class RMSprop(Optimizer[job_pb2.Rmsprop]):
    """s ← alpha · s + (1 − alpha) · g²; w ← w − learning_rate · g / (√s + eps) (Tieleman and Hinton 2012).

    Centered, s less the square of the running mean of g (Graves 2013). With momentum, the quotient feeds a velocity.
    """

    def __init__(self, hyperparameters: job_pb2.Rmsprop) -> None:
        super().__init__(hyperparameters)
        self.slots = ("square",) + ("mean",) * hyperparameters.centered + ("momentum",) * (hyperparameters.momentum > 0)

    def rule(self, learning_rate: float, step: int) -> UpdateRule:
        settings = self.hyperparameters
        alpha, eps, centered, momentum = settings.alpha, settings.eps, settings.centered, settings.momentum

        def update(gradient: Slab, state: OptimizerState, delta: Slab, scratch: Slab) -> None:
            square = state["square"]
            square *= alpha
            np.multiply(gradient, gradient, out=scratch)
            scratch *= 1 - alpha
            square += scratch
            if centered:
                mean = state["mean"]
                mean *= alpha
                mean += np.multiply(gradient, 1 - alpha, out=scratch)
                np.subtract(square, np.multiply(mean, mean, out=scratch), out=delta)
                # A variance is never below zero; rounding may bring it there when the gradient hardly changes.
                np.maximum(delta, 0, out=delta)
                np.sqrt(delta, out=delta)
            else:
                np.sqrt(square, out=delta)
            delta += eps
            np.divide(gradient, delta, out=delta)
            if momentum > 0:
                velocity = state["momentum"]
                velocity *= momentum
                velocity += delta
                np.multiply(velocity, learning_rate, out=delta)
            else:
                delta *= learning_rate

        return update
