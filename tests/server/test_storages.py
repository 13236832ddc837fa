"""What a server relies on of its storage, held by each: the data folder, and its twin in memory."""

import asyncio
import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.server.backends import Backend, FolderBackend, MemoryBackend
from tests.server.test_checkpoints import make, same
from tests.server.test_journal import end, note, told
from tests.server.test_storage import header, insert, insert_using, notice, put_upload, state
from tests.server.test_thinning import SMALL, hold_all_steps, kept, long_job, losses_of, record, thin
from thalweg.server.deciding.allotment.closures import Closed, Closure
from thalweg.server.settings import KEPT_CHECKPOINTS
from thalweg.server.storage import room
from thalweg.server.storage.interface import Storage
from thalweg.server.storage.journal import Journal
from thalweg.server.storage.room import is_full, lacks_room
from thalweg.v1 import job_pb2, training_service_pb2

LARGE = "x" * 100_000


@pytest.fixture(params=["folder", "memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return FolderBackend(tmp_path, SMALL) if request.param == "folder" else MemoryBackend(SMALL)


@pytest.fixture
def storage(backend: Backend) -> Storage:
    return backend.open()


def again(backend: Backend) -> Storage:
    """The storage after the server died."""
    backend.crash()
    return backend.open()


# Jobs on record.


def test_ids_are_made_from_the_name_and_do_not_come_back(storage: Storage) -> None:
    assert [insert(storage, name="digits"), insert(storage), insert(storage, name="digits")] == ["digits-1", "job-2", "digits-3"]
    insert(storage, "job-5")
    assert insert(storage) == "job-6"
    storage.delete_job("job-6")
    assert insert(storage) == "job-7"


def test_a_made_id_passes_over_a_chosen_one(storage: Storage) -> None:
    insert(storage, "job-2")
    assert insert(storage) == "job-3"


def test_a_taken_id_is_refused(storage: Storage) -> None:
    assert insert(storage, "a") == "a"
    assert insert(storage, "a") is None
    assert len(storage.jobs(10)) == 1


def test_request_id_makes_an_insertion_safe_to_repeat(backend: Backend, storage: Storage) -> None:
    first = insert(storage, request_id="r")
    assert insert(storage, "another", request_id="r") == first
    assert insert(storage, request_id="s") != first
    assert insert(storage, request_id="") != insert(storage, request_id="")
    assert storage.job_of_request("") is None
    later = again(backend)
    assert insert(later, request_id="r") == first
    assert len(later.jobs(10)) == 4


def test_jobs_are_paged_the_newest_first(storage: Storage) -> None:
    for number in range(5):
        insert(storage, f"job{number}")
    first = storage.jobs(2)
    assert [job.id for _, job in first] == ["job4", "job3"]
    assert [job.id for _, job in storage.jobs(10, first[-1][0])] == ["job2", "job1", "job0"]
    assert storage.jobs(10, 1) == []


def test_results_are_kept_or_removed_and_a_resumed_job_has_one_again(backend: Backend, storage: Storage) -> None:
    for job_id in "abc":
        insert(storage, job_id)
    storage.save_parameters("b", header("float32"), np.zeros(8, np.float32))
    storage.keep_job("a", True)
    assert [job.id for _, job in storage.results(10)] == ["c", "b"]
    assert [job.id for _, job in storage.results(1)] == ["c"]
    storage.note_result_removed("b", 1000.25)
    assert storage.remove_result("b") > 32
    assert storage.remove_result("b") == 0
    storage = again(backend)
    found = storage.job("b")
    assert found
    assert found.result_removed_time.ToMilliseconds() == 1_000_250
    assert storage.parameters("b") is None
    assert [(job.id, job.kept) for _, job in storage.jobs(10)] == [("c", False), ("b", False), ("a", True)]
    assert [job.id for _, job in storage.results(10)] == ["c"]
    storage.forget_deaths("b")
    storage.keep_job("a", False)
    assert [job.id for _, job in storage.results(10)] == ["c", "b", "a"]


def test_a_job_that_has_succeeded_and_whose_result_is_gone_uses_no_uploads(backend: Backend, storage: Storage) -> None:
    sha256 = put_upload(storage, b"content")
    for job_id, ended in (("a", job_pb2.JOB_STATE_SUCCEEDED), ("b", job_pb2.JOB_STATE_CANCELLED)):
        insert_using(storage, job_id, sha256)
        storage.record([(job_id, state(1, job_pb2.Job(id=job_id, state=ended)))])
        storage.note_result_removed(job_id, 1000.0)
    # The other one can be resumed.
    storage.delete_job("a")
    assert storage.uploads.exists(sha256)
    storage.delete_job("b")
    storage.empty_bin()
    assert not storage.uploads.exists(sha256)


def test_deaths_are_counted_until_there_is_progress_or_a_clean_stop(backend: Backend, storage: Storage) -> None:
    for job_id in "abc":
        insert(storage, job_id)
    assert storage.count_deaths(["a", "b"]) == {"a": 1, "b": 1}
    storage = again(backend)
    assert storage.count_deaths(["a"]) == {"a": 2, "b": 1}
    storage.note_progress("a")
    storage.forget_deaths("b")
    storage = again(backend)
    assert storage.count_deaths(["a", "b", "c"]) == {"a": 0, "b": 1, "c": 1}
    storage.stop_cleanly()
    storage = again(backend)
    assert storage.count_deaths(["a", "b", "c"]) == {}
    assert again(backend).count_deaths(["a"]) == {"a": 1}


# Events on record.


def test_what_is_closed_outlives_the_server(backend: Backend, storage: Storage) -> None:
    assert storage.cordons() == []
    node, fleet = Closed("rack", "gpu-1", Closure.CORDONED, 5.5), Closed("rack", "", Closure.CORDONED, 7.25)
    storage.put_cordon(node)
    storage.put_cordon(fleet)
    storage.put_cordon(drained := node._replace(closure=Closure.DRAINED))
    storage = again(backend)
    assert storage.cordons() == [fleet, drained]
    storage.remove_cordon("rack", "")
    storage.remove_cordon("rack", "unknown")
    assert again(backend).cordons() == [drained]


def test_events_are_given_after_a_number_and_in_order(storage: Storage) -> None:
    for job_id in ("a", "b"):
        insert(storage, job_id)
    storage.record([("a", notice(1)), ("b", notice(1, "b")), ("a", notice(2)), ("a", notice(3))])
    assert [event.sequence for event in storage.events("a", 0, 10)] == [1, 2, 3]
    assert [event.sequence for event in storage.events("a", 1, 1)] == [2]
    assert [event.notice.text for event in storage.events("b", 0, 10)] == ["b"]
    assert (storage.last_sequence("a"), storage.last_sequence("b"), storage.last_sequence("c")) == (3, 1, 0)
    assert storage.events("a", (1 << 64) - 1, 10) == storage.events("c", 0, 10) == []


def test_a_change_of_state_becomes_the_jobs_record(backend: Backend, storage: Storage) -> None:
    insert(storage, "a")
    storage.record([("a", state(1, job_pb2.Job(id="a", error="e"))), ("a", notice(2))])
    assert storage.job("a") == job_pb2.Job(id="a", error="e")
    later = again(backend)
    assert later.job("a") == job_pb2.Job(id="a", error="e")
    assert later.last_sequence("a") == 2


def test_what_is_given_is_a_copy(storage: Storage) -> None:
    insert(storage, "a")
    event = notice(1, "as recorded")
    storage.record([("a", event)])
    event.notice.text = "changed since"
    storage.events("a", 0, 1)[0].notice.text = "changed since"
    assert storage.events("a", 0, 1)[0].notice.text == "as recorded"
    found = storage.job("a")
    assert found
    found.error = "changed since"
    assert storage.job("a") == job_pb2.Job(id="a")


@pytest.mark.parametrize("wrong", [("a", 1), ("a", 2), ("nobody", 1)])
def test_events_are_recorded_all_or_none(backend: Backend, storage: Storage, wrong: tuple[str, int]) -> None:
    insert(storage, "a")
    insert(storage, "b")
    storage.record([("a", notice(1))])
    changed = state(3, job_pb2.Job(id="a", error="e"))
    with pytest.raises(sqlite3.IntegrityError, match="constraint failed") as told_:
        storage.record([("b", notice(1)), ("a", notice(2)), ("a", changed), (wrong[0], notice(wrong[1]))])
    # Trying again would not help, and so the job fails.
    assert not lacks_room(told_.value)
    for found in (storage, again(backend)):
        assert (found.last_sequence("a"), found.last_sequence("b")) == (1, 0)
        assert found.job("a") == job_pb2.Job(id="a")


def test_what_events_tell_of_is_known(backend: Backend, storage: Storage) -> None:
    insert(storage, "a")
    assert storage.told("a") == storage.told("nobody") == (0, 0)
    events = long_job(losses_of(100))
    record(storage, events)
    epochs = max(event.epoch_ended.epoch for event in events)
    assert storage.told("a") == again(backend).told("a") == (100, epochs)


def test_older_events_are_merged_within_bounds(backend: Backend, storage: Storage) -> None:
    insert(storage, "a")
    insert(storage, "short")
    losses = losses_of(6000)
    events = long_job(losses)
    few = long_job(losses_of(20))
    record(storage, few, "short")
    for start in range(0, len(events), 500):
        record(storage, events[start : start + 500])
        thin(storage)
    for found in (storage, again(backend)):
        left = kept(found)
        hold_all_steps(left, losses)
        assert sum(event.ByteSize() for event in left) < len(events) * 20
        assert left[-50:] == sorted(left, key=lambda event: event.sequence)[-50:]
        assert left[-1] == events[-1]
        assert not found.thin()
        assert found.last_sequence("a") == len(events)
        assert kept(found, "short") == few


def test_both_merge_alike(tmp_path: Path) -> None:
    left: list[list[training_service_pb2.Event]] = []
    for backend in (FolderBackend(tmp_path, SMALL), MemoryBackend(SMALL)):
        storage = backend.open()
        insert(storage, "a")
        record(storage, long_job(losses_of(5000)))
        thin(storage)
        left.append(kept(storage))
    assert left[0] == left[1]


# Files of jobs.


def test_results_come_back_as_they_were(backend: Backend, storage: Storage) -> None:
    insert(storage, "a")
    assert [storage.parameters("a"), storage.trajectory("a"), storage.export_parameters("a")] == [None] * 3
    slab = np.random.default_rng(0).normal(size=8).astype("float32")
    slab[0] = -0.0
    described = training_service_pb2.TrajectoryHeader(layout=header("float32").layout, versions=[0, 5])
    storage.save_parameters("a", header("float32"), slab)
    storage.save_trajectory("a", described, [slab, slab + 1])
    for found in (storage, again(backend)):
        parameters, trajectory = found.parameters("a"), found.trajectory("a")
        assert parameters
        assert parameters.header == header("float32")
        assert b"".join(parameters.pieces()) == slab.tobytes()
        assert trajectory
        assert trajectory.header == described
        np.testing.assert_array_equal(trajectory.arrays[0], [slab, slab + 1])


def test_checkpoints_are_kept_thinned_and_read_back(backend: Backend, storage: Storage) -> None:
    insert(storage, "a")
    assert storage.checkpoints("a").latest() == (None, [])
    for version in (1, 2, 9, 10, 11):
        assert storage.checkpoints("a").write(make(version))
    storage = again(backend)
    found, problems = storage.checkpoints("a").latest()
    assert same(found, make(11))
    assert not problems
    storage.checkpoints("a").remove()
    assert storage.checkpoints("a").latest() == (None, [])


def test_a_damaged_checkpoint_is_passed_over(backend: Backend, storage: Storage) -> None:
    insert(storage, "a")
    for version in range(1, KEPT_CHECKPOINTS + 2):
        storage.checkpoints("a").write(make(version))
    backend.damage(storage, "a")
    found, problems = again(backend).checkpoints("a").latest()
    assert same(found, make(KEPT_CHECKPOINTS))
    assert len(problems) == 1


# Uploads, and what jobs start from.


def test_an_upload_is_there_when_it_is_verified(backend: Backend, storage: Storage) -> None:
    content = b"content"
    sha256 = hashlib.sha256(content).hexdigest()
    storage.uploads.receive("one", content[:-1])
    assert not storage.uploads.finish("one", sha256)
    storage.uploads.receive("one", content[-1:])
    assert not storage.uploads.exists(sha256)
    assert storage.uploads.read(sha256, 0, 9) is None
    storage.uploads.receive("two", b"never whole")
    assert storage.uploads.finish("one", sha256)
    storage = again(backend)
    assert storage.uploads.exists(sha256)
    assert storage.uploads.whole(sha256)
    assert [storage.uploads.read(sha256, start, 4) for start in (0, 4, 7)] == [b"cont", b"ent", b""]
    backend.damage_upload(sha256)
    assert not storage.uploads.whole(sha256)
    put_upload(storage, content)
    assert storage.uploads.whole(sha256)
    storage.uploads.discard("three")


def test_old_uploads_that_no_job_uses_are_removed(backend: Backend, storage: Storage) -> None:
    used, new, old, asked = (put_upload(storage, content) for content in (b"used", b"new", b"old", b"asked for"))
    insert_using(storage, "a", used)
    for sha256 in (used, old, asked):
        backend.grow_old(sha256)
    assert storage.uploads.whole(asked)
    storage = again(backend)
    assert [storage.uploads.exists(sha256) for sha256 in (used, new, old, asked)] == [True, True, False, True]
    backend.grow_old(new)
    storage.remove_unused_uploads()
    assert not storage.uploads.exists(new)


def test_what_was_received_of_an_upload_outlives_a_server_for_a_day(backend: Backend, storage: Storage) -> None:
    content, other = b"content", hashlib.sha256(b"other").hexdigest()
    sha256 = hashlib.sha256(content).hexdigest()
    storage.uploads.receive(sha256, content[:-1])
    storage.uploads.receive(other, b"oth")
    storage.uploads.receive("without a file's name", content[:-1])
    storage = again(backend)
    names = sha256, other, "without a file's name", "0" * 64
    assert [storage.uploads.received(name) for name in names] == [6, 3, 0, 0]
    assert not storage.uploads.exists(sha256)
    backend.grow_old(other)
    storage.remove_unused_uploads()
    assert [storage.uploads.received(name) for name in names] == [6, 0, 0, 0]
    storage.uploads.receive(sha256, content[-1:])
    assert storage.uploads.finish(sha256, sha256)
    assert storage.uploads.received(sha256) == 0
    assert storage.uploads.whole(sha256)


def test_parameters_are_exported_and_started_from(backend: Backend, storage: Storage) -> None:
    for job_id in ("a", "b"):
        insert(storage, job_id)
        storage.save_parameters(job_id, header("float32"), np.arange(8, dtype=np.float32))
    sha256 = storage.export_parameters("a")
    assert sha256
    assert storage.export_parameters("b") == sha256
    storage = again(backend)
    storage.check_initial(sha256, "float32")
    with pytest.raises(ValueError, match=r"is of type"):
        storage.check_initial(sha256, "float64")
    assert {name: tensor.tolist() for name, tensor in storage.initial(sha256).items()} == {
        "2.weight": [[0, 1, 2], [3, 4, 5]],
        "2.bias": [6, 7],
    }
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        storage.check_initial(put_upload(storage, b"no parameters"), "float32")
    backend.damage_upload(sha256)
    with pytest.raises(ValueError, match="is damaged"):
        storage.initial(sha256)


# Deletion.


def test_a_deleted_job_leaves_nothing(backend: Backend, storage: Storage) -> None:
    shared, mine = put_upload(storage, b"shared"), put_upload(storage, b"mine")
    insert_using(storage, "a", shared, mine)
    insert_using(storage, "b", shared)
    for job_id in ("a", "b"):
        storage.record([(job_id, notice(1))])
        storage.save_parameters(job_id, header("float32"), np.zeros(8, np.float32))
        storage.checkpoints(job_id).write(make(1))
    storage.delete_job("a")
    storage.delete_job("nobody")
    for found in (storage, again(backend)):
        found.empty_bin()
        assert [found.job("a"), found.parameters("a")] == [None] * 2
        assert found.events("a", 0, 10) == []
        assert found.checkpoints("a").latest() == (None, [])
        assert (found.uploads.exists(shared), found.uploads.exists(mine)) == (True, False)
        assert found.last_sequence("b") == 1
        assert found.parameters("b")
    storage = backend.open()
    insert(storage, "a")
    assert storage.parameters("a") is None
    assert storage.last_sequence("a") == 0
    while storage.shrink():
        pass


# A disk that refuses.


def test_a_full_disk_leaves_nothing_half_and_room_lets_it_go_on(backend: Backend, storage: Storage) -> None:
    insert(storage, "a")
    storage.save_parameters("a", header("float32"), np.zeros(8, np.float32))
    storage.checkpoints("a").write(make(1))
    backend.fill(True)
    writes: list[Callable[[], object]] = [
        lambda: storage.record([("a", notice(1)), ("a", notice(2, LARGE))]),
        lambda: storage.save_parameters("a", header("float32"), np.ones(8, np.float32)),
        lambda: storage.checkpoints("a").write(make(2)),
    ]
    for write in writes:
        with pytest.raises((OSError, sqlite3.OperationalError)) as told_:
            write()
        assert lacks_room(told_.value)
        assert is_full(told_.value)
    for found in (storage, again(backend)):
        assert found.events("a", 0, 10) == []
        parameters = found.parameters("a")
        assert parameters
        assert not any(array.any() for array in parameters.arrays)
        assert same(found.checkpoints("a").latest()[0], make(1))
    backend.fill(False)
    storage = backend.open()
    storage.probe()
    for write in writes:
        write()
    assert storage.last_sequence("a") == 2
    assert same(storage.checkpoints("a").latest()[0], make(2))


def test_a_full_disk_takes_deletions(backend: Backend, storage: Storage) -> None:
    insert(storage, "a")
    storage.record([("a", notice(1, LARGE))])
    backend.fill(True)
    storage.delete_job("a")
    backend.fill(False)
    assert again(backend).job("a") is None


# The journal over it.


def journal_of(storage: Storage, rejected: list[str]) -> Journal:
    return Journal(storage, lambda job_id, _: rejected.append(job_id))


def run(test: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "RETRY_SECONDS", 0.001)
    asyncio.run(asyncio.wait_for(test(), 30))  # type: ignore[arg-type]


def test_the_journal_counts_on_after_a_death(backend: Backend, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    insert(storage, "a")

    async def test() -> None:
        first = journal_of(storage, [])
        await first.open("a")
        first.start()
        note(first, "one", "two")
        await first.settled()
        # Never written: nobody is told of it, and it is lost with the server.
        first._flusher.cancel()  # type: ignore[union-attr]
        note(first, "lost")
        second = journal_of(again(backend), [])
        second.start()
        await second.open("a")
        note(second, "three")
        end(second)
        assert await told(second) == [1, 2, 3, 4]
        assert [event.notice.text for event in second.storage.events("a", 0, 3)] == ["one", "two", "three"]
        await second.stop()

    run(test, monkeypatch)


def test_an_event_that_breaks_a_constraint_stops_its_own_job_alone(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    insert(storage, "a")
    insert(storage, "b")

    async def test() -> None:
        rejected = list[str]()
        journal = journal_of(storage, rejected)
        for job_id in "ab":
            await journal.open(job_id)
        journal.start()
        storage.record([("a", notice(1, "in the way"))])
        note(journal, "rejected", "dropped with it")
        note(journal, "innocent", job="b")
        await journal.settled()
        note(journal, "afterwards")
        await journal.settled()
        assert rejected == ["a"]
        assert [(event.sequence, event.notice.text) for event in storage.events("a", 0, 9)] == [
            (1, "in the way"),
            (2, "afterwards"),
        ]
        assert [event.notice.text for event in storage.events("b", 0, 9)] == ["innocent"]
        await journal.stop()

    run(test, monkeypatch)


def test_events_wait_for_room_and_lose_nothing(backend: Backend, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    insert(storage, "a")

    async def test() -> None:
        rejected = list[str]()
        journal = journal_of(storage, rejected)
        await journal.open("a")
        journal.start()
        await journal.run(backend.fill, True)
        note(journal, "first", LARGE, "third")
        while not journal.shortage:
            await asyncio.sleep(0)
        assert storage.last_sequence("a") == 0
        await journal.run(backend.fill, False)
        note(journal, "fourth")
        await journal.settled()
        assert [len(event.notice.text) for event in storage.events("a", 0, 9)] == [5, len(LARGE), 5, 6]
        assert not rejected
        assert not journal.room.shortage
        await journal.stop()

    run(test, monkeypatch)
