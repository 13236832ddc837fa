"""Gathers the samples of microbatches, if need be ahead of time."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import Slab
from thalweg.learning.data import Dataset
from thalweg.learning.data.sampling import Sampler

# Bytes of samples after which no further microbatch is gathered ahead of time: they would not stay in the cache.
_MOST_BYTES = 16 << 20


class Microbatch(NamedTuple):
    """A microbatch: its samples and targets, and the number of samples in the whole minibatch."""

    x: Slab
    y: NDArray[Any]
    denominator: int


class Gatherer:
    """The microbatches of a job. Belongs to one thread."""

    def __init__(self, dataset: Dataset, sampler: Sampler) -> None:
        self._x, self._y = dataset.train_x, dataset.train_y
        self._sampler = sampler
        self._rooms: dict[tuple[str, int], NDArray[Any]] = {}
        self._gathered: dict[tuple[int, int], Microbatch] = {}

    def __call__(self, step: int, microbatch: int) -> Microbatch:
        """A microbatch, in arrays that the next one may overwrite."""
        if (step, microbatch) not in self._gathered:
            self.gather(step, range(microbatch, microbatch + 1))
        return self._gathered[step, microbatch]

    def copy(self, step: int, microbatch: int) -> Microbatch:
        """A microbatch, in arrays of its own."""
        indices, denominator = self._sampler.microbatch(step, microbatch)
        return Microbatch(self._x[indices], self._y[indices], denominator)

    def gather(self, step: int, run: range) -> None:
        """Gathers the first microbatches of a run, so that they are there when they are asked for."""
        self._gathered.clear()
        gathered = 0
        for slot, microbatch in enumerate(run):
            indices, denominator = self._sampler.microbatch(step, microbatch)
            x, y = self._take("x", slot, self._x, indices), self._take("y", slot, self._y, indices)
            self._gathered[step, microbatch] = Microbatch(x, y, denominator)
            gathered += x.nbytes + y.nbytes
            if gathered >= _MOST_BYTES:
                break

    def _take(self, name: str, slot: int, values: NDArray[Any], indices: NDArray[np.intp]) -> NDArray[Any]:
        room = self._rooms.get((name, slot))
        if room is None or len(room) < len(indices):
            room = self._rooms[name, slot] = np.empty((len(indices), *values.shape[1:]), values.dtype)
        # Every index is right; without a mode NumPy would look, and gather to another array first.
        return np.take(values, indices, axis=0, out=room[: len(indices)], mode="clip")
