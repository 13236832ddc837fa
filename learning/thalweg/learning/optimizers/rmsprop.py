"""RMSProp."""

from math import sqrt

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.learning.kernels import Kernel
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

    def kernel(self, learning_rate: float, step: int) -> Kernel:
        settings = self.hyperparameters
        constants = settings.alpha, 1 - settings.alpha, settings.eps, learning_rate, settings.momentum, 0.0
        rules = {
            (False, False): _element,
            (False, True): _element_with_momentum,
            (True, False): _centered_element,
            (True, True): _centered_element_with_momentum,
        }
        return Kernel(rules[settings.centered, settings.momentum > 0], constants)


def _element(g: float, state: tuple[float, ...], constants: tuple[float, ...]) -> tuple[float, tuple[float, ...]]:
    (square,) = state
    alpha, rest, eps, rate, _, _ = constants
    square = square * alpha + g * g * rest
    return g / (sqrt(square) + eps) * rate, (square,)


def _element_with_momentum(g: float, state: tuple[float, ...], constants: tuple[float, ...]) -> tuple[float, tuple[float, ...]]:
    square, velocity = state
    alpha, rest, eps, rate, momentum, _ = constants
    square = square * alpha + g * g * rest
    velocity = velocity * momentum + g / (sqrt(square) + eps)
    return velocity * rate, (square, velocity)


def _centered_element(g: float, state: tuple[float, ...], constants: tuple[float, ...]) -> tuple[float, tuple[float, ...]]:
    square, mean = state
    alpha, rest, eps, rate, _, zero = constants
    square = square * alpha + g * g * rest
    mean = mean * alpha + g * rest
    variance = square - mean * mean
    # As NumPy's maximum: what is not a number remains.
    variance = variance if variance > zero or variance != variance else zero  # noqa: PLR0124
    return g / (sqrt(variance) + eps) * rate, (square, mean)


def _centered_element_with_momentum(
    g: float, state: tuple[float, ...], constants: tuple[float, ...]
) -> tuple[float, tuple[float, ...]]:
    square, mean, velocity = state
    alpha, rest, eps, rate, momentum, zero = constants
    square = square * alpha + g * g * rest
    mean = mean * alpha + g * rest
    variance = square - mean * mean
    variance = variance if variance > zero or variance != variance else zero  # noqa: PLR0124
    velocity = velocity * momentum + g / (sqrt(variance) + eps)
    return velocity * rate, (square, mean, velocity)
