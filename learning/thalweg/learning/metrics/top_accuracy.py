"""Whether a sample's class is among those of the largest outputs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import Slab


class TopAccuracy:
    """1 for a sample whose label's output is one of the `k` largest, else 0.

    Of equal outputs, those of smaller labels come first.
    """

    def __init__(self, k: int) -> None:
        self._k = k

    def problem(self, output_shape: tuple[int, ...], targets: NDArray[Any]) -> str:
        """Targets are labels, and there is an output for each."""
        if targets.ndim != 1 or targets.dtype.kind not in "iu" or len(output_shape) != 1:
            return "needs labels for targets, and one axis of outputs: the loss softmax_cross_entropy has them"
        return ""

    def sum(self, outputs: Slab, targets: NDArray[Any]) -> float:
        """The number of samples."""
        labels = targets[:, np.newaxis]
        own = np.take_along_axis(outputs, labels, axis=1)
        before = (outputs > own) | ((outputs == own) & (np.arange(outputs.shape[1]) < labels))
        return float(np.count_nonzero(before.sum(axis=1) < self._k))
