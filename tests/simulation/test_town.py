"""Whatever is asked of a server's jobs and whatever goes wrong: calls are answered, jobs end, and events have no gap."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.lifecycle import every_run_needs_its_shard, hold_together
from tests.simulation import town as town_module
from tests.simulation.cluster import small_chunks
from tests.simulation.schedules import undisturbed
from tests.simulation.town import Town
from thalweg.contract.states import ENDED
from thalweg.server import room
from thalweg.server.answers import Answers
from thalweg.server.jobs import Jobs
from thalweg.server.room import Shortage
from thalweg.server.run import JobRun
from thalweg.v1 import job_pb2

_CALLS = 25
_MOST_SEEDS = 60


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "RETRY_SECONDS", 0.002)
    every_run_needs_its_shard(monkeypatch)


def check(folder: Path, seed: int) -> Town:
    """Lives through a seed, and holds the end to the guarantees. Raises AssertionError."""
    town = Town(folder, seed)

    async def live() -> None:
        await town.live(_CALLS)
        for _, job in await town.jobs.journal.run(town.storage.jobs, 1000):
            assert job.state in ENDED
            await hold_together(town.jobs, job.id)
            if job.state == job_pb2.JOB_STATE_SUCCEEDED:
                download = await town.jobs.parameters(job.id)
                assert download.arrays[0].tobytes() == expected
        await town.stop()

    expected = undisturbed("bulk", 0)[0]
    with small_chunks():
        asyncio.run(live())
    return town


@pytest.mark.parametrize("seed", range(30))
def test_whatever_is_asked_and_goes_wrong_jobs_end(tmp_path: Path, seed: int) -> None:
    check(tmp_path, seed)


def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of a job that goes back to a checkpoint is asked of nobody."""

    async def living(self: Jobs, job_id: str) -> JobRun | None:
        return self.run(job_id)

    monkeypatch.setattr(Jobs, "_living", living)


def _stubborn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an event breaks, it is tried again for ever."""
    monkeypatch.setattr(room, "lacks_room", lambda error: isinstance(error, sqlite3.Error | OSError))


def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls wait for room on the disk."""

    async def never(self: Answers, job_id: str) -> Shortage:
        return await asyncio.Future()

    monkeypatch.setattr(Answers, "shortage_of", never)


@pytest.mark.parametrize("plant", [_forgotten, _stubborn, _patient])
def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(town_module, "CALL_SECONDS", 2.0)
    plant(monkeypatch)
    for seed in range(_MOST_SEEDS):
        try:
            check(tmp_path / str(seed), seed)
        except (AssertionError, KeyError, TimeoutError):
            return
    raise AssertionError("the bug went unnoticed")
