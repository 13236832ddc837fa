"""Backups of data folders: made while jobs run, restored elsewhere, to the same bits; killed, on full disks, tampered with."""

import hashlib
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.data.make_data_folder import EQUAL, spec
from tests.end_to_end.cluster import running_server, stub_of
from tests.end_to_end.command import wait_for
from tests.end_to_end.faults import SmallDisk, disk_problem, flip_a_byte
from tests.end_to_end.peer import HoldAfter, proxy
from tests.server.test_service import refuses
from tests.server.test_training_service import events_of
from tests.server.test_upgrade import FOLDERS, get, hold_together, trained, unpacked
from thalweg.contract import audit, backups
from thalweg.contract.endpoint import Endpoint
from thalweg.server.process import Server
from thalweg.server.storage.audit_file import AuditFile
from thalweg.server.storage.backup import making, restoring
from thalweg.server.storage.backup.copying import BackupError
from thalweg.server.storage.folder import DataFolder
from thalweg.server.storage.tables import schema
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub
from thalweg.workers.worker import work


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder of this release, without a server."""
    folder = unpacked(FOLDERS[-1], tmp_path)
    DataFolder(folder, keep_uploads_seconds=1e9).close()
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class At:
    """Does something once, at a piece that is copied, counted from 1."""

    def __init__(self, piece: int, action: Callable[[], object]) -> None:
        self.pieces = 0
        self._piece = piece
        self._action = action

    def __call__(self, _: int, __: int) -> None:
        self.pieces += 1
        if self.pieces == self._piece:
            self._action()


def finish(server: Server, stub: TrainingServiceStub, expected: str, jobs: tuple[str, ...]) -> None:
    """The jobs that there are go on to the digest that they should have."""
    for job in stub.ListJobs(pb.ListJobsRequest()).jobs:
        if job.id in jobs:
            if job.state in (job_pb2.JOB_STATE_CANCELLED, job_pb2.JOB_STATE_FAILED):
                stub.ResumeJob(pb.ResumeJobRequest(job_id=job.id))
            elif job.paused:
                stub.ScaleJob(pb.ScaleJobRequest(job_id=job.id, workers=1))
            if job.state != job_pb2.JOB_STATE_SUCCEEDED:
                assert trained(server, job.id)
            assert get(stub, job.id).result.weights_sha256 == expected
            assert list(stub.DownloadParameters(pb.DownloadParametersRequest(job_id=job.id)))
            hold_together(stub, job.id)


def disturbed(tmp_path: Path, piece: int) -> int:
    """Makes a backup of a server while a job is trained, and much happens at a piece that is copied. The restored jobs must end
    as the others. Gives the number of pieces.
    """
    folder = unpacked(FOLDERS[-1], tmp_path)
    hold = HoldAfter(7)
    with ExitStack() as stack:
        settings = {"checkpoint_seconds": 0.0, "shared_memory": False, "keep_uploads_seconds": 1e9}
        server = stack.enter_context(running_server(folder, **settings))
        stub = stack.enter_context(stub_of(server))
        address = stack.enter_context(proxy(server.address, hold))
        worker = threading.Thread(target=work, args=(Endpoint(address), "running", "worker"))
        worker.start()
        stack.callback(worker.join)
        stack.callback(hold.released.set)
        assert hold.holding.wait(60)
        expected = get(stub, "undisturbed").result.weights_sha256

        def disturb() -> None:
            """A job ends, one is resumed and ends, one is cancelled, one is deleted with its upload, one is new."""
            hold.released.set()
            worker.join()
            stub.ResumeJob(pb.ResumeJobRequest(job_id="cancelled"))
            assert trained(server, "cancelled")
            stub.CancelJob(pb.CancelJobRequest(job_id="paused"))
            for job_id in ("uploaded", "waiting"):
                stub.CancelJob(pb.CancelJobRequest(job_id=job_id))
                stub.DeleteJob(pb.DeleteJobRequest(job_id=job_id))
            stub.CreateJob(pb.CreateJobRequest(spec=spec(), job_id="new"))

        at = At(piece, disturb)
        made = making.make(folder, tmp_path / "backup", at)
        assert made.problems == ()
    restoring.restore(tmp_path / "backup", tmp_path / "restored")
    with running_server(tmp_path / "restored") as server, stub_of(server) as stub:
        finish(server, stub, expected, (*EQUAL, "undisturbed", "new"))
        for job_id in ("waiting", "continued"):
            if job_id in [job.id for job in stub.ListJobs(pb.ListJobsRequest()).jobs]:
                assert trained(server, job_id)
    return at.pieces


def test_a_backup_while_jobs_run_is_restored_elsewhere_and_they_end_with_the_same_bits(tmp_path: Path) -> None:
    # After the uploads and some checkpoints.
    assert disturbed(tmp_path, 6) > 6


@pytest.mark.nightly
def test_whatever_happens_during_a_backup_it_is_sound(tmp_path: Path) -> None:
    piece = 1
    while disturbed(tmp_path / str(piece), piece) >= piece:
        piece += 1
    assert piece > 10


@pytest.mark.parametrize("archive", FOLDERS, ids=lambda path: path.name)
def test_the_folder_of_an_earlier_release_is_backed_up_as_it_is(tmp_path: Path, archive: Path) -> None:
    folder = unpacked(archive, tmp_path)
    before = content(folder)
    made = making.make(folder, tmp_path / "backup")
    assert made.problems == ()
    assert {path: data for path, data in content(folder).items() if not path.endswith("-shm")} == {
        path: data for path, data in before.items() if not path.endswith("-shm")
    }
    restoring.restore(tmp_path / "backup", tmp_path / "restored")
    with running_server(tmp_path / "restored") as server, stub_of(server) as stub:
        expected = get(stub, "undisturbed").result.weights_sha256
        assert len(stub.ListJobs(pb.ListJobsRequest()).jobs) == made.manifest.jobs
        finish(server, stub, expected, EQUAL)
        assert events_of(stub, "uploaded")


def test_a_backup_has_what_is_needed_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    (folder / "server-token").write_text("secret")
    (folder / "log-of-tomorrow.jsonl").write_text("{}\n")
    made = making.make(folder, tmp_path / "backup")
    found = content(tmp_path / "backup")
    assert found.keys() == {entry.path for entry in made.manifest.files} | {backups.MANIFEST}
    assert {path for path in found if "/" not in path} == {backups.MANIFEST, "jobs.sqlite", "log-of-tomorrow.jsonl"}
    assert {path for path in found if path.startswith("uploads/")} == {
        f"uploads/{path.name}" for path in (folder / "uploads").iterdir() if path.suffix != ".part"
    }
    assert {path.split("/")[1] for path in found if path.startswith("jobs/")} >= {"undisturbed", "running", "cancelled"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "backup").rglob("*"))
    for entry in made.manifest.files:
        assert hashlib.sha256(found[entry.path]).hexdigest() == entry.sha256
    assert restoring.check(tmp_path / "backup") == made.manifest == restoring.manifest_of(tmp_path / "backup")


def test_an_audit_log_that_grows_is_copied_in_whole_lines(folder: Path, tmp_path: Path) -> None:
    file = AuditFile(folder, max_bytes=400)
    records = [{"what": f"call {number}"} for number in range(9)]

    def grow() -> None:
        """The log is full, and gets another name; and a line is being written."""
        file.write(records)
        file.write(records)
        with (folder / "audit.jsonl").open("ab") as log:
            log.write(b"half a li")

    file.write(records)
    pieces = At(0, grow)
    making.make(folder, tmp_path / "backup", pieces)
    # When the file is being copied, the last but one of all.
    making.make(folder, tmp_path / "again", At(pieces.pieces, grow))
    for backup in ("backup", "again"):
        paths = sorted((tmp_path / backup).glob("audit*.jsonl"))
        assert audit.verify(paths).lines == 9 * (1 if backup == "backup" else 3)
    assert len(paths) == 3
    assert (folder / "audit.jsonl").read_bytes().endswith(b"half a li")
    restoring.check(tmp_path / "again")


def test_a_backup_overwrites_nothing_and_is_not_served(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    making.make(folder, target)
    for wrong, words in (
        (target, "exists already"),
        (folder / "backup", "is within the data folder"),
    ):
        with pytest.raises(BackupError, match=words):
            making.make(folder, wrong)
    with pytest.raises(BackupError, match="is a backup"):
        making.make(target, tmp_path / "again")
    with pytest.raises(BackupError, match="is not a data folder"):
        making.make(tmp_path, tmp_path.parent / "nothing")
    assert "thalweg restore" in refuses(target)
    with pytest.raises(BackupError, match="is not empty"):
        restoring.restore(target, folder)
    with pytest.raises(BackupError, match="is within the backup"):
        restoring.restore(target, target / "data")
    with pytest.raises(BackupError, match="is not a backup"):
        restoring.restore(folder, tmp_path / "restored")
    (tmp_path / "other.partial").mkdir()
    with pytest.raises(BackupError, match="is in the way"):
        making.make(folder, tmp_path / "other")


def test_the_folder_of_a_newer_release_is_not_backed_up_and_its_backup_not_restored(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    making.make(folder, tmp_path / "backup")
    monkeypatch.setattr(schema, "FORMAT", schema.FORMAT - 1)
    with pytest.raises(BackupError, match=f"data format {schema.FORMAT + 1}, written by Thalweg"):
        making.make(folder, tmp_path / "again")
    with pytest.raises(BackupError, match=f"data format {schema.FORMAT + 1}, and was made by Thalweg"):
        restoring.restore(tmp_path / "backup", tmp_path / "restored")
    assert not (tmp_path / "again.partial").exists()
    assert not (tmp_path / "restored").exists()


# The program of a process that makes or restores a backup, says when it has begun, and stands still.
_STANDS_STILL = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from thalweg.server.storage.backup import making, restoring

def stand(done, total):
    print("begun", flush=True)
    time.sleep(600)

getattr(*{"make": (making, "make"), "restore": (restoring, "restore")}[sys.argv[1]])(Path(sys.argv[2]), Path(sys.argv[3]), stand)
"""


