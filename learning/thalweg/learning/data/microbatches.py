"""The samples of microbatches, which may be gathered ahead of time."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.batch import Batch
from thalweg.learning.data.groups import Groups
from thalweg.learning.data.order import Ahead, Order
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
        # The groups of lanes that were taken from lately, each with the last step.
        self._lanes: dict[int, tuple[int, Ahead]] = {}

    def __call__(self, step: int, microbatch: int) -> Microbatch:
        """A microbatch, in arrays that the next one may overwrite."""
        if (step, microbatch) not in self._gathered:
            self.gather(step, range(microbatch, microbatch + 1))
        return self._gathered[step, microbatch]

    def copy(self, step: int, microbatch: int) -> Microbatch:
        """A microbatch, in arrays of its own."""
        indices, denominator = self._order.microbatch(step, microbatch)
        taken = Microbatch(self._samples.take(indices), denominator)
        self._read_ahead(step, microbatch)
        return taken

    def gather(self, step: int, span: range) -> None:
        """Gathers the first microbatches of a span ahead of time."""
        self._gathered.clear()
        gathered = 0
        for slot, microbatch in enumerate(span):
            indices, denominator = self._order.microbatch(step, microbatch)
            batch = self._samples.take(indices, self._room(slot, len(indices)))
            self._gathered[step, microbatch] = Microbatch(batch, denominator)
            self._read_ahead(step, microbatch)
            gathered += sum(values.nbytes for values in batch.values())
            if gathered >= _MAX_BYTES:
                break

    def _read_ahead(self, step: int, microbatch: int) -> None:
        """Has groups read from which the lanes of the latest microbatches will take samples next."""
        if not isinstance(self._samples, Groups) or not (ahead := self._order.ahead(step, microbatch)):
            return
        known = self._lanes.get(ahead.lane)
        self._lanes[ahead.lane] = step, ahead
        if known is None or known[1] != ahead:
            # Lanes that others compute now are not read ahead.
            self._lanes = {lane: found for lane, found in self._lanes.items() if step - found[0] <= 1}
            lanes = [found for _, found in self._lanes.values()]
            self._samples.read_ahead(
                {group for lane in lanes for group in lane.current}, [group for lane in lanes for group in lane.following]
            )

    def _room(self, slot: int, samples: int) -> dict[str, NDArray[Any]]:
        """Arrays for a number of samples: parts of the slot's previous ones, if these are large enough."""
        room = self._rooms.get(slot)
        if room is None or any(len(values) < samples for values in room.values()):
            room = {name: np.empty((samples, *field.shape), field.dtype) for name, field in self._schema.items()}
            self._rooms[slot] = room
        return {name: values[:samples] for name, values in room.items()}
