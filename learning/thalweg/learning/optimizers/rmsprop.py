"""RMSProp."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.learning.optimizers.base import Descent, Optimizer, State
from thalweg.v1 import job_pb2


class RMSprop(Optimizer[job_pb2.Rmsprop]):
    """s ← alpha · s + (1 − alpha) · g²; w ← w − learning_rate · g / (√s + eps) (Tieleman and Hinton 2012).

    Centered, s less the square of the running mean of g (Graves 2013). With momentum, the quotient feeds a velocity.
    """

    def __init__(self, hyperparameters: job_pb2.Rmsprop) -> None:
        super().__init__(hyperparameters)
        self.slots = ("square",) + ("mean",) * hyperparameters.centered + ("momentum",) * (hyperparameters.momentum > 0)

    def descent(self, learning_rate: float, step: int) -> Descent:
        settings = self.hyperparameters
        alpha, eps, centered, momentum = settings.alpha, settings.eps, settings.centered, settings.momentum

        def descend(gradient: Slab, state: State, fall: Slab, scratch: Slab) -> None:
            square = state["square"]
            square *= alpha
            np.multiply(gradient, gradient, out=scratch)
            scratch *= 1 - alpha
            square += scratch
            if centered:
                mean = state["mean"]
                mean *= alpha
                mean += np.multiply(gradient, 1 - alpha, out=scratch)
                np.subtract(square, np.multiply(mean, mean, out=scratch), out=fall)
                # A variance is never below zero; rounding may bring it there when the gradient hardly changes.
                np.maximum(fall, 0, out=fall)
                np.sqrt(fall, out=fall)
            else:
                np.sqrt(square, out=fall)
            fall += eps
            np.divide(gradient, fall, out=fall)
            if momentum > 0:
                velocity = state["momentum"]
                velocity *= momentum
                velocity += fall
                np.multiply(velocity, learning_rate, out=fall)
            else:
                fall *= learning_rate

        return descend
