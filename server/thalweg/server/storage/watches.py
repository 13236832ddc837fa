"""Those who watch jobs: each waits for the events of its own job, and those of one job share what was read and recorded."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import NamedTuple

from thalweg.contract.states import ENDED
from thalweg.server.storage.interface import Storage
from thalweg.v1 import training_service_pb2

_PAGE = 256
# Events of a watched job that are kept in memory: a watcher that is not further behind needs no disk.
_RECENT = 256


class _Page(NamedTuple):
    """Events after a number, in order, and whether there will be none after the last of them."""

    events: list[training_service_pb2.Event]
    ended: bool


class _Topic:
    """One job that is watched, and its latest events, without a gap."""

    def __init__(self) -> None:
        self.watchers = 0
        self.changed = asyncio.Event()
        self.recent: deque[training_service_pb2.Event] = deque(maxlen=_RECENT)
        self.reading: dict[int, asyncio.Task[_Page]] = {}
        # None until that is known: the next state, or the record, says it.
        self.ended: bool | None = None

    def add(self, event: training_service_pb2.Event) -> None:
        """An event has become durable."""
        self.recent.append(event)
        if event.HasField("state_changed"):
            self.ended = event.state_changed.job.state in ENDED
        self.changed.set()
        self.changed = asyncio.Event()

    def after(self, sequence: int) -> _Page | None:
        """What comes after an event. None if that is not at hand."""
        if not self.recent or sequence + 1 < self.recent[0].sequence:
            return None
        newer = self.recent[-1].sequence - sequence
        if newer <= 0 and self.ended is None:
            return None
        return _Page([self.recent[index] for index in range(-newer, 0)] if newer > 0 else [], bool(self.ended))


class Watches:
    """All who watch jobs. Belongs to the server's event loop. `run` calls a function in the storage's thread."""

    def __init__(self, storage: Storage, run: Callable[[Callable[[], _Page]], Awaitable[_Page]]) -> None:
        self._storage = storage
        self._run = run
        self._topics: dict[str, _Topic] = {}

    def durable(self, events: Iterable[tuple[str, training_service_pb2.Event]]) -> None:
        """Events have become durable."""
        for job_id, event in events:
            topic = self._topics.get(job_id)
            if topic:
                topic.add(event)

    async def watch(self, job_id: str, after: int, until: float) -> AsyncIterator[training_service_pb2.Event]:
        """The events of a job after a sequence number, those on disk first, then new ones, until the job has ended.

        Ends before that after the event that has the number `until`, or a later one.
        """
        topic = self._topics.setdefault(job_id, _Topic())
        topic.watchers += 1
        try:
            while after < until:
                changed = topic.changed
                page = topic.after(after)
                if page is None:
                    page = await self._read(topic, job_id, after)
                    if topic.ended is None and not page.ended:
                        topic.ended = False
                for event in page.events:
                    yield event
                    after = event.sequence
                if page.events:
                    continue
                if page.ended:
                    return
                await changed.wait()
        finally:
            topic.watchers -= 1
            if not topic.watchers:
                del self._topics[job_id]

    async def _read(self, topic: _Topic, job_id: str, after: int) -> _Page:
        """Reads from disk, once for all who want the same."""

        def read() -> _Page:
            # The job first: if it has ended here, the events that follow are all there are.
            job = self._storage.job(job_id)
            return _Page(self._storage.events(job_id, after, _PAGE), job is None or job.state in ENDED)

        if after not in topic.reading:
            reading = topic.reading[after] = asyncio.ensure_future(self._run(read))
            reading.add_done_callback(lambda _: topic.reading.pop(after))
        return await asyncio.shield(topic.reading[after])
