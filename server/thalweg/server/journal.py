"""The journal: numbers events, makes them durable in groups, and only then tells them to those who watch.

It also owns the two threads in which the disk is used: one for the storage, one for checkpoints, which may take long.
"""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from thalweg.contract.states import ENDED
from thalweg.server.storage import Storage
from thalweg.v1 import training_service_pb2

P = ParamSpec("P")
T = TypeVar("T")

_PAGE = 256
_RETRY_SECONDS = 1.0
# How long a server that starts or stops waits for a disk that takes nothing.
DISK_SECONDS = 5.0
_log = logging.getLogger(__name__)


class Journal:
    """Records the events of all jobs. Belongs to the server's event loop."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._thread = ThreadPoolExecutor(1, "thalweg-storage")
        self._background = ThreadPoolExecutor(1, "thalweg-checkpoints")
        self._pending: list[tuple[str, training_service_pb2.Event]] = []
        self._sequences: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._told = asyncio.Condition()
        self._recorded = 0
        self._durable = 0
        self._flusher: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts making events durable."""
        self._flusher = asyncio.create_task(self._flush())

    async def stop(self) -> None:
        """Waits until all recorded events are durable, but not for ever, and closes the storage."""
        if self._flusher:
            try:
                await asyncio.wait_for(self.settled(), DISK_SECONDS)
            except TimeoutError:
                _log.error("%d events could not be written", self._recorded - self._durable)
            self._flusher.cancel()
        await self.run(self.storage.close)
        self._thread.shutdown()
        self._background.shutdown()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function of the storage in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: function(*args, **kwargs))

    async def run_aside(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function that reads or writes much and does not use the database, beside what the storage does."""
        return await asyncio.get_running_loop().run_in_executor(self._background, lambda: function(*args, **kwargs))

    def open(self, job_id: str, last_sequence: int) -> None:
        """Begins to record a job's events behind a sequence number."""
        self._sequences[job_id] = last_sequence

    def close(self, job_id: str) -> None:
        """Forgets a job that records no more."""
        self._sequences.pop(job_id, None)

    def record(self, job_id: str, event: training_service_pb2.Event) -> None:
        """Takes an event of an open job: numbers it and dates it."""
        self._sequences[job_id] += 1
        event.sequence = self._sequences[job_id]
        event.time.GetCurrentTime()
        self._pending.append((job_id, event))
        self._recorded += 1
        self._wake.set()

    async def settled(self) -> None:
        """Waits until all events recorded so far are durable."""
        target = self._recorded
        async with self._told:
            await self._told.wait_for(lambda: self._durable >= target)

    async def _flush(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._pending = self._pending, []
            while batch:
                try:
                    await self.run(self.storage.record, batch)
                except sqlite3.Error as error:
                    # A full disk, most likely. Nothing is told before it is durable, so events wait until there is room.
                    _log.error("cannot write events: %s; trying again", error)
                    await asyncio.sleep(_RETRY_SECONDS)
                    continue
                async with self._told:
                    self._durable += len(batch)
                    self._told.notify_all()
                batch = []

    async def watch(self, job_id: str, after: int) -> AsyncIterator[training_service_pb2.Event]:
        """The events of a job behind a sequence number, those on disk first, then new ones, until the job has ended."""
        while True:
            durable = self._durable
            # Read first: if it has ended here, the events that follow are all there are.
            job = await self.run(self.storage.job, job_id)
            events = await self.run(self.storage.events, job_id, after, _PAGE)
            for event in events:
                yield event
                after = event.sequence
            if events:
                continue
            if job is None or job.state in ENDED:
                return
            async with self._told:
                await self._told.wait_for(lambda seen=durable: self._durable > seen)  # type: ignore[misc]
