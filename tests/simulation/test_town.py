"""Whatever is asked of a server's jobs and whatever goes wrong: calls are answered, answers hold, jobs end, no step is missing.

Named after docs/guarantees.md. The bugs that are planted here are those that servers had, or could have.
"""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest

from tests.simulation import town as town_module
from tests.simulation import towns
from tests.simulation.schedules import undisturbed
from tests.simulation.town import JOBS, MISHAPS
from thalweg.server.deciding.coordinator import Coordinator
from thalweg.server.deciding.decisions import Decision, Finish
from thalweg.server.deciding.events import Event
from thalweg.server.deciding.lifecycle.events import CancelRequested, ScaleRequested
from thalweg.server.deciding.lifecycle.life import TRANSITIONS, Life, State
from thalweg.server.driving.answers import Answers
from thalweg.server.driving.attention import Attention
from thalweg.server.driving.job.driver import JobDriver
from thalweg.server.driving.job.outcome import JobOutcome
from thalweg.server.storage import checkpoints, room, thinning
from thalweg.server.storage.journal import Journal
from thalweg.server.storage.room import Shortage
from thalweg.v1 import job_pb2

# Found in the first dozens, as a rule.
_MAX_SEEDS = 300


@pytest.mark.parametrize("first", range(0, 60, 15))
def test_whatever_is_asked_and_goes_wrong_jobs_end(first: int) -> None:
    for seed in range(first, first + 15):
        try:
            towns.check(seed)
        except AssertionError as error:
            raise AssertionError(f"town {seed}") from error


# What failed on them: a worker that was let go while nobody heard it was waited for; a job was said to be resumed, and ended by
# an earlier cancellation; a server whose machine had gone down was to stop.
@pytest.mark.parametrize("seed", [16280, 23720, 28200])
def test_a_town_that_once_failed_breaks_no_guarantee(seed: int) -> None:
    towns.check(seed)


@pytest.mark.parametrize("seed", range(6))
def test_so_do_they_in_a_folder(tmp_path: Path, seed: int) -> None:
    towns.check(seed, tmp_path)


def test_the_towns_meet_every_kind_of_mishap() -> None:
    counts = Counter[str]()
    for seed in range(100, 130):
        counts.update(towns.check(seed).counts)
    answered = {"cancel", "scale", "resume", "delete", "parameters", "get"}
    assert counts.keys() >= answered | {"stops", "deaths", "limited"} | set(MISHAPS)


def test_a_seed_gives_the_same_town_again() -> None:
    for seed in range(5):
        first, second = (towns.check(seed) for _ in range(2))
        assert first.counts == second.counts


def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancellation is taken for done while the job goes back to a checkpoint."""
    monkeypatch.setitem(cast(Any, TRANSITIONS), (State.GOING_BACK, CancelRequested), Life._cancel_ended)


def _lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancellation is lost while the job goes back to a checkpoint."""
    monkeypatch.setitem(cast(Any, TRANSITIONS), (State.GOING_BACK, CancelRequested), Life._nothing)


def _scaled_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of scale is taken for done, and does nothing, while the job goes back to a checkpoint."""
    monkeypatch.setitem(cast(Any, TRANSITIONS), (State.GOING_BACK, ScaleRequested), Life._answer)


def _one_number_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first event after a job is resumed has the number of the last one before."""

    async def opened(self: Journal, job_id: str) -> None:
        if job_id not in self._sequences:
            self._sequences[job_id] = max(0, await self.run(self.storage.last_sequence, job_id) - 1)

    monkeypatch.setattr(Journal, "open", opened)


def _stubborn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an event breaks, it is tried again for ever."""
    monkeypatch.setattr(room, "lacks_room", lambda error: isinstance(error, sqlite3.Error | OSError))


def _all_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that cannot be recorded takes those of all jobs with it."""

    async def reject_all(self: Journal) -> None:
        for job_id in {job_id for job_id, _ in self._writing}:
            await self._reject(job_id, "planted")
        self._writing = []

    monkeypatch.setattr(Journal, "_write_each", reject_all)


def _copies_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy for a checkpoint that cannot be made fails the job."""
    done = JobDriver.checkpoint_done

    def fails(self: JobDriver, version: int, size: int, seconds: float, problem: str = "") -> None:
        if "memory for a copy" in problem:
            self.fail(problem)
        else:
            done(self, version, size, seconds, problem)

    monkeypatch.setattr(JobDriver, "checkpoint_done", fails)


def _failures_are_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job fails whatever a worker says of itself, however far the others got."""

    def fail(_: Coordinator, __: int, problem: str, ___: object) -> list[Decision]:
        return [Finish(job_pb2.JOB_STATE_FAILED, problem)]

    monkeypatch.setattr(Coordinator, "_worker_failed", fail)


def _deaf_means_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server could not hear is taken for the silence of workers."""
    monkeypatch.setattr(Attention, "missed", lambda _: 0.0)


def _told_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are answered before what they did is durable."""

    async def at_once(_: Journal) -> None:
        pass

    monkeypatch.setattr(Journal, "settled", at_once)


def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls wait for room on the disk."""

    async def never(self: Answers, job_id: str) -> Shortage:
        return await asyncio.Future()

    monkeypatch.setattr(Answers, "shortage_of", never)


def _only_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of earlier releases are not known."""

    def check(header: dict[str, Any]) -> None:
        if header.get("format", 1) != checkpoints.FORMAT:
            raise checkpoints.NewerCheckpointError("of another release")

    monkeypatch.setattr(checkpoints, "_check_format", check)


def _thinned_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merging older events loses some."""
    joined = thinning.joined
    monkeypatch.setattr(thinning, "joined", lambda events, stride: joined(events[-1:], stride))


@pytest.mark.parametrize(
    "plant",
    [
        _forgotten,
        _lost,
        _scaled_in_vain,
        _one_number_for_two,
        _stubborn,
        _all_for_one,
        _copies_are_needed,
        _failures_are_the_jobs,
        _deaf_means_silent,
        _told_too_early,
        _patient,
        _only_its_own,
        _thinned_too_far,
    ],
)
def test_a_planted_bug_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in JOBS.values():
        undisturbed(name, 0)
    plant(monkeypatch)
    for seed in range(_MAX_SEEDS):
        try:
            towns.check(seed)
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
def test_an_end_that_fails_on_the_way_is_decided_again(planted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = JobDriver._end
    failed: set[str] = set()

    def failing(self: JobDriver, outcome: JobOutcome) -> None:
        if self.job.id not in failed:
            failed.add(self.job.id)
            # The driver catches what fails while the end is begun. This fails after it, as in a thread or at a shard.
            self._queue.fail(MemoryError("no memory for the end"))
        else:
            ended(self, outcome)

    monkeypatch.setattr(JobDriver, "_end", failing)
    monkeypatch.setattr(town_module, "EXCUSES", ("no memory for the end",))
    monkeypatch.setattr(towns, "MISHAPS", ())
    if planted:
        _decided_is_done(monkeypatch)
    hangs = pytest.raises((TimeoutError, AssertionError), match=r"is not answered|^$")
    with hangs if planted else nullcontext():
        towns.check(0)
    assert failed
