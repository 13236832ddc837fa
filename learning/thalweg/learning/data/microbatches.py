"""The samples of microbatches, which may be gathered ahead of time."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.batch import Batch
from thalweg.learning.data.order import Order
from thalweg.learning.data.samples import Samples

# Bytes of samples that are gathered ahead of time, at most one microbatch more: others would not stay in the cache.
_MAX_BYTES = 16 << 20


class Microbatch(NamedTuple):
    """A microbatch, and the number of samples in the whole minibatch."""

    batch: Batch
    denominator: int


class Microbatches:
    """The microbatches of a job. Belongs to one thread."""

    def __init__(self, samples: Samples, order: Order) -> None:
        self._samples = samples
        self._schema = samples.schema
        self._order = order
        self._rooms: dict[int, dict[str, NDArray[Any]]] = {}
        self._gathered: dict[tuple[int, int], Microbatch] = {}

    def __call__(self, step: int, microbatch: int) -> Microbatch:
        """A microbatch, in arrays that the next one may overwrite."""
        if (step, microbatch) not in self._gathered:
            self.gather(step, range(microbatch, microbatch + 1))
        return self._gathered[step, microbatch]

    def copy(self, step: int, microbatch: int) -> Microbatch:
        """A microbatch, in arrays of its own."""
        indices, denominator = self._order.microbatch(step, microbatch)
        return Microbatch(self._samples.take(indices), denominator)

    def gather(self, step: int, span: range) -> None:
        """Gathers the first microbatches of a span ahead of time."""
        self._gathered.clear()
        gathered = 0
        for slot, microbatch in enumerate(span):
            indices, denominator = self._order.microbatch(step, microbatch)
            batch = self._samples.take(indices, self._room(slot, len(indices)))
            self._gathered[step, microbatch] = Microbatch(batch, denominator)
            gathered += sum(values.nbytes for values in batch.values())
            if gathered >= _MAX_BYTES:
                break

    def _room(self, slot: int, samples: int) -> dict[str, NDArray[Any]]:
        """Arrays for a number of samples: parts of the slot's previous ones, if these are large enough."""
        room = self._rooms.get(slot)
        if room is None or any(len(values) < samples for values in room.values()):
            room = {name: np.empty((samples, *field.shape), field.dtype) for name, field in self._schema.items()}
            self._rooms[slot] = room
        return {name: values[:samples] for name, values in room.items()}
