"""Models that are a sequence of layers with a loss: the model kind `sequential`."""

import math
from collections import deque
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import Slab, views_of
from thalweg.contract.segments import Segment, elements
from thalweg.contract.sums import ACCURACY, Sums
from thalweg.learning.batch import INPUT, TARGET, Batch, Schema
from thalweg.learning.data.samples import Samples, blocks
from thalweg.learning.metrics import METRICS
from thalweg.learning.objective import Outputs, Progress, ignore
from thalweg.learning.randomness import Draw
from thalweg.learning.sequential.layers import ModelError, sequence
from thalweg.learning.sequential.losses import LOSSES
from thalweg.v1 import job_pb2

__all__ = ["ModelError", "Sequential"]

# Slabs whose tensors are kept: two of parameters, one or two of gradients.
_MAX_SLABS = 4


class Sequential:
    """The objective of a job whose model is a sequence of layers, for samples with an input `x` and a target `y`.

    `spec` has its defaults filled in. `dtype` is the specification's unless another is given. `substitutes` are as in
    `registry.objective`. Raises ModelError if the layers do not fit together or to the samples.
    """

    def __init__(self, spec: job_pb2.JobSpec, schema: Schema, dtype: str | None = None, *, substitutes: bool = False) -> None:
        self._dtype: np.dtype[np.floating] = np.dtype(dtype or spec.model.dtype)
        # A computation in another dtype, for a comparison, uses the same inputs as training.
        self._input_dtype: np.dtype[np.floating] = np.dtype(spec.model.dtype)
        self._input_shape = schema[INPUT].shape
        self._root = sequence(spec.model, self._dtype, spec.seed, substitutes)
        self._output_shape = self._root.build(self._input_shape)
        self._loss = LOSSES[spec.model.loss](self._output_shape, spec.data.one_hot, self._dtype)
        self._further = {name: METRICS[name] for name in spec.model.metrics}
        self._segments = tuple(Segment(name, shape) for name, shape in self._root.shapes().items())
        self._size = elements(self._segments)
        self._bound: Slab | None = None
        self._known: deque[tuple[Slab, dict[str, Slab]]] = deque(maxlen=_MAX_SLABS)
        self._samples = -1

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The tensors. The last layer's come first: backpropagation finishes them first."""
        return self._segments

    @property
    def order(self) -> tuple[str, ...]:
        """The names as torch.nn.Sequential has them: the first layer's come first."""
        return tuple(sorted((segment.name for segment in self._segments), key=_layers))

    @property
    def counters(self) -> tuple[Segment, ...]:
        """None: layers count nothing."""
        return ()

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The dtype of parameters, gradients and activations."""
        return self._dtype

    @property
    def size(self) -> int:
        """The number of parameters."""
        return self._size

    @property
    def metrics(self) -> tuple[str, ...]:
        """The accuracy, if the model is a classifier, then the job's metrics."""
        return ((ACCURACY,) if self._loss.classifier else ()) + tuple(self._further)

    @property
    def activations(self) -> int:
        """The number of numbers that the layers keep for each sample: their outputs, and the gradients by their inputs."""
        return self._root.activations(self._input_shape, self._output_shape)

    @property
    def packages(self) -> frozenset[str]:
        """The packages beside NumPy that the layers compute with."""
        return self._root.packages

    @property
    def numerical(self) -> bool:
        """False: there is backpropagation."""
        return False

    def check(self, samples: Samples) -> None:
        """Raises ModelError if targets do not fit the model's output. All are looked at, block by block."""
        for where in blocks(samples):
            targets = samples.take(where)[TARGET]
            self._loss.check(targets)
            for name, metric in self._further.items():
                if problem := metric.problem(self._output_shape, targets):
                    raise ModelError(f"model.metrics: {name} {problem}")

    def initialize(self, out: Slab) -> None:
        """Writes the initial parameters, a function of the model and the seed."""
        self._root.initialize(self._tensors_in(out))

    def gradient(self, at: Slab, batch: Batch, denominator: int, draw: Draw | None, out: Slab, done: Progress = ignore) -> Sums:
        """Writes the gradient of the sum of the samples' losses, divided by `denominator`; returns the sums.

        Without samples it is zero. `done` is called after each layer that has parameters, and within a large one.
        """
        x = self._input(batch)
        if len(x) == 0:
            out[...] = 0
            done(self._size)
            return Sums()
        self._bind(at)
        sums = self._sums(self._forward(x, draw), batch)
        backward = self._loss.gradient()
        backward *= 1 / denominator
        self._root.differentiate(backward, self._tensors_in(out), done)
        if self._size:
            done(self._size)
        return sums

    def measure(self, at: Slab, batch: Batch, draw: Draw | None = None) -> Sums:
        """The sums over samples."""
        x = self._input(batch)
        if len(x) == 0:
            return Sums()
        self._bind(at)
        return self._sums(self._forward(x, draw), batch)

    def predict(self, at: Slab, batch: Batch) -> Outputs:
        """The outputs for samples, and what they mean."""
        self._bind(at)
        values = self._forward(self._input(batch), None).copy()
        if not self._loss.classifier:
            return Outputs(values)
        classes = self._loss.decide(values).astype(np.int64)
        classes = classes.reshape(-1) if math.prod(classes.shape[1:]) == 1 else classes
        return Outputs(values, classes, self._loss.probabilities(values))

    @property
    def stages(self) -> NDArray[np.intp]:
        """The index of the outermost layer that each parameter belongs to."""
        layers = [int(segment.name.partition(".")[0]) for segment in self._segments]
        return np.repeat(np.array(layers, np.intp), [segment.size for segment in self._segments])

    def trace(self, at: Slab, batch: Batch, draw: Draw | None) -> tuple[list[Slab], Sums]:
        """A copy of the input of each of the outermost layers; and the sums."""
        self._bind(at)
        values = [self._input(batch)]
        self._make_room(len(values[0]))
        for layer in self._root.layers:
            values.append(layer.forward(values[-1], draw).copy())
        return values[:-1], self._sums(values[-1], batch)

    def loss_from(self, stage: int, value: Slab, at: Slab, batch: Batch, draw: Draw | None) -> float:
        """The sum of the samples' losses, from the input of one of the outermost layers."""
        self._bind(at)
        return _total(self._loss.losses(self._forward(value, draw, stage), batch[TARGET]))

    def _input(self, batch: Batch) -> Slab:
        """The input in the dtype of the computation: the batch's own array, if it has that dtype."""
        x = batch[INPUT]
        if x.dtype == self._dtype:
            return x
        return x.astype(self._input_dtype).astype(self._dtype, copy=False)

    def _bind(self, at: Slab) -> None:
        if self._bound is not at:
            self._bound = at
            self._root.bind(self._tensors_in(at))

    def _tensors_in(self, slab: Slab) -> dict[str, Slab]:
        """All tensors, views of a slab. Callers use the same few slabs each time."""
        for known, tensors in self._known:
            if known is slab:
                return tensors
        made = views_of(self._segments, slab)
        self._known.append((slab, made))
        return made

    def _forward(self, x: Slab, draw: Draw | None, first: int = 0) -> Slab:
        self._make_room(len(x))
        return self._root.forward(x, draw, first)

    def _make_room(self, samples: int) -> None:
        if self._samples != samples:
            self._samples = samples
            self._root.make_room((samples, *self._input_shape))
            self._loss.make_room(samples)

    def _sums(self, output: Slab, batch: Batch) -> Sums:
        """The sums over samples, from the model's output for them."""
        targets = batch[TARGET]
        correct = (self._loss.correct(output, targets),) if self._loss.classifier else ()
        further = tuple(metric.sum(output, targets) for metric in self._further.values())
        return Sums(_total(self._loss.losses(output, targets)), len(output), correct + further)


def _layers(name: str) -> list[int]:
    """The indices of the nested layers that a tensor's name begins with."""
    return [int(part) for part in takewhile(str.isdecimal, name.split("."))]


def _total(losses: Slab) -> float:
    return float(np.add.reduce(losses, dtype=np.float64))