def killed(action: str, source: Path, target: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _STANDS_STILL, action, source, target], stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"begun\n"
    if action == "make":
        with pytest.raises(BackupError, match="another backup is being made"):
            making.make(source, target)
    else:
        with pytest.raises(BackupError, match="another restoration"):
            restoring.restore(source, target)
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_backup_that_was_killed_is_recognised_and_made_again(folder: Path, tmp_path: Path) -> None:
    target, partial = tmp_path / "backup", tmp_path / "backup.partial"
    killed("make", folder, target)
    assert not target.exists()
    with pytest.raises(BackupError, match="is incomplete"):
        restoring.restore(partial, tmp_path / "restored")
    assert "is incomplete" in refuses(partial)
    making.make(folder, target)
    assert not partial.exists()
    restoring.check(target)


def test_a_restoration_that_was_killed_is_recognised_and_repeated(folder: Path, tmp_path: Path) -> None:
    backup, restored = tmp_path / "backup", tmp_path / "restored"
    making.make(folder, backup)
    # A disk of its own, say.
    restored.mkdir()
    killed("restore", backup, restored)
    assert "is incomplete" in refuses(restored)
    (restored / "rest").write_text("of another one")
    restoring.restore(backup, restored)
    assert content(restored).keys() == content(backup).keys() - {backups.MANIFEST}


