"""The record of a long job has a bound: older events are merged, step by step, and no step is missed by those who watch."""

import asyncio
import itertools
import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from thalweg.client import records
from thalweg.client.plotting.curve import course
from thalweg.contract import strides
from thalweg.server.storage import journal as journal_module
from thalweg.server.storage.folder import DataFolder
from thalweg.server.storage.interface import Storage
from thalweg.server.storage.journal import Journal
from thalweg.server.storage.tables import database as database_module
from thalweg.server.storage.tables import schema
from thalweg.server.storage.thinning import Bounds, joined
from thalweg.server.telemetry import steps_end
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

SMALL = Bounds(
    recent_bytes=2000,
    losses=400,
    parcels=20,
    parcel_losses=64,
    notices=10,
    routine=5,
    epochs=30,
    step_events=20,
    step_losses=300,
)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[DataFolder]:
    storage = DataFolder(tmp_path, SMALL)
    storage.insert_job(job_pb2.Job(id="a"), "", "")
    yield storage
    storage.close()


def taken(first: int, losses: list[float], sequence: int = 0) -> pb.Event:
    progress = job_pb2.Progress(step=first + len(losses), total_steps=100_000, total_epochs=10)
    return pb.Event(sequence=sequence, steps_taken=pb.StepsTaken(first_step=first, losses=losses, progress=progress))


