"""The data folder: jobs and events in SQLite, parameters and uploads in files. See also `test_storages.py`."""

import hashlib
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from thalweg.contract import layout as layouts
from thalweg.contract import manifests
from thalweg.contract.errors import ThalwegError
from thalweg.server.access.principal import ADMIN
from thalweg.server.driving.acceptance import record_job
from thalweg.server.storage import job_files
from thalweg.server.storage import uploads as uploads_module
from thalweg.server.storage.folder import DataFolder
from thalweg.server.storage.interface import Storage
from thalweg.server.storage.reserve import RESERVE_BYTES
from thalweg.server.storage.tables import database as database_module
from thalweg.server.storage.tables import schema
from thalweg.v1 import job_pb2, training_service_pb2


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[DataFolder]:
    storage = DataFolder(tmp_path)
    yield storage
    storage.close()


def insert(storage: Storage, job_id: str = "", request_id: str = "", name: str = "job") -> str | None:
    job = storage.insert_job(job_pb2.Job(id=job_id), request_id, name)
    return job.id if job else None


def notice(sequence: int, text: str = "") -> training_service_pb2.Event:
    return training_service_pb2.Event(sequence=sequence, notice=training_service_pb2.Notice(text=text))


def state(sequence: int, job: job_pb2.Job) -> training_service_pb2.Event:
    return training_service_pb2.Event(sequence=sequence, state_changed=training_service_pb2.StateChanged(job=job))


def header(dtype: str) -> training_service_pb2.ParametersHeader:
    tensors = [job_pb2.Tensor(name="2.weight", shape=[2, 3]), job_pb2.Tensor(name="2.bias", shape=[2])]
    layout = job_pb2.Layout(tensors=tensors, dtype=dtype)
    return training_service_pb2.ParametersHeader(
        layout=layout, version=9, sha256="ab", preprocessing=job_pb2.Preprocessing(mean=[1.5], scale=[2.5])
    )


def test_events_are_recorded_all_or_none(storage: DataFolder) -> None:
    insert(storage, "a")
    storage.record([("a", notice(1))])
    with pytest.raises(sqlite3.IntegrityError):
        storage.record([("a", notice(2)), ("a", state(3, job_pb2.Job(id="a", error="e"))), ("a", notice(1))])
    assert storage.last_sequence("a") == 1
    assert storage.job("a") == job_pb2.Job(id="a")


def test_a_commit_that_fails_can_be_repeated(storage: DataFolder) -> None:
    insert(storage, "a")

    def fail_at_the_commit() -> None:
        with storage._transaction() as database:
            database.execute("PRAGMA defer_foreign_keys = ON")
            database.execute("INSERT INTO events VALUES ('nobody', 1, x'')")

    with pytest.raises(sqlite3.IntegrityError):
        fail_at_the_commit()
    storage.record([("a", notice(1))])
    assert storage.last_sequence("a") == 1


def test_writes_are_synchronised(storage: DataFolder) -> None:
    assert storage._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert storage._database.execute("PRAGMA synchronous").fetchone() == (2,)


def put_upload(storage: Storage, content: bytes) -> str:
    sha256 = hashlib.sha256(content).hexdigest()
    storage.uploads.receive("one", content)
    assert storage.uploads.finish("one", sha256)
    return sha256


def insert_using(storage: Storage, job_id: str, data: str = "", initial: str = "") -> None:
    spec = job_pb2.JobSpec(data=job_pb2.Data(npz="a.npz", sha256=data))
    spec.model.initial.sha256 = initial
    assert storage.insert_job(job_pb2.Job(id=job_id, spec=spec), "", "job")


def uploads(storage: DataFolder) -> set[str]:
    return {path.name for path in (storage.folder / "uploads").iterdir()}


