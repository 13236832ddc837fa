"""Keeps the record of a job within bounds, however long the job runs: older events are merged, and some kinds of them removed.

A job's newest events stay as they were told. Of those before, events about steps that follow each other become one, a parcel,
with the number of the last of them: a client that has seen some of them gets the parcel, so that it misses no step. When all
parcels of a job hold too many losses, a pass over them doubles their stride (see StepsTaken in the contract): the resolution is
the same over the whole job. Merging costs a constant for each event, since a pass begins when there is twice as much as the last
one left. Changes of state are all kept.

What is done is noted with the record, in the same transaction.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from google.protobuf.message import DecodeError

from thalweg.contract import strides
from thalweg.server.telemetry import steps_end
from thalweg.v1 import training_service_pb2

_log = logging.getLogger(__name__)
# No stride becomes larger.
_MAX_STRIDE = 1 << 40
_NOTICES = frozenset({"notice", "checkpoint_failed"})
_ROUTINE = frozenset({"workers_changed", "checkpoint_written"})


class Bounds(NamedTuple):
    """What is kept of each job. The contract and the documents name some of these numbers."""

    # Of the newest events, which stay as they are. There may be twice as much that is not merged yet.
    recent_bytes: int = 512 << 10
    # Of merged events: losses and parcels, and losses in one parcel.
    losses: int = 100_000
    parcels: int = 2000
    parcel_losses: int = 1024
    # The latest so many are kept; those before are removed when there are twice as many.
    notices: int = 1000
    routine: int = 200
    # Ends of epochs: when there are more, every second one is kept, then every fourth, and so on.
    epochs: int = 20_000
    # What is read in one step.
    step_events: int = 1000
    step_losses: int = 32_768


BOUNDS = Bounds()


class Tally(NamedTuple):
    """What events tell of, and their bytes."""

    steps: int = 0
    epochs: int = 0
    size: int = 0

    def plus(self, event: training_service_pb2.Event, size: int) -> "Tally":
        """With one event more, of some bytes."""
        steps = max(self.steps, steps_end(event.steps_taken)) if event.HasField("steps_taken") else self.steps
        return Tally(steps, max(self.epochs, event.epoch_ended.epoch), self.size + size)


NOTHING = Tally()


class Merged(NamedTuple):
    """The merged part of a job's record; see the table `tallies` in `schema.py`."""

    upto: int
    stride: int
    losses: int
    parcels: int
    notices: int
    routine: int
    epoch_stride: int
    ends: int
    surplus_notices: int
    surplus_routine: int
    packed: int


class Merging(Protocol):
    """The record of a server's jobs, as far as older events are merged in it."""

    def grown(self, size: int) -> tuple[str, Merged] | None:
        """A job with more than so many bytes of events that are not merged, and its merged part; None if there is none."""
        ...

    def newest(self, job_id: str) -> Iterator[tuple[int, int]]:
        """The numbers of a job's events, the newest first, and how many bytes each has."""
        ...

    def older(self, job_id: str, after: int, before: int, limit: int) -> Iterator[training_service_pb2.Event]:
        """At most `limit` events between two numbers, in order. Raises DecodeError at one that cannot be read."""
        ...

    def replace(self, job_id: str, removed: Sequence[int], changed: Sequence[training_service_pb2.Event]) -> None:
        """Removes events by their numbers, and gives others a new content."""
        ...

    def set_merged(self, job_id: str, merged: Merged) -> None:
        """Notes a job's merged part."""
        ...

    def set_fresh(self, job_id: str, size: int) -> None:
        """Notes how many bytes of a job's events are not merged."""
        ...


class Thinning:
    """Thins the records of jobs. What one step does is to happen as a whole or not at all: its caller sees to that."""

    def __init__(self, record: Merging, bounds: Bounds) -> None:
        self._record = record
        self._bounds = bounds

    def step(self) -> bool:
        """Does a bounded piece of work for a job that has more unmerged events than it may have. False if there is none."""
        grown = self._record.grown(2 * self._bounds.recent_bytes)
        if grown is None:
            return False
        job_id, merged = grown
        try:
            merged = self._thin(job_id, merged)
        except (DecodeError, ValueError) as error:
            # It remains as it is, until the job has recorded more.
            _log.error("job %s: older events cannot be merged, because one of them cannot be read: %s", job_id, error)
            self._record.set_fresh(job_id, 0)
        self._record.set_merged(job_id, merged)
        return True

    def _thin(self, job_id: str, merged: Merged) -> Merged:
        end, size = self._recent(job_id)
        work = _Work(merged, self._bounds)
        for event in self._record.older(job_id, merged.upto, end, self._bounds.step_events):
            work.take(event)
            if work.read >= self._bounds.step_losses:
                break
        if work.merged.upto > merged.upto:
            work.end_parcel()
            self._record.replace(job_id, work.removed, work.changed)
            return work.merged
        merged = merged._replace(packed=merged.parcels) if merged.packed < 0 else merged
        again = self._next_pass(merged)
        if again is None:
            self._record.set_fresh(job_id, min(size, self._bounds.recent_bytes))
        return again or merged

    def _next_pass(self, merged: Merged) -> Merged | None:
        """The state in which another pass begins, if one is needed."""
        bounds, stride = self._bounds, merged.stride
        coarser = merged.losses > bounds.losses and stride < _MAX_STRIDE
        scattered = merged.parcels > max(bounds.parcels, 2 * merged.packed)
        dense = merged.ends > bounds.epochs
        crowded = merged.notices > 2 * bounds.notices or merged.routine > 2 * bounds.routine
        if not (coarser or scattered or dense or crowded):
            return None
        return Merged(
            upto=0,
            stride=2 * stride if coarser else stride,
            losses=0,
            parcels=0,
            notices=0,
            routine=0,
            epoch_stride=2 * merged.epoch_stride if dense else merged.epoch_stride,
            ends=0,
            surplus_notices=max(0, merged.notices - bounds.notices),
            surplus_routine=max(0, merged.routine - bounds.routine),
            packed=-1,
        )

    def _recent(self, job_id: str) -> tuple[int, int]:
        """The number from which on events are recent, the last one in any case, and how many bytes these have."""
        first = size = 0
        for sequence, length in self._record.newest(job_id):
            first, size = sequence, size + length
            if size >= self._bounds.recent_bytes:
                break
        return first, size


