"""Stochastic gradient descent with momentum, Nesterov's by choice."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.learning.kernels import Kernel
from thalweg.learning.optimizers.base import Optimizer, OptimizerState, UpdateRule
from thalweg.v1 import job_pb2


class Momentum(Optimizer[job_pb2.Momentum]):
    """v ← momentum · v + (1 − dampening) · g, at the first step v = g; w ← w − learning_rate · v.

    With Nesterov's momentum w ← w − learning_rate · (g + momentum · v). As torch.optim.SGD (Sutskever et al. 2013).
    """

    slots = ("momentum",)

    def rule(self, learning_rate: float, step: int) -> UpdateRule:
        momentum, nesterov = self.hyperparameters.momentum, self.hyperparameters.nesterov
        dampened = 1 - self.hyperparameters.dampening

        def update(gradient: Slab, state: OptimizerState, delta: Slab, scratch: Slab) -> None:
            velocity = state["momentum"]
            if step == 0:
                velocity[...] = gradient
            else:
                velocity *= momentum
                velocity += np.multiply(gradient, dampened, out=scratch) if dampened != 1 else gradient
            if nesterov:
                np.multiply(velocity, momentum, out=scratch)
                scratch += gradient
                np.multiply(scratch, learning_rate, out=delta)
            else:
                np.multiply(velocity, learning_rate, out=delta)

        return update

    def kernel(self, learning_rate: float, step: int) -> Kernel | None:
        settings = self.hyperparameters
        constants = settings.momentum, 1 - settings.dampening, learning_rate
        return Kernel(_nesterov_element if settings.nesterov else _element, constants) if step else None


def _element(g: float, state: tuple[float, ...], constants: tuple[float, ...]) -> tuple[float, tuple[float, ...]]:
    (velocity,) = state
    momentum, dampened, rate = constants
    velocity = velocity * momentum + g * dampened
    return velocity * rate, (velocity,)


def _nesterov_element(g: float, state: tuple[float, ...], constants: tuple[float, ...]) -> tuple[float, tuple[float, ...]]:
    (velocity,) = state
    momentum, dampened, rate = constants
    velocity = velocity * momentum + g * dampened
    return (velocity * momentum + g) * rate, (velocity,)
