"""The journal: events are numbered without a gap, durable before they are reported, and not lost when the disk is full."""

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from thalweg.server.storage import journal as journal_module
from thalweg.server.storage import room as room_module
from thalweg.server.storage import watches as watches_module
from thalweg.server.storage.folder import DataFolder
from thalweg.server.storage.interface import Storage
from thalweg.server.storage.journal import Journal
from thalweg.v1 import job_pb2, training_service_pb2


class FailingStorage(DataFolder):
    """A storage that records nothing while `failures` are left. `rejected` are the jobs of events that it will never record."""

    failures = 0
    attempts = 0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.rejected: list[tuple[str, str]] = []

    def reject(self, job_id: str, problem: str) -> None:
        self.rejected.append((job_id, problem))

    def record(self, events: Iterable[tuple[str, training_service_pb2.Event]]) -> None:
        self.attempts += 1
        if self.failures:
            self.failures -= 1
            raise sqlite3.OperationalError("database or disk is full")
        super().record(events)


@asynccontextmanager
async def running_journal(
    folder: Path, *jobs: str, kind: type[FailingStorage] = FailingStorage
) -> AsyncIterator[tuple[Journal, FailingStorage]]:
    storage = kind(folder)
    journal = Journal(storage, storage.reject)
    journal.start()
    for job in jobs:
        await journal.run(storage.insert_job, job_pb2.Job(id=job), "", "")
        await journal.open(job)
    try:
        yield journal, storage
    finally:
        storage.failures = 0
        await journal.stop()


def note(journal: Journal, *texts: str, job: str = "a") -> None:
    for text in texts:
        journal.record(job, training_service_pb2.Event(notice=training_service_pb2.Notice(text=text)))


def end(journal: Journal, job: str = "a") -> None:
    ended = job_pb2.Job(id=job, state=job_pb2.JOB_STATE_SUCCEEDED)
    journal.record(job, training_service_pb2.Event(state_changed=training_service_pb2.StateChanged(job=ended)))


async def told(journal: Journal, after: int = 0, job: str = "a", until_now: bool = False) -> list[int]:
    return [event.sequence async for event in journal.watch(job, after, until_now)]


def run(test: Coroutine[Any, Any, None]) -> None:
    async def within() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(within())


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_module, "RETRY_SECONDS", 0.001)


def test_events_are_numbered_from_1_without_a_gap(tmp_path: Path) -> None:
    async def test() -> None:
        async with running_journal(tmp_path, "a", "b") as (journal, storage):
            for round_ in range(20):
                note(journal, *"xyz")
                note(journal, "other", job="b")
                if round_ % 3:
                    await journal.settled()
            await journal.settled()
            assert [event.sequence for event in storage.events("a", 0, 100)] == list(range(1, 61))
            assert [event.sequence for event in storage.events("b", 0, 100)] == list(range(1, 21))

    run(test())


def test_who_watches_a_job_that_has_ended_is_not_kept_waiting_by_an_event_after_its_end(tmp_path: Path) -> None:
    async def test() -> None:
        async with running_journal(tmp_path, "a") as (journal, _):
            end(journal)
            await journal.settled()
            watching = journal.watch("a", 0)
            assert (await anext(watching)).sequence == 1
            note(journal, "its result was removed")
            await journal.settled()
            assert [event.sequence async for event in watching] == [2]

    run(test())


def test_a_job_that_is_opened_again_goes_on_counting(tmp_path: Path) -> None:
    async def test() -> None:
        async with running_journal(tmp_path, "a") as (journal, storage):
            note(journal, "one", "two")
            await journal.settled()
            journal.close("a")
            await journal.open("a")
            note(journal, "three")
            await journal.settled()
            assert [(event.sequence, event.notice.text) for event in storage.events("a", 1, 9)] == [(2, "two"), (3, "three")]

    run(test())


@pytest.mark.parametrize("after", [0, 1, 299, 300, 301, 302])
def test_watching_goes_on_behind_any_number(tmp_path: Path, after: int) -> None:
    async def test() -> None:
        async with running_journal(tmp_path, "a") as (journal, _):
            note(journal, *map(str, range(300)))
            watching = asyncio.create_task(told(journal, after))
            await journal.settled()
            end(journal)
            assert await watching == list(range(after + 1, 302))
            assert await told(journal, after) == list(range(after + 1, 302))

    run(test())


