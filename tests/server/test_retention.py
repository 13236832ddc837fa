"""Results that are removed because of their age: what goes, what stays, and that jobs go on as if nothing had been removed."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.data.make_data_folder import EQUAL
from tests.end_to_end.cluster import running_server, stub_of
from tests.end_to_end.command import wait_for
from tests.end_to_end.refusals import refusal
from tests.server.test_backup import finish
from tests.server.test_training_service import create, events_of
from tests.server.test_upgrade import FOLDERS, get, hold_together, unpacked, version_of
from thalweg.server.deciding.retention import expires
from thalweg.server.storage.folder import DataFolder
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub

DAY = 86400.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with jobs of every kind, of which one is kept."""
    folder = unpacked(FOLDERS[-1], tmp_path)
    with running_server(folder, keep_uploads_seconds=1e9) as server, stub_of(server) as stub:
        assert stub.KeepJob(pb.KeepJobRequest(job_id="uploaded", kept=True)).job.kept
        assert stub.KeepJob(pb.KeepJobRequest(job_id="queued", kept=True)).job.kept
        assert not stub.KeepJob(pb.KeepJobRequest(job_id="queued", kept=False)).job.kept
    return folder


@pytest.mark.parametrize(
    ("state", "kept", "age", "expected"),
    [
        (job_pb2.JOB_STATE_SUCCEEDED, False, DAY, True),
        (job_pb2.JOB_STATE_SUCCEEDED, False, DAY - 1, False),
        (job_pb2.JOB_STATE_SUCCEEDED, True, 9 * DAY, False),
        (job_pb2.JOB_STATE_FAILED, False, DAY, True),
        (job_pb2.JOB_STATE_CANCELLED, False, DAY, True),
        (job_pb2.JOB_STATE_RUNNING, False, 9 * DAY, False),
        (job_pb2.JOB_STATE_QUEUED, False, 9 * DAY, False),
    ],
)
def test_results_of_ended_jobs_expire_unless_they_are_kept(
    state: job_pb2.JobState.ValueType, kept: bool, age: float, expected: bool
) -> None:
    job = job_pb2.Job(state=state, kept=kept, result=job_pb2.Result(steps=1))
    job.end_time.FromSeconds(1000)
    assert expires(job, 1000 + age, DAY) is expected
    job.result_removed_time.FromSeconds(2000)
    assert not expires(job, 1000 + age, DAY)
    # It ended before it had parameters.
    job.ClearField("result_removed_time")
    job.ClearField("result")
    assert not expires(job, 1000 + age, DAY)


def parameters(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("jobs/*/parameters.safetensors")}


def told_that_it_went(stub: TrainingServiceStub, job_id: str) -> bool:
    return "removed because of its age" in events_of(stub, job_id)[-1].notice.text


def test_old_results_go_and_all_that_jobs_need_stays(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert parameters(folder) == {"undisturbed", "failed", "uploaded", "cancelled"}
    uploads = {path.name for path in (folder / "uploads").iterdir()}
    with running_server(folder, keep_results_seconds=0.0, keep_uploads_seconds=1e9) as server, stub_of(server) as stub:
        for job_id in ("undisturbed", "failed", "cancelled"):
            wait_for(partial(told_that_it_went, stub, job_id))
            assert get(stub, job_id).HasField("result_removed_time")
            hold_together(stub, job_id)
            assert f"job {job_id}: its result was removed because of its age: " in caplog.text
            assert any("RemoveResult" in entry.text for entry in stub.GetStory(pb.GetStoryRequest(job_id=job_id)).entries)
        assert parameters(folder) == {"uploaded"}
        assert not list(folder.glob("jobs/undisturbed/*.safetensors"))
        downloads: list[Callable[[], object]] = [
            lambda: list(stub.DownloadParameters(pb.DownloadParametersRequest(job_id="undisturbed"))),
            lambda: list(stub.DownloadTrajectory(pb.DownloadTrajectoryRequest(job_id="undisturbed"))),
        ]
        for download in downloads:
            told = refusal(download)
            assert told.reason == "RESULT_REMOVED"
            assert "thalweg jobs keep" in told.message
        initial = {"initial": {"job": "undisturbed"}, "layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"}
        assert "were removed because of their age" in refusal(lambda: create(stub, model=initial)).message
        # What it was is still known, and what others need is there.
        expected = get(stub, "undisturbed").result.weights_sha256
        assert expected
        assert version_of(stub, "uploaded")
        assert version_of(stub, "cancelled") == 17
        assert {path.name for path in (folder / "uploads").iterdir()} == uploads
    with running_server(folder, keep_uploads_seconds=1e9) as server, stub_of(server) as stub:
        assert get(stub, "uploaded").kept
        finish(server, stub, expected, EQUAL)
        # It has a result again.
        assert not get(stub, "cancelled").HasField("result_removed_time")


def test_uploads_of_jobs_whose_results_are_gone_expire_too(folder: Path) -> None:
    with running_server(folder, keep_uploads_seconds=1e9) as server, stub_of(server) as stub:
        stub.KeepJob(pb.KeepJobRequest(job_id="uploaded", kept=False))
        used = get(stub, "uploaded").spec.data.sha256
        for job_id in ("waiting", "continued"):
            stub.CancelJob(pb.CancelJobRequest(job_id=job_id))
    with running_server(folder, keep_results_seconds=0.0, keep_uploads_seconds=0.0) as server, stub_of(server) as stub:
        wait_for(lambda: get(stub, "uploaded").HasField("result_removed_time"))
        # A job that was cancelled can be resumed, and needs it.
        assert (folder / "uploads" / used).exists()
        stub.DeleteJob(pb.DeleteJobRequest(job_id="waiting"))
        wait_for(lambda: not (folder / "uploads" / used).exists())


def test_a_removal_that_a_crash_cut_off_is_finished(folder: Path) -> None:
    storage = DataFolder(folder)
    storage.note_result_removed("undisturbed", 1e9)
    storage.close()
    assert "undisturbed" in parameters(folder)
    DataFolder(folder).close()
    assert "undisturbed" not in parameters(folder)
