"""The mean absolute error."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import Slab


class MeanAbsoluteError:
    """|output − target|, the mean over a sample's outputs, in double precision."""

    def problem(self, output_shape: tuple[int, ...], targets: NDArray[Any]) -> str:
        """Targets have as many numbers as there are outputs."""
        outputs, numbers = int(np.prod(output_shape)), int(np.prod(targets.shape[1:]))
        if outputs == numbers:
            return ""
        return f"needs a target for each of the {outputs} outputs, but a sample's target has {numbers}"

    def sum(self, outputs: Slab, targets: NDArray[Any]) -> float:
        """The sum over samples."""
        distances = np.abs(outputs.reshape(len(outputs), -1) - targets.reshape(len(targets), -1).astype(np.float64))
        return float(distances.mean(axis=1).sum())