def test_watching_goes_on_behind_an_end_that_was_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches_module, "_PAGE", 2)

    async def test() -> None:
        async with running_journal(tmp_path, "a") as (journal, _):
            note(journal, "one")
            end(journal)
            resumed = job_pb2.Job(id="a", state=job_pb2.JOB_STATE_QUEUED)
            journal.record("a", training_service_pb2.Event(state_changed=training_service_pb2.StateChanged(job=resumed)))
            await journal.settled()
            watching = asyncio.create_task(told(journal))
            note(journal, "two")
            end(journal)
            assert await watching == [1, 2, 3, 4, 5]

    run(test())


def test_whoever_watches_a_job_that_does_not_exist_is_told_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with running_journal(tmp_path) as (journal, _):
            assert await told(journal) == []

    run(test())


def test_whoever_watches_hears_of_no_other_job(tmp_path: Path) -> None:
    async def test() -> None:
        async with running_journal(tmp_path, "a", "b") as (journal, _):
            watching = asyncio.create_task(told(journal))
            note(journal, "other", job="b")
            await journal.settled()
            end(journal, "b")
            note(journal, "one")
            end(journal)
            assert await watching == [1, 2]

    run(test())


def test_an_event_is_durable_before_it_is_told(tmp_path: Path) -> None:
    async def test() -> None:
        async with running_journal(tmp_path, "a") as (journal, storage):
            heard: deque[training_service_pb2.Event] = deque()

            async def listen() -> None:
                async for event in journal.watch("a", 0):
                    heard.append(event)

            listening = asyncio.create_task(listen())
            storage.failures = 10**9
            note(journal, "one", "two")
            settled = asyncio.create_task(journal.settled())
            while storage.attempts < 5:
                await asyncio.sleep(0)
            note(journal, "three")
            assert not heard
            assert not settled.done()
            assert storage.events("a", 0, 9) == []

            storage.failures = 0
            end(journal)
            await listening
            await settled
            assert [event.notice.text for event in heard] == ["one", "two", "three", ""]
            assert [event.sequence for event in heard] == [1, 2, 3, 4]
            assert list(heard) == storage.events("a", 0, 9)

    run(test())


def test_settled_waits_for_nothing_where_nothing_was_recorded(tmp_path: Path) -> None:
    async def test() -> None:
        async with running_journal(tmp_path, "a") as (journal, _):
            await journal.settled()

    run(test())


def test_stopping_writes_what_was_recorded(tmp_path: Path) -> None:
    async def test() -> None:
        async with running_journal(tmp_path, "a") as (journal, _):
            note(journal, "one", "two")

    run(test())
    again = DataFolder(tmp_path)
    assert again.last_sequence("a") == 2
    again.close()


def test_stopping_ends_though_the_disk_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "DISK_SECONDS", 0.05)

    async def test() -> None:
        storage = FailingStorage(tmp_path)
        journal = Journal(storage, storage.reject)
        journal.start()
        await journal.run(storage.insert_job, job_pb2.Job(id="a"), "", "")
        await journal.open("a")
        storage.failures = 10**9
        note(journal, "one")
        await journal.stop()

    run(test())


def poison(storage: Storage, job: str, sequence: int) -> None:
    """Lets something else have the number of an event to come, so that the event breaks a constraint."""
    storage.record([(job, training_service_pb2.Event(sequence=sequence, notice=training_service_pb2.Notice(text="poison")))])


def test_an_event_that_breaks_a_constraint_stops_its_own_job_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async with running_journal(tmp_path, "a", "b") as (journal, storage):
            note(journal, "one")
            await journal.settled()
            await journal.run(poison, storage, "a", 2)
            note(journal, "two", "three")
            note(journal, "innocent", job="b")
            await journal.settled()
            assert [job for job, _ in storage.rejected] == ["a"]
            assert "UNIQUE constraint failed" in storage.rejected[0][1]
            assert [event.notice.text for event in storage.events("b", 0, 9)] == ["innocent"]
            # What is recorded afterwards has the next numbers.
            note(journal, "afterwards")
            note(journal, "innocent", job="b")
            await journal.settled()
            assert [(event.sequence, event.notice.text) for event in storage.events("a", 1, 9)] == [
                (2, "poison"),
                (3, "afterwards"),
            ]
            assert [event.sequence for event in storage.events("b", 0, 9)] == [1, 2]
            assert len(storage.rejected) == 1

    run(test())


