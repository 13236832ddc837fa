"""The data folder of an earlier release, and jobs on record that another release wrote."""

import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.make_data_folder import EQUAL, HALF
from tests.end_to_end.cluster import running_server, stub_of
from tests.end_to_end.command import wait_for
from tests.end_to_end.refusals import refusal
from tests.server.test_service import refuses
from tests.server.test_training_service import create, events_of, make_spec
from thalweg.contract.endpoint import Endpoint
from thalweg.server import validation
from thalweg.server.driving.lifecycle.foreign import ForeignSpecError, known
from thalweg.server.process import Server
from thalweg.server.storage.folder import DataFolder
from thalweg.server.storage.tables import schema
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub
from thalweg.workers.worker import work

DATA = Path(__file__).parent.parent / "data"
FOLDERS = sorted(DATA.glob("data-folder-*.tar.gz"))


def unpacked(archive: Path, target: Path) -> Path:
    """The data folder of a server that was killed (see tests/data/make_data_folder.py)."""
    with tarfile.open(archive) as opened:
        opened.extractall(target, filter="data")
    return target / "data"


def schema_of(folder: Path) -> set[tuple[str, str]]:
    """The tables and indices of a data folder, as SQLite has them."""
    with sqlite3.connect(folder / "jobs.sqlite") as database:
        found = database.execute("SELECT name, sql FROM sqlite_master").fetchall()
    database.close()
    # However it is written.
    return {(name, "".join((sql or "").split())) for name, sql in found}


def get(stub: TrainingServiceStub, job_id: str) -> job_pb2.Job:
    return stub.GetJob(pb.GetJobRequest(job_id=job_id)).job


def trained(server: Server, job_id: str) -> bool:
    """Works for a job to its end. Whether it succeeded. A server with much to do gives a job its place a moment later."""

    def said() -> str:
        reason = work(Endpoint(server.address), job_id, "worker")
        return "" if "still queued" in reason else reason

    return "SUCCEEDED" in wait_for(said)


def header_of(stub: TrainingServiceStub, job_id: str) -> pb.ParametersHeader:
    return next(iter(stub.DownloadParameters(pb.DownloadParametersRequest(job_id=job_id)))).header


def version_of(stub: TrainingServiceStub, job_id: str) -> int:
    return header_of(stub, job_id).version


def hold_together(stub: TrainingServiceStub, job_id: str) -> None:
    """The events of a job have no gap, and tell of each step once."""
    events = events_of(stub, job_id)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    steps = [event.steps_taken.first_step + i for event in events for i in range(len(event.steps_taken.losses))]
    assert steps == list(range(len(steps)))


def test_the_jobs_of_the_earliest_release_are_resumed_and_end_with_the_same_bits(tmp_path: Path) -> None:
    old = unpacked(DATA / "data-folder-1.tar.gz", tmp_path)
    with running_server(old) as server, stub_of(server) as stub:
        undisturbed = get(stub, "undisturbed")
        assert undisturbed.state == job_pb2.JOB_STATE_SUCCEEDED
        expected = undisturbed.result.weights_sha256
        assert "continues from step 1" in get(stub, "running").status
        assert "starts again from the beginning" in get(stub, "queued").status
        # Before any worker has come, what a checkpoint holds is there.
        assert version_of(stub, "running") == 1
        assert version_of(stub, "cancelled") == 17
        stub.ResumeJob(pb.ResumeJobRequest(job_id="cancelled"))
        for job_id in ("running", "queued", "cancelled"):
            assert trained(server, job_id)
            assert get(stub, job_id).result.weights_sha256 == expected
            hold_together(stub, job_id)
            assert header_of(stub, job_id).preprocessing.shape == [2]
        assert get(stub, "failed").error
        for job_id in ("undisturbed", "failed", "uploaded"):
            hold_together(stub, job_id)
            assert version_of(stub, job_id)
        assert list(stub.DownloadTrajectory(pb.DownloadTrajectoryRequest(job_id="undisturbed")))
        assert list((old / "uploads").iterdir())
        stub.DeleteJob(pb.DeleteJobRequest(job_id="uploaded"))
        assert not list((old / "uploads").iterdir())
        # A call that is repeated finds the job that it made then.
        assert create(stub, job_id="queued", request_id="request-queued").id == "queued"
        assert create(stub).id == "job-7"


