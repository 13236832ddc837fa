"""What the caller of the present call may use of the server, by the limits of owners. They are for submitters."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, Protocol

from thalweg.server.access.limits import CallRates, LimitTable
from thalweg.server.access.principal import Principal, Role, caller
from thalweg.server.driving.jobs import Jobs
from thalweg.server.validation import complete
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

# What an owner stores is measured again after this time. What is uploaded meanwhile is added.
_MEASURED_SECONDS = 10.0
_FEWER_JOBS = "wait until a job ends, or cancel one"


class Stored(NamedTuple):
    """What an owner stores: uploads, and bytes in these and in files of jobs."""

    uploads: int
    size: int


class Stores(Protocol):
    """Where a server keeps files. All of it blocks."""

    def owned(self, owner: str) -> tuple[Sequence[str], Sequence[str]]:
        """The SHA-256s of an owner's uploads, and the ids of its jobs. Uses the database."""
        ...

    def size_of(self, uploads: Sequence[str], jobs: Sequence[str]) -> int:
        """The bytes of uploads and of the files of jobs. Uses no database."""
        ...


class Quotas:
    """Refuses what would exceed a limit. Belongs to the server's event loop."""

    def __init__(self, table: LimitTable, stores: Stores, jobs: Jobs, clock: Callable[[], float] = time.monotonic) -> None:
        self._table = table
        self._stores = stores
        self._jobs = jobs
        self._clock = clock
        self._rates = CallRates(table, clock)
        self._measured: dict[str, tuple[Stored, float]] = {}
        # Of each owner one call at a time: between the look and the record nothing else may come.
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def count_call(self, principal: Principal) -> None:
        """A principal makes a call. Raises ThalwegError if it makes too many."""
        if principal.role is Role.SUBMITTER:
            self._rates.count(principal.name)

    @asynccontextmanager
    async def new_job(self, request: pb.CreateJobRequest) -> AsyncIterator[None]:
        """A job is created within the context. Raises ThalwegError if the caller has too many, or stores too much."""
        if (owner := self._limited()) is None:
            yield
            return
        async with self._turns[owner]:
            known = await self._jobs.journal.run(self._jobs.storage.job_of_request, request.request_id)
            if not known:
                self._check_jobs(owner, complete(request.spec).training.workers)
                await self._check_stored(owner, 0, 0)
            yield

    @asynccontextmanager
    async def more_workers(self, job_id: str, workers: int | None = None) -> AsyncIterator[None]:
        """A job is resumed within the context, or gets another number of workers. Raises ThalwegError as `new_job`."""
        if (owner := self._limited()) is None:
            yield
            return
        async with self._turns[owner]:
            job = await self._jobs.queries.get(job_id)
            now = job.spec.training.workers
            if workers is None and self._jobs.unended(job_id) is None:
                self._check_jobs(owner, now)
            elif workers is not None and workers > now:
                self._check_workers(owner, workers - now)
            yield

    @asynccontextmanager
    async def upload(self, size: int) -> AsyncIterator[None]:
        """A file is uploaded within the context. Raises ThalwegError if the caller stores too much."""
        if (owner := self._limited()) is None:
            yield
            return
        # Not within a turn: an upload may take hours. What is under way counts.
        await self._check_stored(owner, 1, size)
        self._add(owner, 1, size)
        try:
            yield
        except BaseException:
            self._add(owner, -1, -size)
            raise

    def _limited(self) -> str | None:
        """The caller's name, if limits are for it."""
        principal = caller().principal
        return principal.name if principal.role is Role.SUBMITTER else None

    def _check_jobs(self, owner: str, workers: int) -> None:
        """One more job, with some workers."""
        self._table.of(owner).check(owner, "running_jobs", len(self._unended(owner)) + 1, _FEWER_JOBS)
        self._check_workers(owner, workers)

    def _check_workers(self, owner: str, more: int) -> None:
        in_all = sum(job.spec.training.workers for job in self._unended(owner)) + more
        advice = f"the jobs would request {in_all}; request fewer (training.workers), or {_FEWER_JOBS}"
        self._table.of(owner).check(owner, "workers", in_all, advice)

    def _unended(self, owner: str) -> list[job_pb2.Job]:
        return [run.job for run in self._jobs.lives.runs.of.values() if run.job.owner == owner]

    async def _check_stored(self, owner: str, uploads: int, size: int) -> None:
        limits = self._table.of(owner)
        if limits.uploads is None and limits.stored_bytes is None:
            return
        stored = await self._stored(owner)
        advice = "delete jobs that have ended; uploads that no job uses are removed later"
        limits.check(owner, "uploads", stored.uploads + uploads, advice)
        in_all = stored.size + size
        limits.check(owner, "stored_bytes", in_all, f"it would store {in_all:,} bytes; {advice}")

    async def _stored(self, owner: str) -> Stored:
        found = self._measured.get(owner)
        if found is None or self._clock() - found[1] > _MEASURED_SECONDS:
            uploads, jobs = await self._jobs.journal.run(self._stores.owned, owner)
            size = await self._jobs.journal.run_files(self._stores.size_of, uploads, jobs)
            found = self._measured[owner] = Stored(len(uploads), size), self._clock()
        return found[0]

    def _add(self, owner: str, uploads: int, size: int) -> None:
        if found := self._measured.get(owner):
            stored, then = found
            self._measured[owner] = Stored(stored.uploads + uploads, stored.size + size), then