@pytest.mark.skipif(disk_problem() is not None, reason=str(disk_problem()))
def test_a_full_disk_ends_a_backup_and_nothing_is_left(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = b"x" * (3 << 20)
    (folder / "uploads" / hashlib.sha256(large).hexdigest()).write_bytes(large)
    with SmallDisk(tmp_path / "disk", mebibytes=2) as disk:
        with pytest.raises(BackupError, match=r"no room at .*: the backup needs about [\d,]+ bytes, and [\d,]+ are free"):
            making.make(folder, disk.folder / "backup")
        assert list(disk.folder.iterdir()) == []
        # It becomes full meanwhile.
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 40))
        with pytest.raises(BackupError, match="No space left on device"):
            making.make(folder, disk.folder / "backup")
        assert list(disk.folder.iterdir()) == []
        making.make(folder, tmp_path / "backup")
        with pytest.raises(BackupError, match="No space left on device"):
            restoring.restore(tmp_path / "backup", disk.folder / "restored")
        assert list(disk.folder.iterdir()) == []


def test_files_of_a_backup_that_were_tampered_with_are_named_and_nothing_is_restored(folder: Path, tmp_path: Path) -> None:
    backup, restored = tmp_path / "backup", tmp_path / "restored"
    made = making.make(folder, backup)
    changed = next(entry.path for entry in made.manifest.files if entry.path.startswith("uploads/"))
    missing = "jobs/undisturbed/parameters.safetensors"
    for path in (changed, "jobs.sqlite"):
        flip_a_byte(backup / path)
    (backup / missing).unlink()
    (backup / "jobs" / "stranger").write_text("a")
    actions: list[Callable[[], object]] = [lambda: restoring.check(backup), lambda: restoring.restore(backup, restored)]
    for action in actions:
        with pytest.raises(BackupError) as told:
            action()
        for path in (changed, "jobs.sqlite", missing, "jobs/stranger"):
            assert path in str(told.value)
        assert not restored.exists()
    (backup / backups.MANIFEST).write_text('{"thalweg_backup": 1, "files": [{"path": "../a", "size": 1, "sha256": "a"}]}')
    with pytest.raises(BackupError, match="cannot be used: it is damaged"):
        restoring.restore(backup, restored)
    (backup / backups.MANIFEST).write_text('{"thalweg_backup": 99}')
    with pytest.raises(BackupError, match="reads formats up to 1"):
        restoring.restore(backup, restored)