def test_what_is_recorded_while_an_event_is_rejected_has_the_next_numbers(tmp_path: Path) -> None:
    async def test() -> None:
        async with running_journal(tmp_path, "a") as (journal, storage):
            await journal.run(poison, storage, "a", 1)
            note(journal, "rejected")
            counted = asyncio.create_task(journal.settled())
            while not storage.rejected:
                await asyncio.sleep(0)
            note(journal, "while it is counted")
            await counted
            await journal.settled()
            texts = [(event.sequence, event.notice.text) for event in storage.events("a", 0, 9)]
            assert texts == [(1, "poison"), (2, "while it is counted")]

    run(test())


class GatedStorage(FailingStorage):
    """A storage that records what a `gate` lets through, when it is open."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.gate = threading.Event()
        self.waiting = threading.Event()

    def record(self, events: Iterable[tuple[str, training_service_pb2.Event]]) -> None:
        self.waiting.set()
        self.gate.wait()
        super().record(events)


def test_dropped_events_of_one_job_do_not_make_those_of_another_durable(tmp_path: Path) -> None:
    async def test() -> None:
        async with running_journal(tmp_path, "a", "b", kind=GatedStorage) as (journal, storage):
            assert isinstance(storage, GatedStorage)
            storage.gate.set()
            await journal.run(poison, storage, "a", 1)
            storage.gate.clear()
            storage.waiting.clear()
            note(journal, "rejected")
            while not storage.waiting.is_set():
                await asyncio.sleep(0)
            note(journal, "waits", job="b")
            settled = asyncio.create_task(journal.settled())
            await asyncio.sleep(0)
            # Recorded after the event that is waited for, and dropped before it is written.
            note(journal, "dropped", "dropped", "dropped")
            storage.gate.set()
            await settled
            assert [event.notice.text for event in storage.events("b", 0, 9)] == ["waits"]
            assert [job for job, _ in storage.rejected] == ["a"]

    run(test())


def test_an_open_journal_is_not_counted_anew(tmp_path: Path) -> None:
    async def test() -> None:
        async with running_journal(tmp_path, "a") as (journal, storage):
            note(journal, "one")
            await journal.open("a")
            note(journal, "two")
            await journal.settled()
            assert [event.sequence for event in storage.events("a", 0, 9)] == [1, 2]
            assert not storage.rejected

    run(test())


class ReadsStorage(FailingStorage):
    """A storage that counts how often somebody reads events or a job."""

    reads = 0

    def events(self, job_id: str, after: int, limit: int) -> list[training_service_pb2.Event]:
        self.reads += 1
        return super().events(job_id, after, limit)


def test_watchers_cost_the_disk_nothing_while_they_wait(tmp_path: Path) -> None:
    async def test() -> None:
        async with running_journal(tmp_path, "a", "b", kind=ReadsStorage) as (journal, storage):
            assert isinstance(storage, ReadsStorage)
            note(journal, "one")
            await journal.settled()
            watching = [asyncio.create_task(told(journal)) for _ in range(50)]
            idle = [asyncio.create_task(told(journal, job="b")) for _ in range(50)]
            while storage.reads < 3:
                await asyncio.sleep(0.001)
            for number in range(100):
                note(journal, str(number))
                await journal.settled()
            end(journal)
            assert await asyncio.gather(*watching) == [list(range(1, 103))] * 50
            end(journal, "b")
            assert await asyncio.gather(*idle) == [[1]] * 50
            # Each began with what was there, and found that there was no more; those that began together read once.
            assert storage.reads <= 10

    run(test())


def test_a_watcher_that_falls_behind_misses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches_module, "_RECENT", 3)

    async def test() -> None:
        async with running_journal(tmp_path, "a") as (journal, _):
            heard: list[int] = []
            slow = journal.watch("a", 0)
            note(journal, "one")
            heard.append((await anext(slow)).sequence)
            for _ in range(20):
                note(journal, "more")
                await journal.settled()
            end(journal)
            heard += [event.sequence async for event in slow]
            assert heard == list(range(1, 23))

    run(test())


@pytest.mark.parametrize("after", [0, 1, 299, 300, 301, 1 << 62])
def test_a_watch_until_now_ends_with_what_is_recorded(tmp_path: Path, after: int) -> None:
    async def test() -> None:
        async with running_journal(tmp_path, "a") as (journal, _):
            assert await told(journal, until_now=True) == []
            note(journal, *map(str, range(300)))
            await journal.settled()
            watching = asyncio.create_task(told(journal, after))
            assert await told(journal, after, until_now=True) == list(range(after + 1, 301))
            note(journal, "more")
            end(journal)
            await watching

    run(test())
