"""Stochastic gradient descent."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.learning.optimizers.base import Optimizer, OptimizerState, UpdateRule
from thalweg.v1 import job_pb2


class SGD(Optimizer[job_pb2.Sgd]):
    """w ← w − learning_rate · g (Robbins and Monro 1951)."""

    def rule(self, learning_rate: float, step: int) -> UpdateRule:
        def update(gradient: Slab, state: OptimizerState, delta: Slab, scratch: Slab) -> None:  # noqa: ARG001
            np.multiply(gradient, learning_rate, out=delta)

        return update
