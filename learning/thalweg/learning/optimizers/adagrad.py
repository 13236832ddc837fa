"""AdaGrad."""

from math import sqrt

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.learning.kernels import Kernel
from thalweg.learning.optimizers.base import Optimizer, OptimizerState, UpdateRule
from thalweg.v1 import job_pb2


class Adagrad(Optimizer[job_pb2.Adagrad]):
    """s ← s + g²; w ← w − learning_rate / (1 + t · learning_rate_decay) · g / (√s + eps) (Duchi et al. 2011)."""

    slots = ("sum",)

    def init(self, size: int, dtype: np.dtype[np.floating]) -> OptimizerState:
        return {"sum": np.full(size, self.hyperparameters.initial_accumulator_value, dtype)}

    def rule(self, learning_rate: float, step: int) -> UpdateRule:
        eps, rate = self._constants(learning_rate, step)

        def update(gradient: Slab, state: OptimizerState, delta: Slab, scratch: Slab) -> None:
            total = state["sum"]
            total += np.multiply(gradient, gradient, out=scratch)
            np.sqrt(total, out=delta)
            delta += eps
            np.divide(gradient, delta, out=delta)
            delta *= rate

        return update

    def kernel(self, learning_rate: float, step: int) -> Kernel:
        return Kernel(_element, self._constants(learning_rate, step))

    def _constants(self, learning_rate: float, step: int) -> tuple[float, float]:
        return self.hyperparameters.eps, learning_rate / (1 + step * self.hyperparameters.learning_rate_decay)


def _element(g: float, state: tuple[float, ...], constants: tuple[float, ...]) -> tuple[float, tuple[float, ...]]:
    (total,) = state
    eps, rate = constants
    total = total + g * g
    return g / (sqrt(total) + eps) * rate, (total,)