# The first one knows less.
@pytest.mark.parametrize("archive", FOLDERS[1:], ids=lambda path: path.name)
def test_an_earlier_releases_jobs_go_on_and_end_with_the_same_bits(tmp_path: Path, archive: Path) -> None:
    old = unpacked(archive, tmp_path)
    # What came long ago is removed.
    (old / "uploads" / f"{HALF}.part").touch()
    with running_server(old) as server, stub_of(server) as stub:
        expected = get(stub, "undisturbed").result.weights_sha256
        assert get(stub, "paused").paused
        assert "interrupted" in get(stub, "interrupted").error
        assert version_of(stub, "interrupted") == version_of(stub, "cancelled") == version_of(stub, "paused") == 17
        assert "continues from step 1" in get(stub, "running").status
        stub.ScaleJob(pb.ScaleJobRequest(job_id="paused", workers=1))
        for job_id in ("cancelled", "interrupted"):
            stub.ResumeJob(pb.ResumeJobRequest(job_id=job_id))
        for job_id in EQUAL:
            assert trained(server, job_id)
            assert get(stub, job_id).result.weights_sha256 == expected
            hold_together(stub, job_id)
        for job_id in ("waiting", "continued"):
            assert trained(server, job_id)
        assert get(stub, "waiting").result.weights_sha256 == get(stub, "uploaded").result.weights_sha256
        assert "became inf" in get(stub, "failed").error
        for job_id in ("undisturbed", "failed", "uploaded"):
            hold_together(stub, job_id)
            assert version_of(stub, job_id)
        # What was received of an upload need not be sent again.
        assert stub.GetUpload(pb.GetUploadRequest(sha256=HALF)).received == 10
        rest = [pb.UploadDataRequest(header=pb.UploadHeader(sha256=HALF, size=23, offset=10))]
        rest.append(pb.UploadDataRequest(data=b" and the rest"))
        assert stub.UploadData(iter(rest)).sha256 == HALF


@pytest.mark.parametrize("archive", FOLDERS, ids=lambda path: path.name)
def test_a_migrated_database_is_as_a_new_one(tmp_path: Path, archive: Path) -> None:
    old, new = unpacked(archive, tmp_path), tmp_path / "new"
    for folder in (old, new):
        DataFolder(folder).close()
    assert schema_of(old) == schema_of(new)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = unpacked(FOLDERS[-1], tmp_path)
    DataFolder(old).close()
    before = schema_of(old)

    def breaks(database: sqlite3.Connection) -> None:
        database.execute("CREATE TABLE half_done (number INTEGER)")
        database.execute("UPDATE jobs SET job = x''")
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as newer:
        newer.setattr(schema, "_STEPS", (*schema._STEPS, breaks))
        newer.setattr(schema, "FORMAT", schema.FORMAT + 1)
        assert "database or disk is full" in refuses(old)
    assert schema_of(old) == before
    # The release that wrote it goes on.
    with running_server(old) as server, stub_of(server) as stub:
        assert trained(server, "running")
        assert get(stub, "running").result.weights_sha256 == get(stub, "undisturbed").result.weights_sha256


def rewritten(folder: Path, job_id: str, change: Callable[[bytes], bytes]) -> None:
    """Changes the specification of a job on record, as another release may have written it."""
    with sqlite3.connect(folder / "jobs.sqlite") as database:
        (blob,) = database.execute("SELECT job FROM jobs WHERE id = ?", (job_id,)).fetchone()
        job = job_pb2.Job.FromString(blob)
        spec = job_pb2.JobSpec.FromString(change(job.spec.SerializeToString()))
        job.spec.CopyFrom(spec)
        database.execute("UPDATE jobs SET job = ? WHERE id = ?", (job.SerializeToString(), job_id))
    database.close()