def test_a_deleted_job_takes_the_uploads_with_it_that_no_other_job_uses(storage: DataFolder) -> None:
    shared, mine, initial, unused = (put_upload(storage, content) for content in (b"shared", b"mine", b"initial", b"unused"))
    insert_using(storage, "a", shared, initial)
    insert_using(storage, "b", mine, shared)
    insert_using(storage, "c", initial, initial)
    storage.delete_job("b")
    assert uploads(storage) == {shared, initial, unused}
    storage.delete_job("a")
    assert uploads(storage) == {initial, unused}
    storage.delete_job("c")
    storage.delete_job("c")
    assert uploads(storage) == {unused}


def test_files_of_a_manifest_are_uploads_that_its_job_uses(storage: DataFolder) -> None:
    one, two, other = (put_upload(storage, content) for content in (b"one", b"two", b"other"))
    entries = [manifests.Entry("a/1.parquet", 3, one), manifests.Entry("a/2.parquet", 3, two)]
    manifest = put_upload(storage, manifests.written(entries))
    spec = job_pb2.JobSpec(data=job_pb2.Data(parquet="a", sha256=manifest))
    assert record_job(storage, job_pb2.Job(id="a", spec=spec), "", ADMIN)
    alone = job_pb2.JobSpec(data=job_pb2.Data(npz="2", sha256=two))
    assert record_job(storage, job_pb2.Job(id="b", spec=alone), "", ADMIN)
    storage.delete_job("a")
    assert uploads(storage) == {two, other}


def test_a_manifest_without_its_files_or_damaged_makes_no_job(storage: DataFolder) -> None:
    missing = put_upload(storage, manifests.written([manifests.Entry("1.parquet", 3, "a" * 64)]))
    damaged = put_upload(storage, manifests.written([manifests.Entry("1.parquet", 3, "a" * 64)])[:-2])
    for sha256, reason, problem in (
        (missing, "DATA_NOT_FOUND", "a" * 64),
        (damaged, "INVALID_ARGUMENT", "data.sha256: "),
    ):
        spec = job_pb2.JobSpec(data=job_pb2.Data(parquet="a", sha256=sha256))
        with pytest.raises(ThalwegError, match=problem) as caught:
            record_job(storage, job_pb2.Job(id="a", spec=spec), "", ADMIN)
        assert caught.value.reason == reason
    assert storage.job("a") is None


def test_what_cannot_be_removed_is_removed_at_a_later_start(
    storage: DataFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    insert_using(storage, "a", put_upload(storage, b"content"))
    storage.save_parameters("a", header("float32"), np.zeros(8, np.float32))

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    storage.delete_job("a")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        patch.setattr(shutil, "rmtree", refuse)
        storage.empty_bin()
    assert storage.job("a") is None
    assert uploads(storage) == set()
    assert caplog.text.count("cannot remove") == 2
    assert len(list((storage.folder / "deleted").iterdir())) == 2
    DataFolder(storage.folder).close()
    assert list((storage.folder / "deleted").iterdir()) == []


def grow_old(storage: DataFolder, sha256: str) -> None:
    yesterday = time.time() - 2 * 24 * 3600
    os.utime(storage.uploads.path(sha256), (yesterday, yesterday))


def test_old_uploads_that_no_job_uses_are_removed_at_the_start(storage: DataFolder) -> None:
    used, new, old = (put_upload(storage, content) for content in (b"used", b"new", b"old"))
    insert_using(storage, "a", used)
    (storage.folder / "uploads" / "notes").mkdir()
    for sha256 in (used, old, "notes"):
        grow_old(storage, sha256)
    DataFolder(storage.folder).close()
    assert uploads(storage) == {used, new, "notes"}


def make_older(database: sqlite3.Connection) -> None:
    """Takes a database back to what it was before formats were numbered."""
    made = database.execute("SELECT type, name FROM sqlite_master WHERE sql IS NOT NULL ORDER BY type").fetchall()
    for kind, name in made:
        if name not in ("jobs", "events", "sqlite_sequence"):
            database.execute(f"DROP {kind} IF EXISTS {name}")
    for _, column, *_ in database.execute("PRAGMA table_info(jobs)").fetchall():
        if column not in ("number", "id", "request_id", "job"):
            database.execute(f"ALTER TABLE jobs DROP COLUMN {column}")
    database.execute("PRAGMA user_version = 0")


def test_what_jobs_of_an_earlier_release_use_is_known(storage: DataFolder) -> None:
    sha256 = put_upload(storage, b"content")
    for job_id in ("a", "b"):
        insert_using(storage, job_id, sha256)
    make_older(storage._database)
    again = DataFolder(storage.folder)
    again.delete_job("a")
    assert uploads(storage) == {sha256}
    again.delete_job("b")
    assert uploads(storage) == set()
    again.close()


def test_exported_parameters_are_an_upload_named_by_what_they_are(storage: DataFolder) -> None:
    slab = np.arange(8, dtype=np.float32)
    for job_id in ("a", "b"):
        storage.save_parameters(job_id, header("float32"), slab)
    sha256 = storage.export_parameters("a")
    assert sha256
    assert storage.export_parameters("b") == sha256
    assert uploads(storage) == {sha256}
    tensors = storage.initial(sha256)
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "2.weight": [[0, 1, 2], [3, 4, 5]],
        "2.bias": [6, 7],
    }
    assert storage.export_parameters("c") is None


