"""A model: a sequence of layers and a loss, its parameters views of a slab."""

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.contract import layout as layouts
from thalweg.contract.layout import Slab
from thalweg.contract.sums import Sums
from thalweg.learning.randomness import Draw
from thalweg.learning.sequential.layers import ModelError, sequence
from thalweg.learning.sequential.losses import LOSSES
from thalweg.v1 import job_pb2

__all__ = ["Model", "ModelError"]


# Slabs whose tensors are remembered: two of parameters, one or two of gradients.
_MOST_SLABS = 4


class Model:
    """A model for samples of one shape. An object belongs to one thread.

    `spec` has its defaults filled in. `dtype` is the specification's unless another is given. Raises ModelError if the layers do
    not fit together or to the samples.
    """

    def __init__(
        self,
        spec: job_pb2.Model,
        input_shape: tuple[int, ...],
        seed: int,
        *,
        one_hot: bool = False,
        dtype: str | None = None,
    ) -> None:
        self.spec = spec
        self.input_shape = input_shape
        self.seed = seed
        self.one_hot = one_hot
        self.dtype: np.dtype[np.floating] = np.dtype(dtype or spec.dtype)
        self._root = sequence(spec, self.dtype, seed)
        self.output_shape = self._root.build(input_shape)
        self.loss = LOSSES[spec.loss](self.output_shape, one_hot, self.dtype)
        tensors = [job_pb2.Tensor(name=name, shape=shape) for name, shape in self._root.shapes().items()]
        self.layout = job_pb2.Layout(tensors=tensors, dtype=self.dtype.name)
        self.size = layouts.elements(self.layout)
        self._bound: Slab | None = None
        self._known: deque[tuple[Slab, dict[str, Slab]]] = deque(maxlen=_MOST_SLABS)
        self._samples = -1

    @property
    def classifier(self) -> bool:
        """Whether samples are classified rightly or wrongly."""
        return self.loss.classifier

    @property
    def activations(self) -> int:
        """How many numbers the layers keep for each sample: their outputs, and the gradients by their inputs."""
        return self._root.activations(self.input_shape, self.output_shape)

    def check_targets(self, targets: NDArray[Any]) -> None:
        """Raises ModelError if targets do not fit the model's output."""
        self.loss.check(targets)

    def initial(self, out: Slab) -> None:
        """Fills a slab with the initial parameters, a function of the model and the seed."""
        self._root.initialize(self._tensors_in(out))

    def bind(self, parameters: Slab) -> None:
        """Computes with the parameters in a slab from now on, wherever it changes."""
        if self._bound is not parameters:
            self._bound = parameters
            self._root.bind(self._tensors_in(parameters))

    def _tensors_in(self, slab: Slab) -> dict[str, Slab]:
        """All tensors, views of a slab: the same few slabs come again and again."""
        for known, tensors in self._known:
            if known is slab:
                return tensors
        made = layouts.views(self.layout, slab)
        self._known.append((slab, made))
        return made

    def loss_and_gradient(
        self,
        x: Slab,
        y: NDArray[Any],
        denominator: int,
        task: Draw | None,
        gradient: Slab,
        finished: Callable[[int], object] = lambda _: None,
    ) -> Sums:
        """Writes the gradient of the sum of the samples' losses, divided by `denominator`, to a slab; gives the sums.

        `x` has the shape (samples, *input_shape); without samples the gradient is zero. `task` draws dropout. While the slab is
        filled, `finished` is told how many of its first elements are final: ever more, and at last all of them, if there are any.
        """
        if len(x) == 0:
            gradient[...] = 0
            finished(self.size)
            return Sums()
        output = self._forward(x, task)
        sums = self.sums_of(output, y)
        backward = self.loss.gradient()
        backward *= 1 / denominator
        self._root.differentiate(backward, self._tensors_in(gradient), finished)
        if self.size:
            finished(self.size)
        return sums

    def sums(self, x: Slab, y: NDArray[Any], task: Draw | None = None) -> Sums:
        """The sums over samples, without dropout, or with that of a training task."""
        return self.sums_of(self._forward(x, task), y) if len(x) else Sums()

    def predict(self, x: Slab) -> Slab:
        """The outputs for samples of shape (samples, *input_shape): logits, if the loss takes them."""
        return self._forward(np.asarray(x, self.dtype), None).copy()

    def classes(self, outputs: Slab) -> NDArray[np.int64]:
        """The class of each sample by the model's outputs, shape (samples); of several yes-or-no outputs, each one's: 0 or 1."""
        classes = self.loss.decide(outputs).astype(np.int64)
        return classes.reshape(-1) if math.prod(classes.shape[1:]) == 1 else classes

    def inputs(self, x: Slab, task: Draw | None) -> list[Slab]:
        """A copy of the input of each of the outermost layers, and of the output."""
        values = [x]
        self._make_room(len(x))
        for layer in self._root.layers:
            values.append(layer.forward(values[-1], task).copy())
        return values

    def loss_from(self, layer: int, x: Slab, y: NDArray[Any], task: Draw | None) -> float:
        """The sum of losses, computed from the input of one of the outermost layers."""
        return _total(self.loss.losses(self._forward(x, task, layer), y))

    def _forward(self, x: Slab, task: Draw | None, first: int = 0) -> Slab:
        self._make_room(len(x))
        return self._root.forward(x, task, first)

    def _make_room(self, samples: int) -> None:
        if self._samples != samples:
            self._samples = samples
            self._root.make_room((samples, *self.input_shape))
            self.loss.make_room(samples)

    def sums_of(self, output: Slab, y: NDArray[Any]) -> Sums:
        """The sums over samples, from the model's output for them."""
        correct = self.loss.correct(output, y) if self.classifier else 0.0
        return Sums(_total(self.loss.losses(output, y)), correct, len(output))


def _total(losses: Slab) -> float:
    return float(np.add.reduce(losses, dtype=np.float64))
