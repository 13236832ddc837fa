"""What a server does now and then: looks who is silent, and gives back room on the disk that nothing needs."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress

from thalweg.server.arrays.sharded.registry import ShardLink
from thalweg.server.deciding.retention import expires
from thalweg.server.driving.attention import Attention
from thalweg.server.driving.lifecycle.lives import Lives
from thalweg.server.settings import RunSettings
from thalweg.server.storage.journal import Journal
from thalweg.server.telemetry import Clock

_log = logging.getLogger(__name__)
# How soon it is noticed that a worker takes too long.
_TICK_SECONDS = 0.025
# How often room on the disk is given back that nothing needs.
_TIDY_SECONDS = 3600.0
# How many jobs are read at a time.
_PAGE = 100


class Upkeep:
    """The recurring work of one server. Belongs to its event loop. `shard_lost` is called with shards that are silent."""

    def __init__(
        self, journal: Journal, lives: Lives, settings: RunSettings, shard_lost: Callable[[ShardLink], object], clock: Clock
    ) -> None:
        self._journal = journal
        self._lives = lives
        self._silence_seconds = settings.silence_seconds
        self._keep_results_seconds = settings.keep_results_seconds
        self._shard_lost = shard_lost
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        # For how many seconds the server listened to nobody, in all.
        self.missed = 0.0

    @property
    def started(self) -> bool:
        """Whether it is being done."""
        return bool(self._tasks)

    def start(self) -> None:
        """Begins."""
        if self._keep_results_seconds is not None:
            self._lives.endings.untidy.set()
        self._tasks = [asyncio.create_task(self._tick()), asyncio.create_task(self._tidy())]

    def stop(self) -> None:
        """Ends."""
        for task in self._tasks:
            task.cancel()

    async def _tick(self) -> None:
        attention = Attention(_TICK_SECONDS, self._silence_seconds, self._clock)
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            missed = attention.missed()
            self.missed += missed
            if missed:
                _log.warning("the server was unresponsive for %.1f s", missed)
            self.tick_runs(missed)
            for shard in self._lives.runs.shards.silent(self._silence_seconds, missed):
                shard.give_up()
                self._shard_lost(shard)

    def tick_runs(self, missed: float) -> None:
        """Tells the runs that time has passed. For `missed` seconds of it nobody listened."""
        for run in list(self._lives.runs.of.values()):
            run.tick(missed)

    async def _expire(self, now: float) -> None:
        """Has the results removed that are as old as results may be at a time, in seconds since 1970."""
        if self._keep_results_seconds is None:
            return
        before: int | None = None
        while page := await self._journal.run(self._journal.storage.results, _PAGE, before):
            for _, job in page:
                if expires(job, now, self._keep_results_seconds):
                    self._lives.result_expired(job)
                    await self._lives.rest(job.id)
            before = page[-1][0]

    async def _tidy(self) -> None:
        """Now and then, and after deletions, gives back room on the disk that nothing needs."""
        storage = self._journal.storage
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._lives.endings.untidy.wait(), _TIDY_SECONDS)
            self._lives.endings.untidy.clear()
            try:
                await self._expire(time.time())
                await self._journal.run(storage.remove_unused_uploads)
                # Step by step, so that nothing else waits for long.
                while await self._journal.run(storage.shrink):
                    pass
            except (OSError, sqlite3.Error) as error:
                _log.warning("unused disk space cannot be released: %s", error)
