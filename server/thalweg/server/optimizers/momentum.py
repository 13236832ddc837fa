"""Stochastic gradient descent with momentum, Nesterov's by choice."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.server.optimizers.base import Optimizer, State


class Momentum(Optimizer):
    """v ← momentum · v + (1 − dampening) · g, at the first step v = g; w ← w − learning_rate · v.

    With Nesterov's momentum w ← w − learning_rate · (g + momentum · v). As torch.optim.SGD (Sutskever et al. 2013).
    """

    slots = ("momentum",)

    def update(self, parameters: Slab, gradient: Slab, state: State, out: Slab, learning_rate: float, step: int) -> None:
        self.decay(parameters, gradient)
        settings, velocity, scratch = self.hyperparameters, state["momentum"], self.scratch(parameters)
        if step == 0:
            velocity[...] = gradient
        else:
            velocity *= settings.momentum
            np.multiply(gradient, 1 - settings.dampening, out=scratch)
            velocity += scratch
        if settings.nesterov:
            np.multiply(velocity, settings.momentum, out=scratch)
            scratch += gradient
            scratch *= learning_rate
        else:
            np.multiply(velocity, learning_rate, out=scratch)
        np.subtract(parameters, scratch, out=out)
