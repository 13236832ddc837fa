"""What a loss is: a number for each sample, and its derivative by the model's output."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import Slab
from thalweg.workers.layers.base import ModelError, Shape

Targets = NDArray[Any]


class Loss(ABC):
    """Base of all losses. `one_hot` says that targets are vectors with a single 1, and so the model is a classifier."""

    classifies = False

    def __init__(self, output_shape: Shape, one_hot: bool) -> None:
        self.output_shape = output_shape
        self.one_hot = one_hot

    @property
    def classifier(self) -> bool:
        """Whether samples are classified rightly or wrongly."""
        return self.classifies or self.one_hot

    def check(self, targets: Targets) -> None:
        """Raises ModelError if targets do not fit the model's output."""
        shape = targets.shape[1:]
        if shape != self.output_shape and (shape, self.output_shape) != ((), (1,)):
            raise ModelError(
                f"model.layers: the model's output has the shape {self.output_shape} for each sample, and the data's y {shape}; "
                "they must be the same"
            )

    @abstractmethod
    def losses(self, output: Slab, targets: Targets) -> Slab:
        """The loss of each sample, shape (samples)."""

    @abstractmethod
    def gradient(self, output: Slab, targets: Targets) -> Slab:
        """The gradient of the sum of losses by the output."""

    def correct(self, output: Slab, targets: Targets) -> float:
        """The number of samples classified rightly: those whose greatest output is where the target's is."""
        width = max(1, output[:1].size)
        return float(np.count_nonzero(output.reshape(-1, width).argmax(1) == targets.reshape(-1, width).argmax(1)))

    def fit(self, targets: Targets) -> Targets:
        """The targets in the shape of the output."""
        return targets.reshape(len(targets), *self.output_shape)


def mean_of_sample(values: Slab) -> Slab:
    """The mean over all axes but the samples', shape (samples)."""
    return np.asarray(np.mean(values, axis=tuple(range(1, values.ndim)), dtype=values.dtype))
