"""The interface of a loss: a number for each sample, and its derivative by the model's output."""

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import Slab
from thalweg.learning.sequential.buffers import Buffers
from thalweg.learning.sequential.layers.base import ModelError, Shape

Targets = NDArray[Any]


class Loss(ABC):
    """Base of all losses. `one_hot` says that targets are vectors with a single 1, and so the model is a classifier."""

    classifies = False

    def __init__(self, output_shape: Shape, one_hot: bool, dtype: np.dtype[np.floating]) -> None:
        self.output_shape = output_shape
        self.one_hot = one_hot
        self.buffer = Buffers(dtype)
        # The number of outputs of a sample.
        self.width = math.prod(output_shape)

    @property
    def classifier(self) -> bool:
        """Whether the model is a classifier, which has an accuracy."""
        return self.classifies or self.one_hot

    def check(self, targets: Targets) -> None:
        """Raises ModelError if targets do not fit the model's output."""
        shape = targets.shape[1:]
        if shape != self.output_shape and (shape, self.output_shape) != ((), (1,)):
            raise ModelError(
                f"model.layers: the model's output has the shape {self.output_shape} for each sample, but the data's y has "
                f"{shape}; they must be the same"
            )

    def make_room(self, samples: int) -> None:
        """Allocates buffers for a number of samples. Must be called before the first `losses` of that number."""
        self._each: Slab = self.buffer("each", (samples,))
        self._gradient: Slab = self.buffer("gradient", (samples, *self.output_shape))
        self._scratch: Slab = self.buffer("scratch", (samples, *self.output_shape))
        self._found, self._wanted = (self.buffer(name, (samples,), np.intp) for name in ("found", "wanted"))
        self._right = self.buffer("right", (samples,), bool)

    @abstractmethod
    def losses(self, output: Slab, targets: Targets) -> Slab:
        """The loss of each sample, shape (samples), in a buffer that the next call overwrites. Keeps what `gradient` needs."""

    @abstractmethod
    def gradient(self) -> Slab:
        """The gradient by the output of the sum of the losses that were computed last, in a buffer that is overwritten."""

    def decide(self, output: Slab, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The class of each sample, shape (samples): the index of its largest output. For targets that are vectors, likewise."""
        found: NDArray[Any] = output.reshape(-1, self.width).argmax(1, out=out)
        return found

    def probabilities(self, _output: Slab) -> Slab | None:
        """The probability of each class, shape (samples, classes), None if outputs are no probabilities."""
        return None

    def correct(self, output: Slab, targets: Targets) -> float:
        """The number of samples classified correctly: outputs and targets have the same class."""
        return self.agreeing(output, self.decide(targets, self._wanted))

    def agreeing(self, output: Slab, labels: Targets) -> float:
        """The number of samples whose outputs have the class of their label."""
        return float(np.count_nonzero(np.equal(self.decide(output, self._found), labels, out=self._right)))

    def fit(self, targets: Targets) -> Targets:
        """The targets in the shape of the output."""
        return targets.reshape(len(targets), *self.output_shape)

    def mean_of_sample(self, values: Slab) -> Slab:
        """The mean over all axes but the samples', shape (samples)."""
        np.add.reduce(values, axis=tuple(range(1, values.ndim)), out=self._each)
        return np.divide(self._each, self.width, out=self._each)
