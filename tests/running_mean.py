"""An objective with tensors of all kinds: a line through samples less their running mean; a constant hides some features."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import Slab, views_of
from thalweg.contract.segments import Kind, Segment, elements
from thalweg.contract.sums import Sums
from thalweg.learning.batch import INPUT, TARGET, Batch, Schema
from thalweg.learning.data import Samples
from thalweg.learning.objective import Objective, Outputs, Progress, ignore
from thalweg.learning.randomness import Draw
from thalweg.v1 import job_pb2

MOMENTUM = 0.1


class RunningMean:
    """Half of (weight · (x - mean) + bias - y)², where x - mean counts as 0 for features with -inf in `hidden`.

    `mean` and `square` follow x and x² of what a batch holds; `still` never changes, as a statistic of a layer that is not used.
    """

    metrics = ("mean_absolute_error",)
    packages: frozenset[str] = frozenset()
    numerical = False

    def __init__(self, spec: job_pb2.JobSpec, schema: Schema, dtype: str | None = None, *, substitutes: bool = False) -> None:
        features = schema[INPUT].shape[0]
        self.dtype: np.dtype[np.floating] = np.dtype(dtype or spec.model.dtype)
        self.activations = 2 * features
        self.segments = (
            Segment("1.weight", (features,)),
            Segment("1.bias", ()),
            Segment("0.mean", (features,), Kind.STATISTIC),
            Segment("0.square", (features,), Kind.STATISTIC),
            Segment("0.still", (3,), Kind.STATISTIC),
            Segment("hidden", (features,), Kind.CONSTANT),
        )
        self.counters = (Segment("0.batches", ()), Segment("1.batches", (2,)))
        self.size = elements(self.segments)

    def check(self, samples: Samples) -> None:
        """All samples will do."""

    def initialize(self, out: Slab) -> None:
        tensors = views_of(self.segments, out)
        out[...] = 0
        tensors["1.weight"][...] = np.linspace(-0.1, 0.1, tensors["1.weight"].size)
        tensors["0.square"][...] = 1
        tensors["0.still"][...] = [-0.0, 0.1, 1e-45]
        tensors["hidden"][::7] = -np.inf

    def gradient(self, at: Slab, batch: Batch, denominator: int, draw: Draw | None, out: Slab, done: Progress = ignore) -> Sums:
        tensors, gradients = views_of(self.segments, at), views_of(self.segments, out)
        x = batch[INPUT].astype(self.dtype)
        out[...] = 0
        if len(x):
            z, missed = self._missed(tensors, batch)
            gradients["1.weight"][...] = np.add.reduce(z * missed[:, np.newaxis]) / denominator
            gradients["1.bias"][...] = np.add.reduce(missed) / denominator
            share = self.dtype.type(len(x) / denominator)
            for name, values in (("0.mean", x), ("0.square", x * x)):
                old = tensors[name]
                new = old + self.dtype.type(MOMENTUM) * (np.add.reduce(values) / self.dtype.type(len(x)) - old)
                gradients[name][...] = (old - new) * share
        done(self.size)
        return self.measure(at, batch)

    def measure(self, at: Slab, batch: Batch, draw: Draw | None = None) -> Sums:
        missed = self._missed(views_of(self.segments, at), batch)[1].astype(np.float64)
        return Sums(float(np.add.reduce(missed * missed) / 2), len(missed), (float(np.add.reduce(np.abs(missed))),))

    def predict(self, at: Slab, batch: Batch) -> Outputs:
        return Outputs(self._line(views_of(self.segments, at), batch)[1])

    def _missed(self, tensors: dict[str, Slab], batch: Batch) -> tuple[Slab, Slab]:
        z, line = self._line(tensors, batch)
        y: NDArray[Any] = batch[TARGET].reshape(len(line))
        return z, line - y.astype(self.dtype)

    def _line(self, tensors: dict[str, Slab], batch: Batch) -> tuple[Slab, Slab]:
        z = np.where(np.isinf(tensors["hidden"]), 0, batch[INPUT].astype(self.dtype) - tensors["0.mean"]).astype(self.dtype)
        return z, np.add.reduce(z * tensors["1.weight"], axis=1) + tensors["1.bias"]


def _is_an_objective(model: RunningMean) -> Objective:
    """So that a change of the protocol is seen here."""
    return model
