"""Adam."""

import math
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.learning.kernels import Kernel
from thalweg.learning.optimizers.base import Hyperparameters, Optimizer, OptimizerState, UpdateRule


class MomentsHyperparameters(Hyperparameters, Protocol):
    """Hyperparameters of all optimizers with running means of the gradient and of its square."""

    @property
    def betas(self) -> Sequence[float]: ...

    @property
    def eps(self) -> float: ...


class AdamHyperparameters(MomentsHyperparameters, Protocol):
    """Hyperparameters of Adam and AdamW."""

    @property
    def amsgrad(self) -> bool: ...


H_co = TypeVar("H_co", bound=MomentsHyperparameters, covariant=True)


class Moments(Optimizer[H_co], Generic[H_co]):
    """m ← β₁ m + (1 − β₁) g; v ← β₂ v + (1 − β₂) g²; w ← w − learning_rate · m̂ / (√v̂ + eps) (Kingma and Ba 2015).

    m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ), t counted from 1. AMSGrad uses the largest v so far (Reddi et al. 2018).
    The state holds m / (1 − β₁) and v / (1 − β₂), which are sums: each saves a pass over the block.
    """

    def __init__(self, hyperparameters: H_co, *, amsgrad: bool = False) -> None:
        super().__init__(hyperparameters)
        self._beta1, self._beta2 = hyperparameters.betas
        self._amsgrad = amsgrad
        self.slots = ("gradient_sum", "square_sum") + ("greatest",) * amsgrad

    def migrated(self, state: OptimizerState) -> OptimizerState:
        # Earlier releases kept the moments themselves, and the largest v, in place of sums.
        if state.keys() != {"mean", "square", *self.slots[2:]}:
            return state
        moments = {"gradient_sum": "mean", "square_sum": "square", "greatest": "greatest"}
        betas = {"gradient_sum": self._beta1, "square_sum": self._beta2, "greatest": self._beta2}
        return {slot: np.divide(state[moments[slot]], 1 - betas[slot]) for slot in self.slots}

    def rule(self, learning_rate: float, step: int) -> UpdateRule:
        amsgrad = self._amsgrad
        beta1, beta2, eps, rate = self._constants(learning_rate, step)

        def update(gradient: Slab, state: OptimizerState, delta: Slab, scratch: Slab) -> None:
            total, squares = state["gradient_sum"], state["square_sum"]
            total *= beta1
            total += gradient
            squares *= beta2
            squares += np.multiply(gradient, gradient, out=scratch)
            if amsgrad:
                squares = np.maximum(state["greatest"], squares, out=state["greatest"])
            np.sqrt(squares, out=delta)
            delta += eps
            np.divide(total, delta, out=delta)
            delta *= rate

        return update

    def kernel(self, learning_rate: float, step: int) -> Kernel:
        return Kernel(_amsgrad_element if self._amsgrad else _element, self._constants(learning_rate, step))

    def _constants(self, learning_rate: float, step: int) -> tuple[float, float, float, float]:
        beta1, beta2 = self._beta1, self._beta2
        # The ratio of √v̂ to the root of the sum. Numerator and denominator are divided by it, which saves a pass.
        correction = math.sqrt((1 - beta2) / (1 - beta2 ** (step + 1)))
        rate = learning_rate * (1 - beta1) / (1 - beta1 ** (step + 1)) / correction
        return beta1, beta2, self.hyperparameters.eps / correction, rate


def _element(g: float, state: tuple[float, ...], constants: tuple[float, ...]) -> tuple[float, tuple[float, ...]]:
    total, squares = state
    beta1, beta2, eps, rate = constants
    total = total * beta1 + g
    squares = squares * beta2 + g * g
    return total / (math.sqrt(squares) + eps) * rate, (total, squares)


def _amsgrad_element(g: float, state: tuple[float, ...], constants: tuple[float, ...]) -> tuple[float, tuple[float, ...]]:
    total, squares, greatest = state
    beta1, beta2, eps, rate = constants
    total = total * beta1 + g
    squares = squares * beta2 + g * g
    # As NumPy's maximum: what is not a number remains.
    greatest = squares if squares > greatest or squares != squares else greatest  # noqa: PLR0124
    return total / (math.sqrt(greatest) + eps) * rate, (total, squares, greatest)


class Adam(Moments[AdamHyperparameters]):
    """Adam, or AMSGrad by choice."""

    def __init__(self, hyperparameters: AdamHyperparameters) -> None:
        super().__init__(hyperparameters, amsgrad=hyperparameters.amsgrad)