def test_damaged_files_of_the_data_folder_are_named_and_left_out(folder: Path, tmp_path: Path) -> None:
    upload = next(path for path in (folder / "uploads").iterdir() if path.suffix != ".part" and path.stat().st_size > 200)
    checkpoint = max((folder / "jobs" / "cancelled" / "checkpoints").iterdir())
    for path in (upload, checkpoint):
        flip_a_byte(path)
    other = folder / "uploads" / ("0" * 64)
    other.symlink_to(tmp_path / "nowhere")
    made = making.make(folder, tmp_path / "backup")
    told = "\n".join(made.problems)
    assert f"uploads/{upload.name} is damaged" in told
    assert f"{checkpoint.name} is damaged" in told
    assert f"uploads/{other.name} leads to a file that does not exist" in told
    # The checkpoint before it serves.
    assert any(entry.path.startswith("jobs/cancelled/checkpoints/") for entry in made.manifest.files)
    restoring.check(tmp_path / "backup")


def test_uploads_that_are_links_are_copied(folder: Path, tmp_path: Path) -> None:
    data = b"a file of this machine"
    (tmp_path / "file").write_bytes(data)
    name = hashlib.sha256(data).hexdigest()
    (folder / "uploads" / name).symlink_to(tmp_path / "file")
    making.make(folder, tmp_path / "backup")
    copied = tmp_path / "backup" / "uploads" / name
    assert not copied.is_symlink()
    assert copied.read_bytes() == data


def test_a_damaged_database_is_not_backed_up(folder: Path, tmp_path: Path) -> None:
    with sqlite3.connect(folder / "jobs.sqlite") as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    size = (folder / "jobs.sqlite").stat().st_size
    with (folder / "jobs.sqlite").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size // 2))
    with pytest.raises(BackupError, match=r"jobs\.sqlite"):
        making.make(folder, tmp_path / "backup")
    assert not (tmp_path / "backup.partial").exists()


def test_jobs_that_are_changed_all_the_time_end_a_backup(folder: Path, tmp_path: Path) -> None:
    with sqlite3.connect(folder / "jobs.sqlite") as database:

        def change(_: int, __: int) -> None:
            (blob,) = database.execute("SELECT job FROM jobs WHERE id = 'failed'").fetchone()
            job = job_pb2.Job.FromString(blob)
            job.status += "."
            database.execute("UPDATE jobs SET job = ? WHERE id = 'failed'", (job.SerializeToString(),))
            database.commit()
            # So that it is copied again.
            (folder / "jobs" / "failed" / "parameters.safetensors").touch()

        with pytest.raises(BackupError, match="try again later"):
            making.make(folder, tmp_path / "backup", change)
    database.close()
    assert not (tmp_path / "backup.partial").exists()
    assert wait_for(lambda: making.make(folder, tmp_path / "backup")).manifest.jobs == 10
