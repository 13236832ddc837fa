"""The jobs of a server without its services: real storage, journal and runs, no workers, and a shard that every run needs."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.server.specs import make_spec
from thalweg.server.arrays.sharded.registry import ShardLink
from thalweg.server.driving.job.driver import JobDriver
from thalweg.server.driving.jobs import Jobs
from thalweg.server.storage.folder import DataFolder
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb


def run(test: Coroutine[Any, Any, None]) -> None:
    """Runs a test that would otherwise wait for ever if something hangs."""

    async def within() -> None:
        async with asyncio.timeout(60):
            await test

    asyncio.run(within())


@asynccontextmanager
async def running_jobs(folder: Path, resume_unfinished: bool = True) -> AsyncIterator[Jobs]:
    """The jobs of a server that starts, and stops in the end."""
    jobs = Jobs(DataFolder(folder))
    await jobs.start(resume_unfinished)
    try:
        yield jobs
    finally:
        jobs.stopping = True
        await jobs.stop()


async def create(jobs: Jobs, job_id: str = "", **parts: Any) -> str:
    """The id of a new job."""
    return (await jobs.create(pb.CreateJobRequest(spec=make_spec(**parts), job_id=job_id))).id


def every_run_needs_its_shard(patch: pytest.MonkeyPatch) -> None:
    """Lets every job go back to its checkpoint when a shard is lost."""
    patch.setattr(JobDriver, "needs", lambda *_: True)


def lose_a_shard(jobs: Jobs) -> None:
    """A shard comes and is lost."""
    shard = ShardLink("imaginary:1")
    jobs.shards.attending.append(shard)
    jobs.shard_lost(shard)


async def events_of(jobs: Jobs, job_id: str) -> list[pb.Event]:
    """The events that are durable."""
    await jobs.journal.settled()
    return await jobs.journal.run(jobs.storage.events, job_id, 0, 10_000)


async def end_of(jobs: Jobs, job_id: str) -> job_pb2.Job:
    """A job when it has ended."""
    async for _ in jobs.queries.watch(job_id, 0):
        pass
    return await hold_together(jobs, job_id)


async def hold_together(jobs: Jobs, job_id: str) -> job_pb2.Job:
    """A job, whose events have no gap and end with the state that is on record."""
    events = await events_of(jobs, job_id)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    states = [event.state_changed.job for event in events if event.HasField("state_changed")]
    recorded = await jobs.journal.run(jobs.storage.job, job_id)
    assert states[-1] == recorded
    return states[-1]