def long_job(losses: list[float], *, seed: int = 0, others: bool = True) -> list[pb.Event]:
    """What a job tells that took some steps: of a few at a time, with all else in between."""
    random, events, step = np.random.default_rng(seed), list[pb.Event](), 0
    while step < len(losses):
        count = int(random.integers(1, 12))
        events.append(taken(step, losses[step : step + count]))
        step += count
        if others:
            events += [
                pb.Event(epoch_ended=pb.EpochEnded(epoch=len(events) // 5 + 1, step=step, train_loss=0.5)),
                pb.Event(checkpoint_written=pb.CheckpointWritten(version=step)),
                pb.Event(workers_changed=pb.WorkersChanged(workers=1)),
                pb.Event(notice=pb.Notice(text=str(step))),
            ]
    for sequence, event in enumerate(events, 1):
        event.sequence = sequence
    return events


def losses_of(steps: int) -> list[float]:
    random = np.random.default_rng(1)
    return [2 + math.sin(step / 50) + float(random.normal()) / 10 for step in range(steps)]


def record(storage: Storage, events: list[pb.Event], job: str = "a") -> None:
    storage.record([(job, event) for event in events])


def thin(storage: Storage) -> int:
    return sum(1 for _ in itertools.takewhile(bool, iter(storage.thin, None)))


def kept(storage: Storage, job: str = "a") -> list[pb.Event]:
    return storage.events(job, 0, 1 << 30)


def of(events: list[pb.Event], kind: str) -> list[pb.Event]:
    return [event for event in events if event.WhichOneof("kind") == kind]


def hold_all_steps(events: list[pb.Event], losses: list[float]) -> None:
    """Each step is told once, and what is told of it is the mean of those around."""
    step = 0
    for event in of(events, "steps_taken"):
        steps = event.steps_taken
        assert steps.first_step == step
        step = steps_end(steps)
        starts, counts = strides.spans(steps.first_step, step - steps.first_step, steps.stride or 1)
        means = [np.mean(losses[start : start + count]) for start, count in zip(starts, counts, strict=True)]
        np.testing.assert_allclose(steps.losses, means, rtol=1e-12)
    assert step == len(losses)


@pytest.mark.parametrize(
    ("first", "steps", "stride"), [(0, 8, 1), (0, 8, 4), (3, 8, 4), (3, 1, 4), (5, 2, 4), (4, 5, 4), (7, 0, 4)]
)
def test_each_loss_stands_for_the_steps_between_multiples_of_the_stride(first: int, steps: int, stride: int) -> None:
    expected = [list(group) for _, group in itertools.groupby(range(first, first + steps), lambda step: step // stride)]
    starts, counts = strides.spans(first, steps, stride)
    assert [list(range(start, start + count)) for start, count in zip(starts, counts, strict=True)] == expected


def test_joined_losses_are_the_means_weighted_by_steps() -> None:
    losses = losses_of(61)
    events = [taken(3, losses[3:10]), taken(10, losses[10:11]), taken(11, losses[11:40]), taken(40, losses[40:])]
    pairs = [joined(events[:2], 2), joined(events[2:], 4)]
    whole = joined(pairs, 8).steps_taken
    assert (whole.first_step, whole.steps, whole.stride, whole.progress.step) == (3, 58, 8, 61)
    np.testing.assert_allclose(whole.losses, [np.mean(losses[max(3, start) : start + 8]) for start in range(0, 61, 8)])
    # At a stride of 1 the losses are the same, bit for bit.
    assert list(joined(events, 1).steps_taken.losses) == losses[3:]


@pytest.mark.parametrize("steps", [3000, 12_000])
def test_the_record_of_a_job_has_a_bound_and_tells_of_every_step(storage: DataFolder, steps: int) -> None:
    losses = losses_of(steps)
    events = long_job(losses)
    for start in range(0, len(events), 500):
        record(storage, events[start : start + 500])
        assert storage.told("a")[0] == max(steps_end(event.steps_taken) for event in events[: start + 500])
        thin(storage)
    left = kept(storage)
    size = sum(event.ByteSize() for event in left)
    assert size < 2 * SMALL.recent_bytes + 8 * SMALL.losses + 200 * (2 * SMALL.parcels + SMALL.epochs) + 6000
    assert len(of(left, "steps_taken")) < 150
    assert sum(len(event.steps_taken.losses) for event in left) < 800
    assert 10 <= len(of(left, "notice")) < 60
    assert 5 <= len(of(left, "checkpoint_written")) < 60
    # The latest of all are there, in order.
    assert left[-50:] == sorted(left, key=lambda event: event.sequence)[-50:]
    assert left[-1] == events[-1]
    ends = [event.epoch_ended.epoch for event in of(left, "epoch_ended")]
    assert ends == sorted(set(ends))
    assert len(ends) < 3 * SMALL.epochs
    hold_all_steps(left, losses)
    assert storage.told("a") == (steps, max(event.epoch_ended.epoch for event in events))
    assert storage.last_sequence("a") == len(events)
    assert not storage.thin()


def test_nothing_of_a_short_job_changes(storage: DataFolder) -> None:
    events = long_job(losses_of(60))
    record(storage, events)
    assert not storage.thin()
    assert kept(storage) == events


def test_a_record_with_more_than_can_be_merged_comes_to_rest(storage: DataFolder) -> None:
    # As of a job of the first releases that began again and again: each step is told many times.
    for start in range(0, 4000, 100):
        record(storage, [taken(0, [1.0] * 30, start + each + 1) for each in range(100)])
        thin(storage)
    assert not storage.thin()
    assert len(kept(storage)) == 4000


@pytest.mark.parametrize("after", [0, 1, 77, 500, 1400, 1499, 1500, 1501])
def test_a_client_that_goes_on_after_any_number_misses_no_step(storage: DataFolder, after: int) -> None:
    losses = losses_of(10_000)
    events = long_job(losses)[:1500]
    record(storage, events)
    seen = of(events[:after], "steps_taken")
    thin(storage)
    assert storage.events("a", 1, 1)[0].sequence != 2
    following = of(storage.events("a", after, 1 << 30), "steps_taken")
    told = [step for event in seen + following for step in range(event.steps_taken.first_step, steps_end(event.steps_taken))]
    assert set(told) == set(range(steps_end(of(events, "steps_taken")[-1].steps_taken)))
    assert all(event.sequence > after for event in following)
    # The curve takes what comes again once.
    known = [each for event in seen + following if (each := records.event(event))]
    steps = course(known).steps[0]
    assert (np.diff(steps) > 0).all()


def test_a_curve_from_merged_events_is_the_mean_of_the_original(storage: DataFolder) -> None:
    smooth = 2 + np.sin(np.arange(30_000) / 3000)
    events = long_job((smooth + np.random.default_rng(2).normal(size=30_000) / 10).tolist(), others=False)
    original = course([each for event in events if (each := records.event(event))])
    record(storage, events)
    thin(storage)
    thinned = course([each for event in kept(storage) if (each := records.event(event))])
    assert thinned.steps.shape[1] < 1000
    # The newest events have the loss of each step.
    merged = slice(0, -300)
    there = np.interp(thinned.steps[0][merged], original.steps[0], smooth)
    np.testing.assert_allclose(thinned.steps[1][merged], there, atol=0.06)
    assert thinned.steps[0][-1] == original.steps[0][-1]


def test_a_step_that_fails_in_the_midst_changes_nothing(storage: DataFolder) -> None:
    losses = losses_of(10_000)
    record(storage, long_job(losses))
    for _ in range(10):
        storage.thin()
    for kind in ("UPDATE ON events", "UPDATE ON tallies"):
        before = kept(storage)
        storage._database.execute(f"CREATE TRIGGER breaks BEFORE {kind} BEGIN SELECT RAISE(ABORT, 'broken'); END")
        with pytest.raises(sqlite3.DatabaseError, match="broken"):
            storage.thin()
        assert kept(storage) == before
        storage._database.execute("DROP TRIGGER breaks")
    assert thin(storage)
    hold_all_steps(kept(storage), losses)


def test_an_event_that_cannot_be_read_leaves_its_job_as_it_is(storage: DataFolder, caplog: pytest.LogCaptureFixture) -> None:
    storage.insert_job(job_pb2.Job(id="b"), "", "")
    losses = losses_of(3000)
    for job in ("a", "b"):
        record(storage, long_job(losses), job)
    storage._database.execute("UPDATE events SET event = x'ff' WHERE job_id = 'a' AND sequence = 1")
    thin(storage)
    assert "job a: older events cannot be merged" in caplog.text
    hold_all_steps(kept(storage, "b"), losses)
    (count,) = storage._database.execute("SELECT count(*) FROM events WHERE job_id = 'a'").fetchone()
    assert count == len(long_job(losses))


def test_the_folder_of_an_earlier_release_is_merged_in_steps_and_shrinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = losses_of(20_000)
    events = long_job(losses)
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite", isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("BEGIN")
        for step in schema._STEPS[:2]:
            step(database)
        database.execute("PRAGMA user_version = 2")
        database.execute("INSERT INTO jobs (id, job) VALUES ('a', ?)", (job_pb2.Job(id="a").SerializeToString(),))
        rows = [("a", event.sequence, event.SerializeToString()) for event in events]
        database.executemany("INSERT INTO events VALUES (?, ?, ?)", rows)
        database.execute("COMMIT")
    size = (tmp_path / "jobs.sqlite").stat().st_size
    # As large in use as is not written anew at once.
    monkeypatch.setattr(database_module, "_REWRITTEN_PAGES", size // 4096 // 4)
    with closing(DataFolder(tmp_path, SMALL)) as storage:
        assert kept(storage) == events
        assert not storage.shrink()
        expected = (20_000, max(event.epoch_ended.epoch for event in events))
        assert storage.told("a") == expected
        assert thin(storage) > 100
        assert storage.told("a") == expected
        hold_all_steps(kept(storage), losses)
        while storage.shrink():
            pass
    assert (tmp_path / "jobs.sqlite").stat().st_size < size / 4


def test_a_running_journal_thins_and_those_who_watch_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_THIN_SECONDS", 0.01)
    losses = losses_of(5000)

    async def test() -> None:
        storage = DataFolder(tmp_path, SMALL)
        journal = Journal(storage, lambda *_: None)
        journal.start()
        await journal.run(storage.insert_job, job_pb2.Job(id="a"), "", "")
        await journal.open("a")
        live: list[pb.Event] = []

        async def watch() -> None:
            async for event in journal.watch("a", 0):
                live.append(event)  # noqa: PERF401 - it is looked at meanwhile

        watching = asyncio.create_task(watch())
        for event in long_job(losses):
            journal.record("a", event)
            if event.sequence % 100 == 0:
                while len(live) < event.sequence:
                    await asyncio.sleep(0.001)
        ended = job_pb2.Job(id="a", state=job_pb2.JOB_STATE_SUCCEEDED)
        journal.record("a", pb.Event(state_changed=pb.StateChanged(job=ended)))
        await watching
        assert len(live) == live[-1].sequence
        hold_all_steps(live, losses)
        while await journal.run(storage.thin):
            pass
        late = [event async for event in journal.watch("a", 0)]
        assert len(late) < len(live) / 2
        assert late[-1] == live[-1]
        hold_all_steps(late, losses)
        await journal.stop()

    asyncio.run(asyncio.wait_for(test(), 60))
