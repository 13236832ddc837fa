"""Calls are answered in time, though the work that they request waits for room on the disk or takes long. The work goes on."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from thalweg.contract.errors import ThalwegError
from thalweg.server.storage import room
from thalweg.server.storage.journal import Journal
from thalweg.server.storage.room import Shortage, is_full

T = TypeVar("T")

_log = logging.getLogger(__name__)
# A call is answered after this time, though what it asked for may not be durable yet: clients wait longer.
ANSWER_SECONDS = 20.0


class Answers:
    """The work that calls have begun, and whose results wait for room. Belongs to the server's event loop."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._work: set[asyncio.Task[Any]] = set()
        self._probe: asyncio.Task[None] | None = None
        self.shortages: dict[str, Shortage] = {}  # by job

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begins work that outlives the call that requests it."""
        task = asyncio.create_task(work)
        self._work.add(task)

        def done(_: asyncio.Task[T]) -> None:
            self._work.discard(task)
            # A call that has been answered takes no error any more.
            if not task.cancelled() and task.exception():
                _log.debug("after the answer of a call: %s", task.exception())

        task.add_done_callback(done)
        return task

    async def wait(self, job_id: str, work: Coroutine[Any, Any, T], consequence: str, seconds: float | None = None) -> T | None:
        """Waits for what a call asked of a job, but not for room on the disk. None if it takes more than `seconds`.

        Raises what the work raises, and ThalwegError if it waits for room; `consequence` says what becomes of it then.
        """
        task = self.begin(work)
        short = asyncio.create_task(self.shortage_of(job_id))
        try:
            await asyncio.wait({task, short}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            short.cancel()
        if task.done():
            return task.result()
        if short.done():
            raise short.result().error(consequence)
        return None

    async def shortage_of(self, job_id: str) -> Shortage:
        """Waits until a job's events or its result wait for room, and not only until the next attempt to write them."""
        while True:
            change = self._journal.room.change
            if self.shortages.get(job_id) or self._journal.shortage:
                await asyncio.sleep(2 * room.RETRY_SECONDS)
                if shortage := self.shortages.get(job_id) or self._journal.shortage:
                    return shortage
            else:
                await change.wait()

    def refusal(self, error: Exception, consequence: str) -> ThalwegError:
        """The error of a call whose write failed. If there is no room, the server's health says so until there is."""
        if is_full(error) and (self._probe is None or self._probe.done()):
            journal = self._journal
            self._probe = self.begin(journal.room.write(lambda: journal.run(journal.storage.probe)))
        return self._journal.room.refusal(error, consequence)

    def close(self) -> None:
        """No more calls will come: ends the work."""
        for task in self._work:
            task.cancel()
