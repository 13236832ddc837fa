"""A job's life beside its training: cancelled, scaled and lost at any moment, it does what was asked and ends."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.server.lifecycle import create, end_of, every_run_needs_its_shard, hold_together, lose_a_shard, run, running_jobs
from tests.server.test_journal import poison
from thalweg.contract.errors import ThalwegError
from thalweg.server.deciding.values import NOWHERE
from thalweg.server.driving.job.driver import JobDriver
from thalweg.server.storage.checkpoints import Checkpoints
from thalweg.v1 import job_pb2
from thalweg.v1 import parameter_service_pb2 as wire

DEADLINE = 30.0


@contextmanager
def slow_reading(patch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Reading a checkpoint says that it has begun, and waits until it may continue."""
    begun, go_on, latest = threading.Event(), threading.Event(), Checkpoints.latest

    def slow(self: Checkpoints) -> Any:
        begun.set()
        assert go_on.wait(DEADLINE)
        return latest(self)

    patch.setattr(Checkpoints, "latest", slow)
    try:
        yield begun, go_on
    finally:
        go_on.set()


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, DEADLINE)


@pytest.mark.parametrize("moment", ["before it is read", "while it is read"])
def test_a_job_is_cancelled_while_it_goes_back_to_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    every_run_needs_its_shard(monkeypatch)

    async def test() -> None:
        async with running_jobs(tmp_path) as jobs:
            job_id = await create(jobs)
            with slow_reading(monkeypatch) as (begun, go_on):
                lose_a_shard(jobs)
                if moment == "while it is read":
                    await until(begun)
                cancelling = asyncio.create_task(jobs.cancel(job_id))
                await until(begun)
                go_on.set()
                assert (await cancelling).state == job_pb2.JOB_STATE_CANCELLED
            assert (await hold_together(jobs, job_id)).state == job_pb2.JOB_STATE_CANCELLED

    run(test())


@pytest.mark.parametrize("moment", ["before it is read", "while it is read"])
def test_a_job_is_scaled_while_it_goes_back_to_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    every_run_needs_its_shard(monkeypatch)

    async def test() -> None:
        async with running_jobs(tmp_path) as jobs:
            job_id = await create(jobs)
            with slow_reading(monkeypatch) as (begun, go_on):
                lose_a_shard(jobs)
                if moment == "while it is read":
                    await until(begun)
                scaling = asyncio.create_task(jobs.scale(job_id, 3))
                await until(begun)
                go_on.set()
                assert (await scaling).spec.training.workers == 3
            assert (await jobs.queries.get(job_id)).spec.training.workers == 3
            assert (await hold_together(jobs, job_id)).spec.training.workers == 3

    run(test())


def test_a_job_whose_checkpoint_cannot_be_read_back_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every_run_needs_its_shard(monkeypatch)

    async def test() -> None:
        async with running_jobs(tmp_path) as jobs:
            job_id = await create(jobs)
            with monkeypatch.context() as patch:
                patch.setattr(Checkpoints, "latest", lambda _: (_ for _ in ()).throw(MemoryError("no room to read it")))
                lose_a_shard(jobs)
                job = await end_of(jobs, job_id)
            assert job.state == job_pb2.JOB_STATE_FAILED
            assert "no room to read it" in job.error

    run(test())


def test_an_event_that_cannot_be_recorded_fails_its_job_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async with running_jobs(tmp_path) as jobs:
            poisoned, innocent = await create(jobs), await create(jobs)
            await jobs.journal.run(poison, jobs.storage, poisoned, 2)
            scaling = asyncio.create_task(jobs.scale(poisoned, 2))
            assert (await jobs.scale(innocent, 2)).spec.training.workers == 2
            with pytest.raises(ThalwegError, match="has ended"):
                await scaling
            job = await end_of(jobs, poisoned)
            assert job.state == job_pb2.JOB_STATE_FAILED
            assert "the job's events cannot be recorded: IntegrityError" in job.error
            assert (await hold_together(jobs, innocent)).state == job_pb2.JOB_STATE_QUEUED
            # It leaves no trace in the server: it can be resumed, and others begin.
            assert (await jobs.resume(poisoned)).state == job_pb2.JOB_STATE_QUEUED
            assert await create(jobs)

    run(test())


def test_a_run_that_was_given_up_records_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every_run_needs_its_shard(monkeypatch)

    async def test() -> None:
        async with running_jobs(tmp_path) as jobs:
            job_id = await create(jobs)
            before = jobs.run(job_id)
            assert before
            lose_a_shard(jobs)
            await jobs.scale(job_id, 2)
            before.telemetry.notice("a word of the dead")
            before.telemetry.enter(job_pb2.JOB_STATE_RUNNING, "")
            assert (await hold_together(jobs, job_id)).state == job_pb2.JOB_STATE_QUEUED

    run(test())


def test_the_log_tells_the_story_when_a_decision_cannot_be_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: JobDriver) -> None:
        raise ValueError("a mistake")

    async def test() -> None:
        async with running_jobs(tmp_path) as jobs:
            job_id = await create(jobs)
            with monkeypatch.context() as patch:
                patch.setattr(JobDriver, "pause", fails)
                # What else was decided is carried out: the call is answered.
                assert (await jobs.scale(job_id, 0)).paused
            (told,) = [record.getMessage() for record in caplog.records if "could not be carried out" in record.getMessage()]
            assert told.startswith(f"job {job_id}: PauseRun() could not be carried out. Story:\n")
            assert "RunStarted(paused=False), STARTING → ACTIVE" in told
            assert "ScaleRequested" in told
            assert (await jobs.cancel(job_id)).state == job_pb2.JOB_STATE_CANCELLED

    run(test())


def test_the_story_of_a_job_goes_on_over_its_runs_and_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every_run_needs_its_shard(monkeypatch)

    async def test() -> None:
        async with running_jobs(tmp_path) as jobs:
            job_id = await create(jobs)
            lose_a_shard(jobs)
            await jobs.cancel(job_id)
            told = [(entry.source, entry.text) for entry in await jobs.queries.story(job_id)]
            lost = told.index(("lifecycle", "ShardLost(address='imaginary:1'), ACTIVE → GOING_BACK"))
            assert told[lost + 1][1].startswith("  GiveUpRun")
            assert ("coordinator", "CancelRequested") in told[lost:]
            assert ("lifecycle", "  RecordEnd") in told[lost:]
            await jobs.delete(job_id)
            with pytest.raises(ThalwegError, match="no job"):
                await jobs.queries.story(job_id)
            # A new job of that id has a new story.
            assert await create(jobs, job_id) == job_id
            assert (await jobs.queries.story(job_id))[0].text.startswith("Accepted")

    run(test())


class Late:
    """A worker's connection, which notes what it hears."""

    worker, name, place = 1, "late", NOWHERE

    def __init__(self) -> None:
        self.heard: list[str | None] = []

    def send(self, message: wire.WorkResponse) -> None:
        self.heard.append(message.WhichOneof("message"))

    def send_parameters(self, version: int, serialized: bytes, *, constant: bool) -> None:
        self.heard.append("parameters")

    def evict(self, error: object = None) -> None:
        self.heard.append("evicted")


def test_a_worker_that_joins_a_run_that_was_given_up_is_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every_run_needs_its_shard(monkeypatch)

    async def test() -> None:
        async with running_jobs(tmp_path) as jobs:
            admitted = jobs.run(await create(jobs))
            assert admitted
            lose_a_shard(jobs)
            late = Late()
            admitted.join(late)
            admitted.leave(late.worker)
            assert late.heard == ["goodbye"]

    run(test())
