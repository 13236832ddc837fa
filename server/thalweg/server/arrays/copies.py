"""Copies of the arrays that are here, made while training goes on.

An event loop that copies gigabytes at once handles nothing meanwhile. So a copy is made in slices of some MiB, between all else
that happens there, and what an update is about to change is copied before it.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from thalweg.contract.layout import Slab
from thalweg.learning.optimizers import OptimizerState
from thalweg.server.arrays.parameters import Parameters
from thalweg.server.arrays.pieces import Part, PendingParts

# What is copied at once.
SLICE_BYTES = 4 << 20
# Has something called again and again, later and whenever there is time, until it is False.
Spare: TypeAlias = Callable[[Callable[[], bool]], object]


def between_events(act: Callable[[], bool]) -> None:
    """Has something called again and again by the running event loop, each time after all else that is due."""
    loop = asyncio.get_running_loop()

    def turn() -> None:
        if act():
            loop.call_soon(turn)

    loop.call_soon(turn)


class _Chunk(Part):
    """A part that is copied to `target`, of the same shape."""

    def __init__(self, slab: str, version: int, values: Slab, target: Slab) -> None:
        super().__init__(slab, version, values)
        self._target = target

    def _take(self, values: Slab) -> None:
        self._target[:] = values


class _Copy(NamedTuple):
    parts: deque[_Chunk]
    then: Callable[[], object]


class Copies:
    """The copies of a job's slabs that are being made, each finished after those that were asked for before it.

    `spare` has them go on. `failed` is called with what a copy's `then` raises, unless the copy is made at once.
    """

    def __init__(self, parameters: Parameters, spare: Spare, failed: Callable[[Exception], object]) -> None:
        self._parameters = parameters
        self._spare = spare
        self._failed = failed
        self._queue: deque[_Copy] = deque()
        self._waiting = PendingParts()
        self._copying = False

    def copy(self, into: OptimizerState, then: Callable[[], object]) -> None:
        """Has slabs copied as they are now, into others given by name, and then calls `then`: at once if they are small."""
        parameters = self._parameters
        slabs, parts = parameters.slabs, deque[_Chunk]()
        for name, target in into.items():
            for chunk in parameters.chunks:
                where = parameters.where(chunk)
                part = _Chunk(name, parameters.version, slabs[name][where], target[where])
                self._waiting.add(chunk, part)
                parts.append(part)
        self._take(_Copy(parts, then))

    def after(self, then: Callable[[], object]) -> None:
        """Calls something when all copies have been made that were asked for."""
        self._take(_Copy(deque(), then))

    def _take(self, copy: _Copy) -> None:
        self._queue.append(copy)
        if self._copying:
            return
        self._copying = True
        try:
            self._copying = self._slice()
        except BaseException:
            self._copying = False
            raise
        if self._copying:
            self._spare(self._go_on)

    def _go_on(self) -> bool:
        try:
            self._copying = self._slice()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the job's
            self._copying = bool(self._queue)
            self._failed(error)
        return self._copying

    def _slice(self) -> bool:
        """Copies some. Whether there is more to copy."""
        left = SLICE_BYTES
        while self._queue:
            parts, then = self._queue[0]
            while parts and left > 0:
                left -= parts.popleft().make()
            if parts:
                return True
            self._queue.popleft()
            then()
        self._waiting.clear()
        return False

    def before_update(self, version: int, chunks: range) -> None:
        """Copies what an update of a version changes; see `Parameters.apply`."""
        if self._queue:
            self._waiting.before_update(version, chunks)

    def before_change(self) -> None:
        """Copies all that is not copied: anything may change now."""
        self._waiting.before_change()

    def drop(self) -> None:
        """Gives up the copies that are not finished."""
        self._queue.clear()
        self._waiting.clear()
