"""Stochastic gradient descent."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.learning.optimizers.base import Descent, Optimizer, State
from thalweg.v1 import job_pb2


class SGD(Optimizer[job_pb2.Sgd]):
    """w ← w − learning_rate · g (Robbins and Monro 1951)."""

    def descent(self, learning_rate: float, step: int) -> Descent:
        def descend(gradient: Slab, state: State, fall: Slab, scratch: Slab) -> None:  # noqa: ARG001
            np.multiply(gradient, learning_rate, out=fall)

        return descend
