"""The journal: numbers events, makes them durable in groups, and only then tells them to those who watch.

It also owns the threads in which the disk is used: one for the database, one for checkpoints, and one for all other files.
Events never wait for what may take long.
"""

import asyncio
import logging
import math
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from thalweg.server.storage.interface import Storage
from thalweg.server.storage.room import Room, Shortage, lacks_room
from thalweg.server.storage.watches import Watches
from thalweg.v1 import training_service_pb2

P = ParamSpec("P")
T = TypeVar("T")

# How long a server that starts or stops waits for a disk that takes nothing.
DISK_SECONDS = 5.0
# How often older events are looked after, and how long events and training have the machine between two steps of that.
_THIN_SECONDS, _THIN_PAUSE = 10.0, 0.02
_log = logging.getLogger(__name__)


class Journal:
    """Records the events of all jobs. Belongs to the server's event loop.

    `rejected` is called with a job's id and the problem when one of its events cannot be recorded for another reason than room:
    the job's other events that are not durable are dropped.
    """

    def __init__(self, storage: Storage, rejected: Callable[[str, str], object]) -> None:
        self.storage = storage
        self.room = Room(storage.folder)
        # Why events wait; None while they do not.
        self.shortage: Shortage | None = None
        self._on_rejected = rejected
        self._thread = ThreadPoolExecutor(1, "thalweg-storage")
        self._background = ThreadPoolExecutor(1, "thalweg-checkpoints")
        self._files = ThreadPoolExecutor(1, "thalweg-files")
        self._writing: list[tuple[str, training_service_pb2.Event]] = []
        # None in place of an event that was dropped: it still has its turn, for those who wait until what was recorded before
        # them is durable count events.
        self._pending: list[tuple[str, training_service_pb2.Event | None]] = []
        self._sequences: dict[str, int] = {}
        # How often events were rejected, of jobs of which any were.
        self.rejections: Counter[str] = Counter()
        self._wake = asyncio.Event()
        self._told = asyncio.Condition()
        self._recorded = 0
        self._durable = 0
        self._flusher: asyncio.Task[None] | None = None
        self._thinner: asyncio.Task[None] | None = None
        self._watches = Watches(storage, self.run)

    def start(self) -> None:
        """Starts making events durable, and merging older ones."""
        self._flusher = asyncio.create_task(self._flush())
        self._thinner = asyncio.create_task(self._thin())

    async def stop(self) -> None:
        """Waits until all recorded events are durable, but not for ever, and closes the storage."""
        if self._flusher:
            try:
                await asyncio.wait_for(self.settled(), DISK_SECONDS)
            except TimeoutError:
                _log.error("%d events could not be written", self.pending)
            self._flusher.cancel()
        if self._thinner:
            self._thinner.cancel()
        await self.run(self.storage.close)
        for thread in (self._thread, self._background, self._files):
            thread.shutdown()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function that uses the database, in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: function(*args, **kwargs))

    async def run_aside(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function that reads or writes checkpoints, beside all else."""
        return await asyncio.get_running_loop().run_in_executor(self._background, lambda: function(*args, **kwargs))

    async def run_files(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function that reads or writes results, uploads or exports, and not the database, after those called before."""
        return await asyncio.get_running_loop().run_in_executor(self._files, lambda: function(*args, **kwargs))

    async def files_settled(self) -> None:
        """Waits for the files that are being read or written."""
        await asyncio.gather(self.run_aside(lambda: None), self.run_files(lambda: None))

    async def open(self, job_id: str) -> None:
        """Begins to record a job's events, after those that it has. From here on, the count is kept here alone."""
        if job_id not in self._sequences:
            self._sequences[job_id] = await self.run(self.storage.last_sequence, job_id)

    def close(self, job_id: str) -> None:
        """Forgets a job that records no more, with what it has recorded and could not be written."""
        self._sequences.pop(job_id, None)
        self._writing = [each for each in self._writing if each[0] != job_id]
        self._drop_pending(job_id)

    def _drop_pending(self, job_id: str) -> None:
        self._pending = [(job, None if job == job_id else event) for job, event in self._pending]

    def record(self, job_id: str, event: training_service_pb2.Event) -> None:
        """Takes an event of an open job: numbers it and dates it."""
        self._sequences[job_id] += 1
        event.sequence = self._sequences[job_id]
        event.time.GetCurrentTime()
        self._pending.append((job_id, event))
        self._recorded += 1
        self._wake.set()

    @property
    def pending(self) -> int:
        """How many events are not durable."""
        return self._recorded - self._durable

    async def settled(self) -> None:
        """Waits until all events recorded so far are durable."""
        target = self._recorded
        async with self._told:
            await self._told.wait_for(lambda: self._durable >= target)

    async def _flush(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            count = len(self._pending)
            self._writing = [(job_id, event) for job_id, event in self._pending if event]
            self._pending = []
            # Nothing is told before it is durable: while the disk is full, events wait.
            try:
                await self._write()
            except Exception:  # noqa: BLE001 - whatever it is, it is one event's
                _log.exception("%d events cannot be recorded together; trying each alone", count)
                await self._write_each()
            await self._dealt_with(count)

    async def _thin(self) -> None:
        """Keeps the record of each job within bounds, in small steps."""
        while True:
            await asyncio.sleep(_THIN_SECONDS)
            try:
                while await self.run(self.storage.thin):
                    await asyncio.sleep(_THIN_PAUSE)
            except (OSError, sqlite3.Error) as error:
                # A full disk is reported by those who wait for room: there is time for this.
                _log.log(logging.INFO if lacks_room(error) else logging.WARNING, "older events cannot be merged now: %s", error)

    async def _write(self) -> None:
        written: tuple[tuple[str, training_service_pb2.Event], ...] = ()

        def record() -> Awaitable[None]:
            nonlocal written
            written = tuple(self._writing)
            return self.run(self.storage.record, written)

        await self.room.write(record, self._tell_shortage)
        self._watches.durable(written)

    async def _write_each(self) -> None:
        """Writes events one by one: an event that cannot be recorded stops its own job and no other."""
        left, rejected = self._writing, set[str]()
        for job_id, event in left:
            self._writing = [(job_id, event)]
            if job_id not in rejected:
                try:
                    await self._write()
                except Exception as error:  # noqa: BLE001 - whatever it is, its job fails
                    _log.exception("job %s: event %d cannot be recorded", job_id, event.sequence)
                    rejected.add(job_id)
                    await self._reject(job_id, f"{type(error).__name__}: {error}")

    async def _reject(self, job_id: str, problem: str) -> None:
        """Drops what a job has recorded and is not durable, and counts anew from what is."""
        self.rejections[job_id] += 1
        self._on_rejected(job_id, problem)
        self._drop_pending(job_id)
        try:
            last = await self.run(self.storage.last_sequence, job_id)
        except Exception:  # noqa: BLE001 - what follows is rejected as well
            _log.exception("job %s: its events cannot be counted", job_id)
            return
        if job_id in self._sequences:
            self._sequences[job_id] = last
            for event in (event for job, event in self._pending if event and job == job_id):
                self._sequences[job_id] += 1
                event.sequence = self._sequences[job_id]

    async def _dealt_with(self, events: int) -> None:
        async with self._told:
            self._durable += events
            self._told.notify_all()

    def _tell_shortage(self, shortage: Shortage | None) -> None:
        self.shortage = shortage

    async def watch(self, job_id: str, after: int, until_now: bool = False) -> AsyncIterator[training_service_pb2.Event]:
        """The events of a job after a sequence number, those on disk first, then new ones, until the job has ended.

        With `until_now`, those that are durable now.
        """
        until = await self.run(self.storage.last_sequence, job_id) if until_now else math.inf
        async for event in self._watches.watch(job_id, after, until):
            yield event