def _newer_field(spec: bytes) -> bytes:
    # Field 99, a number: 1.
    return spec + b"\x98\x06\x01"


def _newer_value(spec: bytes) -> bytes:
    changed = job_pb2.JobSpec.FromString(spec)
    changed.model.loss = "a_loss_of_tomorrow"
    return changed.SerializeToString()


@pytest.mark.parametrize(("change", "words"), [(_newer_field, "field 99 of the job"), (_newer_value, "a_loss_of_tomorrow")])
def test_a_job_that_asks_for_what_this_release_does_not_know_is_not_run(
    tmp_path: Path, change: Callable[[bytes], bytes], words: str
) -> None:
    with running_server(tmp_path) as server, stub_of(server) as stub:
        create(stub, job_id="foreign")
        create(stub, job_id="own")
    rewritten(tmp_path, "foreign", change)
    for _ in range(2):
        with running_server(tmp_path) as server, stub_of(server) as stub:
            job = get(stub, "foreign")
            assert job.state == job_pb2.JOB_STATE_FAILED
            assert job.error.startswith("accepted by another release of Thalweg")
            assert words in job.error
            told = refusal(lambda: stub.ResumeJob(pb.ResumeJobRequest(job_id="foreign")))
            assert told.reason == "NOT_RESUMABLE"
            assert words in told.message
            assert get(stub, "own").state == job_pb2.JOB_STATE_QUEUED
            hold_together(stub, "foreign")
    # Nothing of it is lost to the release that knows it.
    with sqlite3.connect(tmp_path / "jobs.sqlite") as database:
        (blob,) = database.execute("SELECT job FROM jobs WHERE id = 'foreign'").fetchone()
    database.close()
    kept = job_pb2.Job.FromString(blob).spec
    with pytest.raises(ForeignSpecError):
        known(kept)
    with running_server(tmp_path) as server, stub_of(server) as stub:
        assert trained(server, "own")


def test_a_field_that_is_unknown_anywhere_is_found() -> None:
    spec = validation.complete(make_spec())
    assert known(spec) == spec
    layer = spec.model.layers[0]
    layer.MergeFrom(job_pb2.Layer.FromString(layer.SerializeToString() + b"\x98\x06\x01"))
    with pytest.raises(ForeignSpecError, match=r"field 99 of model.layers\[0\]"):
        known(spec)


def test_a_job_that_starts_from_anothers_parameters_is_known(tmp_path: Path) -> None:
    with running_server(tmp_path) as server, stub_of(server) as stub:
        first = create(stub)
        assert trained(server, first.id)
        spec = make_spec()
        spec.model.initial.job = first.id
        stub.CreateJob(pb.CreateJobRequest(spec=spec, job_id="second"))
        accepted = get(stub, "second").spec
        assert accepted.model.initial.sha256
    with running_server(tmp_path) as server, stub_of(server) as stub:
        assert get(stub, "second").spec == accepted
        stub.CancelJob(pb.CancelJobRequest(job_id="second"))
        stub.ResumeJob(pb.ResumeJobRequest(job_id="second"))
        assert trained(server, "second")


def test_a_folder_of_a_newer_release_is_refused_when_the_server_starts(tmp_path: Path) -> None:
    with running_server(tmp_path):
        pass
    part = tmp_path / "uploads" / "a-name-of-tomorrow.part"
    part.write_bytes(b"half of it")
    with sqlite3.connect(tmp_path / "jobs.sqlite") as database:
        database.execute(f"PRAGMA user_version = {schema.FORMAT + 1}")
        database.execute("INSERT INTO releases (release, format) VALUES ('7.0', ?)", (schema.FORMAT + 1,))
    database.close()
    told = refuses(tmp_path)
    assert f"data format {schema.FORMAT + 1}, written by Thalweg 7.0" in told
    assert f"formats up to {schema.FORMAT}" in told
    assert "Start a release as new as the one that wrote it" in told
    # And left as it was.
    assert part.exists()
