"""Samples that are prepared a group at a time: few groups are held, and the next ones are read ahead."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np

from thalweg.learning.batch import Batch, Schema
from thalweg.learning.data.memory import MAX_PREPARED
from thalweg.learning.data.rows import Indices, positions
from thalweg.learning.data.samples import Out, sample_bytes


class Reading(Protocol):
    """A group that is prepared by another thread. Each future of `concurrent.futures` is one."""

    def cancel(self) -> bool:
        """Cancels it if it has not begun. Says whether it is cancelled."""

    def done(self) -> bool:
        """Whether it has ended."""

    def exception(self) -> BaseException | None:
        """What it raised, after it has ended."""

    def result(self) -> Batch:
        """What was prepared, after it has ended. Raises what it raised."""


Load = Callable[[slice], Batch]
# Has a range of positions prepared by another thread.
Submit = Callable[[Load, slice], Reading]


class _Ready:
    """A group that is prepared."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def cancel(self) -> bool:
        return False

    def done(self) -> bool:
        return True

    def exception(self) -> None:
        return None

    def result(self) -> Batch:
        return self._batch


class Groups:
    """Samples of groups that are held once they are prepared, at most `limit` bytes, or one group.

    `ends` are the numbers of samples up to the end of each group; `load` prepares the samples of a range of positions, also on
    another thread. What it raises, `take` raises.
    """

    def __init__(self, schema: Schema, ends: Sequence[int], load: Load, limit: int = MAX_PREPARED) -> None:
        self.schema = schema
        self.groups = tuple(ends)
        self._ends = np.asarray(ends, np.intp)
        self._load = load
        self._limit = limit
        self._sample_bytes = sample_bytes(schema)
        self._lock = threading.Lock()
        # Groups that are held or read ahead, the one that was used last at the end.
        self._found: OrderedDict[int, Reading] = OrderedDict()
        # Groups that are dropped last.
        self._wanted: frozenset[int] = frozenset()
        self._submit: Submit | None = None

    def __len__(self) -> int:
        """The number of samples."""
        return int(self._ends[-1])

    @property
    def bytes(self) -> int:
        """The bytes of the groups that are held or read ahead."""
        return sum(map(self._bytes, tuple(self._found)))

    def take(self, indices: Indices, out: Out | None = None) -> Batch:
        """Samples by position. In the arrays `out`, if those are given."""
        indices = positions(indices, len(self))
        if out is None:
            out = {name: np.empty((len(indices), *field.shape), field.dtype) for name, field in self.schema.items()}
        groups = np.searchsorted(self._ends, indices, side="right")
        with self._lock:
            for group in np.unique(groups).tolist():
                where = np.flatnonzero(groups == group)
                rows = indices[where] - self._range(group).start
                batch = self._group(group)
                for name, values in batch.items():
                    out[name][where] = values[rows]
        return out

    def read_with(self, submit: Submit) -> None:
        """Groups are read ahead by a thread of the caller's. Without one, none is."""
        self._submit = submit

    def read_ahead(self, current: Collection[int], following: Sequence[int]) -> None:
        """Begins to prepare the `following` groups, as far as they have room beside the `current` ones.

        Others are dropped for them.
        """
        with self._lock:
            self._wanted = frozenset((*current, *following))
            if not (submit := self._submit):
                return
            # Room for all that is used now comes first, whether it is held yet or not.
            room = self._limit - sum(map(self._bytes, {*current}))
            for group in following:
                room -= 0 if group in current else self._bytes(group)
                if room < 0:
                    return
                if group not in self._found and self._make_room(group, forced=False):
                    self._found[group] = submit(self._load, self._range(group))

    def _group(self, group: int) -> Batch:
        future = self._found.pop(group, None)
        # One that waits for others is needed first now.
        if future is None or future.cancel():
            self._make_room(group, forced=True)
            future = _Ready(self._load(self._range(group)))
        batch = future.result()
        self._found[group] = future
        return batch

    def _make_room(self, group: int, *, forced: bool) -> bool:
        """Drops groups until there is room for one more, those that are wanted only if `forced`. Says whether there is room."""
        excess = self.bytes + self._bytes(group) - self._limit
        order = [other for other in self._found if other not in self._wanted]
        order += [other for other in self._found if other in self._wanted] if forced else []
        for other in order:
            if excess <= 0:
                break
            future = self._found[other]
            # One that is being read has its memory already.
            if not future.cancel() and not future.done():
                if not forced:
                    continue
                future.exception()
            del self._found[other]
            excess -= self._bytes(other)
        return excess <= 0

    def _range(self, group: int) -> slice:
        return slice(self.groups[group - 1] if group else 0, self.groups[group])

    def _bytes(self, group: int) -> int:
        where = self._range(group)
        return int(where.stop - where.start) * self._sample_bytes
