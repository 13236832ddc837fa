"""The interface of an optimizer: a state of some slabs, and by how much a gradient lowers the parameters."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import Slab
from thalweg.learning.kernels import Kernel
from thalweg.learning.reductions import Reduction

OptimizerState = dict[str, Slab]


class Hyperparameters(Protocol):
    """The fields that all optimizers' messages have."""

    @property
    def learning_rate(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...


# The message of the contract that describes an optimizer.
H_co = TypeVar("H_co", bound=Hyperparameters, covariant=True)

# Of a block: reads the gradient, changes the state, writes to the third array by how much the parameters delta, and may use the
# fourth for intermediate results. All are one-dimensional, of equal length and dtype; each element is computed for itself.
UpdateRule = Callable[[Slab, OptimizerState, Slab, Slab], None]


class Scratch(NamedTuple):
    """Arrays for one thread's intermediate results."""

    gradient: Slab
    delta: Slab
    other: Slab
    finite: NDArray[np.bool_]


class Optimizer(ABC, Generic[H_co]):
    """Base of all optimizers. Several threads may use an object.

    `hyperparameters` is the message that describes the optimizer, with its defaults filled in. `slots` names the
    slabs of its state, which start at zero. Weight decay adds the gradient of weight_decay / 2 · |parameters|²; where it is
    `decoupled` it takes learning_rate · weight_decay of the parameters instead. `reductions` are the quantities
    of the whole slab, or of whole segments, that an update needs, in this order.
    """

    slots: tuple[str, ...] = ()
    decoupled = False
    reductions: tuple[Reduction, ...] = ()

    def __init__(self, hyperparameters: H_co) -> None:
        self.hyperparameters = hyperparameters
        self.learning_rate = float(hyperparameters.learning_rate)
        self.weight_decay = float(hyperparameters.weight_decay)
        self._scratches: list[Scratch] = []

    def init(self, size: int, dtype: np.dtype[np.floating]) -> OptimizerState:
        """The state before the first step."""
        return {slot: np.zeros(size, dtype) for slot in self.slots}

    def migrated(self, state: OptimizerState) -> OptimizerState:
        """A state in this release's form, from one that this or an earlier release wrote, with the slots that it had then."""
        return state

    @contextmanager
    def scratch(self, size: int, dtype: np.dtype[np.floating]) -> Iterator[Scratch]:
        """Scratch arrays of `size` elements, uninitialised, exclusive until the context exits. Always ask for the same size."""
        try:
            # One operation on a list, which no other thread interrupts.
            scratch = self._scratches.pop()
        except IndexError:
            gradient, delta, other = (np.empty(size, dtype) for _ in range(3))
            scratch = Scratch(gradient, delta, other, np.empty(size, np.bool_))
        yield scratch
        self._scratches.append(scratch)

    @abstractmethod
    def rule(self, learning_rate: float, step: int) -> UpdateRule:
        """A step, for any of its blocks. `learning_rate` is the scheduled one; `step` counts from 0."""

    def kernel(self, learning_rate: float, step: int) -> Kernel | None:
        """The same step for one element, with the same bits, so that it can be compiled; None to have `rule` alone used.

        From step 1 on it is the same rule for all steps.
        """
        return None
