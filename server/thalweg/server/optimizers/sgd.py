"""Stochastic gradient descent."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.server.optimizers.base import Optimizer, State


class SGD(Optimizer):
    """w ← w − learning_rate · g (Robbins and Monro 1951)."""

    def update(self, parameters: Slab, gradient: Slab, state: State, out: Slab, learning_rate: float, step: int) -> None:
        self.decay(parameters, gradient)
        gradient *= learning_rate
        np.subtract(parameters, gradient, out=out)