def test_an_export_that_fails_leaves_nothing(storage: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.save_parameters("a", header("float32"), np.zeros(8, np.float32))

    def crash(_: object, aside: Path, path: Path) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(uploads_module, "publish", crash)
    with pytest.raises(OSError, match="full"):
        storage.export_parameters("a")
    assert uploads(storage) == set()


def test_a_damaged_upload_is_nothing_to_start_from(storage: DataFolder) -> None:
    storage.save_parameters("a", header("float32"), np.zeros(8, np.float32))
    sha256 = storage.export_parameters("a")
    assert sha256
    with storage.uploads.path(sha256).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with pytest.raises(ValueError, match="is damaged"):
        storage.initial(sha256)
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        storage.initial(put_upload(storage, b"no parameters"))


def test_a_deletion_that_cannot_be_recorded_removes_nothing(storage: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    insert_using(storage, "a", put_upload(storage, b"content"))
    storage.save_parameters("a", header("float32"), np.zeros(8, np.float32))
    with monkeypatch.context() as patch:
        patch.setattr(DataFolder, "_transaction", lambda _: pytest.fail("the crash"))
        with pytest.raises(pytest.fail.Exception, match="the crash"):
            storage.delete_job("a")
    assert storage.job("a")
    assert storage.parameters("a")
    assert len(uploads(storage)) == 1
    storage.delete_job("a")
    assert storage.job("a") is None


@pytest.mark.parametrize("recorded", [False, True])
def test_a_deletion_that_a_crash_cut_off_has_happened_or_not(storage: DataFolder, recorded: bool) -> None:
    insert(storage, "a")
    storage.save_parameters("a", header("float32"), np.zeros(8, np.float32))
    with pytest.MonkeyPatch.context() as patch:
        if not recorded:
            # As if the machine went down between the files and the record.
            patch.setattr(DataFolder, "_delete_records", lambda *_: [])
        storage.delete_job("a")
    again = DataFolder(storage.folder)
    assert (again.job("a") is None) is recorded
    assert (again.parameters("a") is None) is recorded
    assert list((storage.folder / "deleted").iterdir()) == []
    again.close()


def test_a_newer_job_of_the_same_id_is_not_mixed_with_a_deleted_one(storage: DataFolder) -> None:
    insert(storage, "a")
    storage.save_parameters("a", header("float32"), np.zeros(8, np.float32))
    storage.delete_job("a")
    insert(storage, "a")
    again = DataFolder(storage.folder)
    assert again.job("a")
    assert again.parameters("a") is None
    again.close()


def test_a_full_disk_takes_deletions(storage: DataFolder) -> None:
    insert(storage, "a")
    storage.record([("a", notice(1))])

    def full(_: str) -> list[str]:
        if (storage.folder / "reserve").exists():
            raise sqlite3.OperationalError("database or disk is full")
        return delete("a")

    delete = storage._delete_records
    assert (storage.folder / "reserve").stat().st_size == RESERVE_BYTES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "_delete_records", full)
        storage.delete_job("a")
    assert storage.job("a") is None
    assert not (storage.folder / "reserve").exists()
    storage.empty_bin()
    assert (storage.folder / "reserve").stat().st_size == RESERVE_BYTES


def test_a_folder_of_a_newer_release_is_refused(storage: DataFolder) -> None:
    storage._database.execute("PRAGMA user_version = 99")
    storage._database.execute("INSERT INTO releases (release, format) VALUES ('9.9.9', 99)")
    with pytest.raises(schema.NewerFormatError) as told:
        DataFolder(storage.folder)
    assert f"data format 99, written by Thalweg 9.9.9; this is Thalweg {version('thalweg')}" in str(told.value)
    assert f"formats up to {schema.FORMAT}" in str(told.value)
    # And left as it was.
    assert storage._database.execute("PRAGMA user_version").fetchone() == (99,)


def test_the_releases_that_wrote_a_folder_are_on_record(storage: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    for release in ("9.0.0", "9.0.0", "9.1.0"):
        monkeypatch.setattr(schema, "version", lambda _, release=release: release)
        DataFolder(storage.folder).close()
    rows = storage._database.execute("SELECT release, format FROM releases ORDER BY number").fetchall()
    assert rows == [(version("thalweg"), schema.FORMAT), ("9.0.0", schema.FORMAT), ("9.1.0", schema.FORMAT)]


def test_what_a_crash_left_of_an_upload_is_cleared_away(tmp_path: Path) -> None:
    first = DataFolder(tmp_path)
    first.uploads.receive("cut-off", b"half of it")
    first.close()
    assert list((tmp_path / "uploads").iterdir())
    DataFolder(tmp_path).close()
    assert not list((tmp_path / "uploads").iterdir())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parameters_come_back_as_they_were(storage: DataFolder, dtype: str) -> None:
    slab = np.random.default_rng(0).normal(size=8).astype(dtype)
    slab[0] = -0.0
    storage.save_parameters("a", header(dtype), slab)
    kept = storage.parameters("a")
    assert kept
    assert kept.header == header(dtype)
    assert {array.dtype for array in kept.arrays} == {layouts.dtype_of(header(dtype).layout)}
    assert b"".join(kept.pieces()) == slab.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_trajectory_comes_back_as_it_was(storage: DataFolder, dtype: str) -> None:
    slabs = np.random.default_rng(0).normal(size=(3, 8)).astype(dtype)
    described = training_service_pb2.TrajectoryHeader(layout=header(dtype).layout, versions=[0, 5, 7])
    storage.save_trajectory("a", described, list(slabs))
    kept = storage.trajectory("a")
    assert kept
    assert kept.header == described
    (array,) = kept.arrays
    assert array.dtype == slabs.dtype
    assert array.tolist() == slabs.tolist()


def test_what_was_not_kept_is_not_there(storage: DataFolder) -> None:
    assert storage.parameters("a") is None
    assert storage.trajectory("a") is None


def test_a_slab_of_another_size_is_not_kept(storage: DataFolder) -> None:
    with pytest.raises(ValueError, match="8 elements"):
        storage.save_parameters("a", header("float32"), np.zeros(9, np.float32))
    assert storage.parameters("a") is None


@pytest.mark.parametrize("before", [False, True])
def test_a_file_is_whole_or_not_there(storage: DataFolder, monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    if before:
        storage.save_parameters("a", header("float32"), np.zeros(8, np.float32))

    def crash(_: object, aside: Path, path: Path) -> None:
        assert aside.stat().st_size
        raise OSError("the machine stops between write and rename")

    with monkeypatch.context() as patch:
        patch.setattr(job_files, "publish", crash)
        with pytest.raises(OSError, match="between write and rename"):
            storage.save_parameters("a", header("float32"), np.ones(8, np.float32))
    kept = storage.parameters("a")
    assert (kept is not None) is before
    assert kept is None or not any(array.any() for array in kept.arrays)
    storage.save_parameters("a", header("float32"), np.ones(8, np.float32))
    kept = storage.parameters("a")
    assert kept
    assert all(array.all() for array in kept.arrays)


def test_a_file_that_cannot_be_written_is_an_os_error(storage: DataFolder) -> None:
    in_the_way = storage.folder / "jobs" / "a"
    in_the_way.write_text("in the way")
    with pytest.raises(OSError, match="jobs"):
        storage.save_parameters("a", header("float32"), np.zeros(8, np.float32))
    in_the_way.unlink()
    (storage.job_folder("a") / "parameters.part").mkdir(parents=True)
    with pytest.raises(OSError, match=r"parameters\.part"):
        storage.save_parameters("a", header("float32"), np.zeros(8, np.float32))


def test_an_upload_appears_only_when_it_is_verified(storage: DataFolder) -> None:
    content = b"content"
    sha256 = hashlib.sha256(content).hexdigest()
    storage.uploads.receive("one", content[:-1])
    assert not storage.uploads.finish("one", sha256)
    assert not storage.uploads.path(sha256).exists()
    storage.uploads.receive("one", content[-1:])
    assert not storage.uploads.path(sha256).exists()
    assert storage.uploads.finish("one", sha256)
    assert storage.uploads.path(sha256).read_bytes() == content
    assert [path.name for path in (storage.folder / "uploads").iterdir()] == [sha256]


def test_a_damaged_upload_is_not_whole_and_replaced(storage: DataFolder) -> None:
    content = b"content"
    sha256 = put_upload(storage, content)
    assert storage.uploads.whole(sha256)
    storage.uploads.path(sha256).write_bytes(b"Content")
    assert not storage.uploads.whole(sha256)
    assert put_upload(storage, content) == sha256
    assert storage.uploads.whole(sha256)
    assert not storage.uploads.whole("0" * 64)


def test_an_upload_that_is_asked_for_again_counts_as_new(storage: DataFolder) -> None:
    kept, old = put_upload(storage, b"kept"), put_upload(storage, b"old")
    long_ago = time.time() - 3 * 24 * 3600
    for sha256 in (kept, old):
        os.utime(storage.uploads.path(sha256), (long_ago, long_ago))
    assert storage.uploads.whole(kept)
    storage.remove_unused_uploads()
    assert uploads(storage) == {kept}


def test_the_log_says_what_unused_uploads_were_removed(storage: DataFolder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="thalweg.server.storage.folder")
    put_upload(storage, b"new")
    storage.remove_unused_uploads()
    assert caplog.messages == []
    old, part = put_upload(storage, bytes(1200)), "0" * 64
    storage.uploads.receive(part, b"34 bytes of a file that broke off.")
    long_ago = time.time() - 3 * 24 * 3600
    for path in (storage.uploads.path(old), storage.uploads.part(part)):
        os.utime(path, (long_ago, long_ago))
    storage.remove_unused_uploads()
    assert caplog.messages == ["removed 2 uploads that no job used for 1d: 1,234 bytes"]


@pytest.mark.parametrize("earlier", [False, True], ids=["this release's", "an earlier one's"])
def test_the_database_shrinks_when_events_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool) -> None:
    monkeypatch.setattr(database_module, "_FREED_PAGES", 500)
    if earlier:
        with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as database:
            database.executescript("PRAGMA journal_mode = WAL; CREATE TABLE other (a)")
    storage = DataFolder(tmp_path)
    insert(storage, "a")
    insert(storage, "b")
    storage.record([("b", notice(1))])
    text = training_service_pb2.Notice(text="x" * 10_000)
    storage.record([("a", training_service_pb2.Event(sequence=each, notice=text)) for each in range(1, 501)])
    database_file = tmp_path / "jobs.sqlite"
    storage.delete_job("a")
    large = database_file.stat().st_size
    steps = 1
    while storage.shrink():
        steps += 1
    assert earlier or steps > 2
    assert database_file.stat().st_size < large / 10
    assert storage.last_sequence("b") == 1
    assert not storage.shrink()
    storage.close()
