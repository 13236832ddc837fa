"""A model: a sequence of layers and a loss, its parameters views of a slab."""

import itertools
import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.contract import layout as layouts
from thalweg.contract.layout import Slab
from thalweg.contract.sums import Sums
from thalweg.learning.sequential.layers import LAYERS, ModelError, Task
from thalweg.learning.sequential.losses import LOSSES
from thalweg.v1 import job_pb2

__all__ = ["Model", "ModelError", "Task"]


class _Place(NamedTuple):
    """Where a tensor of a layer lies in a slab."""

    name: str
    where: slice
    shape: tuple[int, ...]


# Slabs whose tensors are remembered: two of parameters, one or two of gradients.
_MOST_SLABS = 4


def _tensors(places: list[_Place], slab: Slab) -> dict[str, Slab]:
    """A layer's tensors, views of a slab."""
    return {name: slab[where].reshape(shape) for name, where, shape in places}


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
        self.layers = []
        self._input_shapes = []
        shape = input_shape
        for index, layer_spec in enumerate(spec.layers):
            kind = layer_spec.WhichOneof("kind") or ""
            layer = LAYERS[kind](getattr(layer_spec, kind), index, self.dtype, seed)
            self._input_shapes.append(shape)
            shape = layer.build(shape)
            self.layers.append(layer)
        self.output_shape = shape
        self.loss = LOSSES[spec.loss](shape, one_hot, self.dtype)
        # The last layer first: backpropagation finishes it first.
        tensors = [
            job_pb2.Tensor(name=f"{layer.index}.{name}", shape=shape)
            for layer in reversed(self.layers)
            for name, shape in layer.shapes().items()
        ]
        self.layout = job_pb2.Layout(tensors=tensors, dtype=self.dtype.name)
        self.size = layouts.elements(self.layout)
        self._places: list[list[_Place]] = [[] for _ in self.layers]
        start = 0
        for tensor in tensors:
            layer_index, _, name = tensor.name.partition(".")
            end = start + math.prod(tensor.shape)
            self._places[int(layer_index)].append(_Place(name, slice(start, end), tuple(tensor.shape)))
            start = end
        self._bound: Slab | None = None
        self._known: deque[tuple[Slab, list[dict[str, Slab]]]] = deque(maxlen=_MOST_SLABS)
        self._samples = -1

    @property
    def classifier(self) -> bool:
        """Whether samples are classified rightly or wrongly."""
        return self.loss.classifier

    @property
    def activations(self) -> int:
        """How many numbers the layers keep for each sample: their outputs, and the gradients by their inputs."""
        shapes = [*self._input_shapes, self.output_shape]
        return sum(math.prod(inputs) + math.prod(outputs) for inputs, outputs in itertools.pairwise(shapes))

    def check_targets(self, targets: NDArray[Any]) -> None:
        """Raises ModelError if targets do not fit the model's output."""
        self.loss.check(targets)

    def initial(self, out: Slab) -> None:
        """Fills a slab with the initial parameters, a function of the model and the seed."""
        for layer, places in zip(self.layers, self._places, strict=True):
            layer.initialize(_tensors(places, out))

    def bind(self, parameters: Slab) -> None:
        """Computes with the parameters in a slab from now on, wherever it changes."""
        if self._bound is not parameters:
            self._bound = parameters
            for layer, tensors in zip(self.layers, self._tensors_in(parameters), strict=True):
                layer.parameters = tensors

    def _tensors_in(self, slab: Slab) -> list[dict[str, Slab]]:
        """Each layer's tensors, views of a slab: the same few slabs come again and again."""
        for known, tensors in self._known:
            if known is slab:
                return tensors
        made = [_tensors(places, slab) for places in self._places]
        self._known.append((slab, made))
        return made

    def loss_and_gradient(
        self,
        x: Slab,
        y: NDArray[Any],
        denominator: int,
        task: Task | None,
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
        done = 0

        def finished_more(elements: int) -> None:
            finished(done + elements)

        gradients = self._tensors_in(gradient)
        for layer in reversed(self.layers):
            if places := self._places[layer.index]:
                layer.differentiate(backward, gradients[layer.index], finished_more)
                done = places[-1].where.stop
                finished(done)
            # Before the first layer with parameters nothing is to be learnt.
            if done < self.size:
                backward = layer.backward(backward)
        return sums

    def sums(self, x: Slab, y: NDArray[Any], task: Task | None = None) -> Sums:
        """The sums over samples, without dropout, or with that of a training task."""
        return self.sums_of(self._forward(x, task), y) if len(x) else Sums()

    def predict(self, x: Slab) -> Slab:
        """The outputs for samples of shape (samples, *input_shape): logits, if the loss takes them."""
        return self._forward(np.asarray(x, self.dtype), None).copy()

    def classes(self, outputs: Slab) -> NDArray[np.int64]:
        """The class of each sample by the model's outputs, shape (samples); of several yes-or-no outputs, each one's: 0 or 1."""
        classes = self.loss.decide(outputs).astype(np.int64)
        return classes.reshape(-1) if math.prod(classes.shape[1:]) == 1 else classes

    def inputs(self, x: Slab, task: Task | None) -> list[Slab]:
        """A copy of each layer's input, and of the output."""
        values = [x]
        self._make_room(len(x))
        for layer in self.layers:
            values.append(layer.forward(values[-1], task).copy())
        return values

    def loss_from(self, layer: int, x: Slab, y: NDArray[Any], task: Task | None) -> float:
        """The sum of losses, computed from the input of some layer on."""
        return _total(self.loss.losses(self._forward(x, task, layer), y))

    def _forward(self, x: Slab, task: Task | None, first: int = 0) -> Slab:
        self._make_room(len(x))
        for layer in self.layers[first:]:
            x = layer.forward(x, task)
        return x

    def _make_room(self, samples: int) -> None:
        if self._samples != samples:
            self._samples = samples
            for layer, shape in zip(self.layers, self._input_shapes, strict=True):
                layer.make_room((samples, *shape))
            self.loss.make_room(samples)

    def sums_of(self, output: Slab, y: NDArray[Any]) -> Sums:
        """The sums over samples, from the model's output for them."""
        correct = self.loss.correct(output, y) if self.classifier else 0.0
        return Sums(_total(self.loss.losses(output, y)), correct, len(output))


def _total(losses: Slab) -> float:
    return float(np.add.reduce(losses, dtype=np.float64))
