"""Whatever is asked of a server's jobs and whatever goes wrong: calls are answered, jobs end, and events have no gap."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest

from tests.server.lifecycle import events_of, every_run_needs_its_shard, hold_together
from tests.simulation import town as town_module
from tests.simulation.cluster import small_chunks
from tests.simulation.schedules import undisturbed
from tests.simulation.town import FillingStorage, Town
from thalweg.contract.states import ENDED
from thalweg.server.deciding.coordinator import Coordinator
from thalweg.server.deciding.decisions import Decision, Finish
from thalweg.server.deciding.events import Event
from thalweg.server.deciding.lifecycle.events import CancelRequested
from thalweg.server.deciding.lifecycle.life import TRANSITIONS, Life, State
from thalweg.server.driving.answers import Answers
from thalweg.server.driving.job.driver import JobDriver
from thalweg.server.driving.job.outcome import JobOutcome
from thalweg.server.storage import journal, room
from thalweg.server.storage.journal import Journal
from thalweg.server.storage.room import Shortage
from thalweg.server.storage.thinning import Bounds
from thalweg.server.telemetry import steps_end
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

_CALLS = 25
_MAX_SEEDS = 60


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
            # All were resumed at the end, after the last cancellation.
            assert job.id in town.poisoned or job.state == job_pb2.JOB_STATE_SUCCEEDED, f"{job.id} failed: {job.error}"
            if job.state == job_pb2.JOB_STATE_SUCCEEDED:
                download = await town.jobs.queries.parameters(job.id)
                assert b"".join(array.tobytes() for array in download.arrays) == expected
        await town.stop()

    expected = undisturbed("bulk", 0)[0]
    with small_chunks():
        asyncio.run(live())
    return town


@pytest.mark.parametrize("seed", range(30))
def test_whatever_is_asked_and_goes_wrong_jobs_end(tmp_path: Path, seed: int) -> None:
    check(tmp_path, seed)


@pytest.mark.parametrize("seed", range(10))
def test_merging_older_events_meanwhile_loses_no_step_and_no_state(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_THIN_SECONDS", 0.001)
    monkeypatch.setattr(journal, "_THIN_PAUSE", 0.0)
    # Whether what was answered is on record then depends on how long other work takes in the storage's thread.
    monkeypatch.setattr(Town, "_poison", Town._nothing)
    told: dict[str, dict[int, job_pb2.Job]] = {}
    record = FillingStorage.record

    def recording(self: FillingStorage, events: Iterable[tuple[str, pb.Event]]) -> None:
        events = list(events)
        record(self, events)
        for job_id, event in events:
            if event.HasField("state_changed"):
                told.setdefault(job_id, {})[event.sequence] = event.state_changed.job

    thin, merged = FillingStorage.thin, list[bool]()

    def thinning(self: FillingStorage) -> bool:
        merged.append(thin(self))
        return merged[-1]

    monkeypatch.setattr(FillingStorage, "record", recording)
    monkeypatch.setattr(FillingStorage, "thin", thinning)
    bounds = Bounds(recent_bytes=200, losses=10, parcels=3, parcel_losses=4, notices=2, routine=2, step_events=7, step_losses=20)
    town = Town(tmp_path, seed, bounds)

    async def live() -> None:
        await town.live(_CALLS)
        for _, job in await town.jobs.journal.run(town.storage.jobs, 1000):
            assert job.state in ENDED
            while await town.jobs.journal.run(town.storage.thin):
                pass
            events = await events_of(town.jobs, job.id)
            states = {event.sequence: event.state_changed.job for event in events if event.HasField("state_changed")}
            # Of a job that was deleted, another one may have the id.
            assert states.items() <= told[job.id].items()
            assert len(states) == len([sequence for sequence in told[job.id] if sequence <= events[-1].sequence])
            epochs = max(event.epoch_ended.epoch for event in events)
            steps = 0
            for taken in [event.steps_taken for event in events if event.HasField("steps_taken")]:
                assert taken.first_step == steps
                steps = steps_end(taken)
            assert await town.jobs.journal.run(town.storage.told, job.id) == (steps, epochs)
        assert any(merged)
        await town.stop()

    with small_chunks():
        asyncio.run(live())


def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancellation is taken for done while the job goes back to a checkpoint."""
    monkeypatch.setitem(cast(Any, TRANSITIONS), (State.GOING_BACK, CancelRequested), Life._cancel_ended)


def _lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancellation is lost while the job goes back to a checkpoint."""
    monkeypatch.setitem(cast(Any, TRANSITIONS), (State.GOING_BACK, CancelRequested), Life._nothing)


def _one_number_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first event after a job is taken up has the number of the last one before."""

    async def opened(self: Journal, job_id: str) -> None:
        if job_id not in self._sequences:
            self._sequences[job_id] = max(0, await self.run(self.storage.last_sequence, job_id) - 1)

    monkeypatch.setattr(Journal, "open", opened)


def _copies_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy for a checkpoint that cannot be made fails the job."""

    done = JobDriver.checkpoint_done

    def fails(self: JobDriver, version: int, size: int, seconds: float, problem: str = "") -> None:
        if "memory for a copy" in problem:
            self.fail(problem)
        else:
            done(self, version, size, seconds, problem)

    monkeypatch.setattr(JobDriver, "checkpoint_done", fails)


def _stubborn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an event breaks, it is tried again for ever."""
    monkeypatch.setattr(room, "lacks_room", lambda error: isinstance(error, sqlite3.Error | OSError))


def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls wait for room on the disk."""

    async def never(self: Answers, job_id: str) -> Shortage:
        return await asyncio.Future()

    monkeypatch.setattr(Answers, "shortage_of", never)


@pytest.mark.parametrize("plant", [_forgotten, _lost, _one_number_for_two, _copies_are_needed, _stubborn, _patient])
def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(town_module, "CALL_SECONDS", 2.0)
    plant(monkeypatch)
    for seed in range(_MAX_SEEDS):
        try:
            check(tmp_path / str(seed), seed)
        except (AssertionError, KeyError, TimeoutError):
            return
    raise AssertionError("the bug went unnoticed")


def _decided_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end is taken for carried out when it is decided, and not when it is carried out."""
    handle = Coordinator.handle

    def handled(self: Coordinator, event: Event, now: float) -> list[Decision]:
        decisions = handle(self, event, now)
        if any(isinstance(decision, Finish) for decision in decisions):
            self.finished()
        return decisions

    monkeypatch.setattr(Coordinator, "handle", handled)


@pytest.mark.parametrize("planted", [False, True])
def test_an_end_that_fails_on_the_way_is_decided_again(planted: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ended = JobDriver._end
    failed: set[str] = set()

    def failing(self: JobDriver, outcome: JobOutcome) -> None:
        if self.job.id not in failed:
            failed.add(self.job.id)
            # The driver catches what fails while the end is begun. This fails behind it, as in a thread or at a shard.
            self._queue.fail(MemoryError("no memory for the end"))
        else:
            ended(self, outcome)

    monkeypatch.setattr(JobDriver, "_end", failing)
    if planted:
        monkeypatch.setattr(town_module, "CALL_SECONDS", 2.0)
        _decided_is_done(monkeypatch)

    async def live() -> None:
        town = Town(tmp_path, 0)
        await town.live(_CALLS)
        await town.stop()

    hangs = pytest.raises((TimeoutError, AssertionError), match=r"is not answered|^$")
    with small_chunks(), hangs if planted else nullcontext():
        asyncio.run(live())
    assert failed