class _Work:
    """One step: what of the events that it reads is to be removed and to be changed, and what the merged part is then."""

    def __init__(self, before: Merged, bounds: Bounds) -> None:
        self.read = 0
        self.removed: list[int] = []
        self.changed: list[training_service_pb2.Event] = []
        self.merged = before
        self._most = bounds.parcel_losses
        # Events about steps without a gap, which become one.
        self._parcel: list[training_service_pb2.Event] = []

    def take(self, event: training_service_pb2.Event) -> None:
        """Takes the next event."""
        merged = self.merged = self.merged._replace(upto=event.sequence)
        kind = event.WhichOneof("kind")
        if kind == "steps_taken":
            self._take_steps(event)
        elif kind in _NOTICES:
            if merged.surplus_notices:
                self.removed.append(event.sequence)
                self.merged = merged._replace(surplus_notices=merged.surplus_notices - 1)
            else:
                self.merged = merged._replace(notices=merged.notices + 1)
        elif kind in _ROUTINE:
            if merged.surplus_routine:
                self.removed.append(event.sequence)
                self.merged = merged._replace(surplus_routine=merged.surplus_routine - 1)
            else:
                self.merged = merged._replace(routine=merged.routine + 1)
        elif kind == "epoch_ended":
            if event.epoch_ended.epoch % merged.epoch_stride:
                self.removed.append(event.sequence)
            else:
                self.merged = merged._replace(ends=merged.ends + 1)

    def _take_steps(self, event: training_service_pb2.Event) -> None:
        self.read += len(event.steps_taken.losses)
        if self._parcel:
            first, last = self._parcel[0].steps_taken, self._parcel[-1].steps_taken
            follows = event.steps_taken.first_step == steps_end(last)
            if not follows or self._losses(first.first_step, steps_end(event.steps_taken)) > self._most:
                self.end_parcel()
        self._parcel.append(event)

    def _losses(self, first: int, end: int) -> int:
        """How many losses stand for the steps from `first` to before `end`."""
        return -(-end // self.merged.stride) - first // self.merged.stride

    def end_parcel(self) -> None:
        """Merges the events about steps that were taken last."""
        if not self._parcel:
            return
        merged, parcel = self.merged, self._parcel
        first = parcel[0].steps_taken
        losses = self._losses(first.first_step, steps_end(parcel[-1].steps_taken))
        self.merged = merged._replace(parcels=merged.parcels + 1, losses=merged.losses + losses)
        if len(parcel) > 1 or max(1, first.stride) != merged.stride:
            self.removed += [event.sequence for event in parcel[:-1]]
            self.changed.append(joined(parcel, merged.stride))
        self._parcel = []


def joined(events: Sequence[training_service_pb2.Event], stride: int) -> training_service_pb2.Event:
    """One event in the place of some: they are about steps that follow each other, and their strides divide `stride`.

    All but its steps is the last one's.
    """
    starts, counts, losses = [], [], []
    for event in events:
        taken = event.steps_taken
        start, count = strides.spans(taken.first_step, steps_end(taken) - taken.first_step, max(1, taken.stride))
        starts.append(start)
        counts.append(count)
        losses.append(np.asarray(taken.losses, np.float64))
    first = events[0].steps_taken.first_step
    weights = np.concatenate(counts)
    edges = np.flatnonzero(np.diff(np.concatenate(starts) // stride, prepend=-1))
    # At a stride of 1 nothing is added, and a loss remains what it is.
    with np.errstate(over="ignore", invalid="ignore"):
        means = np.add.reduceat(np.concatenate(losses) * weights, edges) / np.add.reduceat(weights, edges)
    result = training_service_pb2.Event()
    result.CopyFrom(events[-1])
    taken = result.steps_taken
    taken.steps = steps_end(taken) - first
    taken.first_step, taken.stride = first, stride
    del taken.losses[:]
    taken.losses.extend(means.tolist())
    return result
