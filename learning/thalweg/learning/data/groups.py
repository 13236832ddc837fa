"""Samples that are prepared a group at a time: few groups are held, and the next ones are read ahead."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import ranges
from thalweg.learning.batch import Batch, Schema
from thalweg.learning.data.memory import MAX_PREPARED
from thalweg.learning.data.rows import Indices, positions
from thalweg.learning.data.samples import Out, sample_bytes

# Prepares the samples of a range of positions in arrays.
Load = Callable[[slice, Out], object]


class Reading(Protocol):
    """A group that is prepared by another thread. Each future of `concurrent.futures` is one."""

    def cancel(self) -> bool:
        """Cancels it if it has not begun. Says whether it is cancelled."""

    def done(self) -> bool:
        """Whether it has ended."""

    def exception(self) -> BaseException | None:
        """What it raised, after it has ended."""

    def result(self) -> object:
        """Waits until it has ended. Raises what it raised."""


# Has a range of positions prepared by another thread.
Submit = Callable[[Load, slice, Out], Reading]


def cut(ends: Sequence[int], most: int) -> list[int]:
    """The ends of groups, of which those of more than `most` samples are cut into equal parts."""
    found, start = [], 0
    for end in ends:
        parts = -(-(end - start) // most)
        found += [start + (end - start) * part // parts for part in range(1, parts + 1)]
        start = end
    return found


class Groups:
    """Samples of groups that are held once they are prepared, at most `limit` bytes, or one group.

    `ends` are the numbers of samples up to the end of each group; `load` prepares the samples of a range of positions, also on
    another thread. What it raises, `take` raises. All groups that are held lie in one array of each field, so that samples are
    taken from several at once.
    """

    def __init__(self, schema: Schema, ends: Sequence[int], load: Load, limit: int = MAX_PREPARED) -> None:
        self.schema = schema
        self.groups = tuple(ends)
        self._ends = np.asarray(ends, np.intp)
        self._load = load
        self._sample_bytes = sample_bytes(schema)
        self._largest = int(np.max(np.diff(self._ends, prepend=0)))
        slots = min(len(ends), max(1, limit // max(1, self._largest * self._sample_bytes)))
        # Memory that is not used yet is not taken.
        self._room: dict[str, NDArray[Any]] = {
            name: np.empty((slots * self._largest, *field.shape), field.dtype) for name, field in schema.items()
        }
        self._free = list(range(slots))
        self._slots = slots
        self._lock = threading.Lock()
        # The slot of each group that is held or read ahead, the one that was used last at the end.
        self._found: OrderedDict[int, int] = OrderedDict()
        self._reading: dict[int, Reading] = {}
        # What is added to a sample's position for that in the room, by group.
        self._shifts = np.zeros(len(ends), np.intp)
        # Groups that are dropped last.
        self._wanted: frozenset[int] = frozenset()
        self._submit: Submit | None = None

    def __len__(self) -> int:
        """The number of samples."""
        return int(self._ends[-1])

    @property
    def bytes(self) -> int:
        """The bytes of the groups that are held or read ahead."""
        where = map(self._range, tuple(self._found))
        return sum(self._sample_bytes * (each.stop - each.start) for each in where)

    def take(self, indices: Indices, out: Out | None = None) -> Batch:
        """Samples by position. In the arrays `out`, if those are given."""
        indices = positions(indices, len(self))
        if out is None:
            out = {name: np.empty((len(indices), *field.shape), field.dtype) for name, field in self.schema.items()}
        groups = np.searchsorted(self._ends, indices, side="right")
        needed = np.unique(groups)
        with self._lock:
            for some in ranges(len(needed), self._slots):
                self._hold(needed[some].tolist())
                if len(needed) <= self._slots:
                    self._gather(indices + self._shifts[groups], out)
                else:
                    where = np.flatnonzero(np.isin(groups, needed[some]))
                    rows = indices[where] + self._shifts[groups[where]]
                    for name, values in self._room.items():
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
            room = self._slots - len({*current})
            for group in following:
                room -= group not in current
                if room < 0:
                    return
                if group not in self._found and (slot := self._slot((), forced=False)) is not None:
                    self._found[group] = slot
                    self._reading[group] = submit(self._load, self._range(group), self._place(group, slot))

    def _gather(self, rows: NDArray[np.intp], out: Out) -> None:
        for name, values in self._room.items():
            # Every index is right; without a mode NumPy would look, and gather to another array first.
            np.take(values, rows, axis=0, out=out[name], mode="clip")

    def _hold(self, groups: Collection[int]) -> None:
        """Has all of some groups held, at most as many as there are slots."""
        for group in groups:
            slot, reading = self._found.pop(group, None), self._reading.pop(group, None)
            # One that waits for others is needed first now.
            missing = slot is None or (reading is not None and reading.cancel())
            slot = self._slot(groups, forced=True) if slot is None else slot
            try:
                if missing:
                    self._load(self._range(group), self._place(group, slot))
                elif reading is not None:
                    reading.result()
            except BaseException:
                self._free.append(slot)
                raise
            self._found[group] = slot
            self._shifts[group] = slot * self._largest - self._range(group).start

    @overload
    def _slot(self, kept: Collection[int], *, forced: Literal[True]) -> int: ...
    @overload
    def _slot(self, kept: Collection[int], *, forced: Literal[False]) -> int | None: ...
    def _slot(self, kept: Collection[int], *, forced: bool) -> int | None:
        """A slot for one more group: a free one, or that of a group that is dropped.

        None of those that are `kept` is; those that are wanted only if `forced`.
        """
        if self._free:
            return self._free.pop()
        order = [group for group in self._found if group not in self._wanted]
        order += [group for group in self._found if group in self._wanted] if forced else []
        for group in order:
            reading = self._reading.get(group)
            if group in kept:
                continue
            if reading is not None and not reading.cancel() and not reading.done():
                if not forced:
                    continue
                # Its slot is written until it has ended, well or not.
                reading.exception()
            self._reading.pop(group, None)
            return self._found.pop(group)
        if forced:
            raise RuntimeError(f"{len(kept)} groups are needed at once, but there is room for {self._slots}")
        return None

    def _range(self, group: int) -> slice:
        return slice(self.groups[group - 1] if group else 0, self.groups[group])

    def _place(self, group: int, slot: int) -> Out:
        where, first = self._range(group), slot * self._largest
        return {name: values[first : first + where.stop - where.start] for name, values in self._room.items()}
