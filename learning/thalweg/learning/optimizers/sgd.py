"""Stochastic gradient descent."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.learning.kernels import Kernel
from thalweg.learning.optimizers.base import Optimizer, OptimizerState, UpdateRule
from thalweg.v1 import job_pb2


class SGD(Optimizer[job_pb2.Sgd]):
    """w ← w − learning_rate · g (Robbins and Monro 1951)."""

    def rule(self, learning_rate: float, step: int) -> UpdateRule:
        def update(gradient: Slab, state: OptimizerState, delta: Slab, scratch: Slab) -> None:  # noqa: ARG001
            np.multiply(gradient, learning_rate, out=delta)

        return update

    def kernel(self, learning_rate: float, step: int) -> Kernel:
        return Kernel(_element, (learning_rate,))


def _element(g: float, state: tuple[float, ...], constants: tuple[float, ...]) -> tuple[float, tuple[float, ...]]:  # noqa: ARG001
    return g * constants[0], ()
