"""The interface of a metric: a number for each sample, whose mean over samples is reported."""

from typing import Any, Protocol

from numpy.typing import NDArray

from thalweg.contract.layout import Slab


class Metric(Protocol):
    """A metric, for any model."""

    def problem(self, output_shape: tuple[int, ...], targets: NDArray[Any]) -> str:
        """Why it cannot be computed for outputs of this shape for each sample and these targets; empty if it can."""

    def sum(self, outputs: Slab, targets: NDArray[Any]) -> float:
        """The sum over samples, from outputs of shape (samples, ...) and their targets."""
