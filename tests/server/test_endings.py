"""A job ends whatever fails at its end, and what it leaves is kept in memory until there is room for it."""

import errno
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.end_to_end.cluster import running_server, stub_of, train
from tests.end_to_end.command import wait_for
from tests.end_to_end.peer import DEADLINE, Peer
from tests.end_to_end.refusals import refusal
from tests.server.test_training_service import PREPARED, create, make_spec, upload
from thalweg.client import Client
from thalweg.server.arrays.local import LocalArrays
from thalweg.server.arrays.trajectory import Trajectory
from thalweg.server.driving import jobs as jobs_module
from thalweg.server.driving.job.holdings import Holdings
from thalweg.server.driving.lifecycle.result_writer import ResultWriter
from thalweg.server.process import Server
from thalweg.server.storage import room as room_module
from thalweg.server.storage.checkpoints import Checkpoints
from thalweg.server.storage.folder import DataFolder
from thalweg.server.storage.uploads import UploadFiles
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub

MODEL = {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running_server(tmp_path) as server:
        yield server


def test_parameters_that_find_no_room_are_kept_in_memory_until_they_do(
    server: Server, stub: TrainingServiceStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_module, "RETRY_SECONDS", 0.001)
    undisturbed = train(server, make_spec())
    in_the_way = tmp_path / "jobs" / "job-2" / "parameters.part"
    in_the_way.mkdir(parents=True)
    training = threading.Thread(target=train, args=(server, make_spec()))
    training.start()

    def waiting() -> bool:
        jobs = stub.ListJobs(pb.ListJobsRequest()).jobs
        return jobs[0].id == "job-2" and "its result is kept in memory until there is disk space" in jobs[0].status

    wait_for(waiting)
    job = stub.GetJob(pb.GetJobRequest(job_id="job-2")).job
    assert job.state == job_pb2.JOB_STATE_RUNNING
    assert str(tmp_path) in job.status
    assert "Is a directory" in job.status
    # Others continue meanwhile.
    assert train(server, make_spec()).state == job_pb2.JOB_STATE_SUCCEEDED
    told = refusal(lambda: stub.CancelJob(pb.CancelJobRequest(job_id="job-2")))
    assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")
    in_the_way.rmdir()
    training.join()
    job = stub.GetJob(pb.GetJobRequest(job_id="job-2")).job
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED
    assert job.status == ""
    assert job.result.weights_sha256 == undisturbed.result.weights_sha256
    assert list(stub.DownloadParameters(pb.DownloadParametersRequest(job_id="job-2")))


def test_a_job_that_waits_for_room_and_cannot_be_deleted_fails_and_is_deleted_later(
    server: Server, stub: TrainingServiceStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_module, "RETRY_SECONDS", 0.001)
    (tmp_path / "jobs" / "job-1" / "parameters.part").mkdir(parents=True)
    training = threading.Thread(target=train, args=(server, make_spec()), daemon=True)
    training.start()
    wait_for(
        lambda: any("kept in memory until there is disk space" in job.status for job in stub.ListJobs(pb.ListJobsRequest()).jobs)
    )

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(DataFolder, "delete_job", fails)
        told = refusal(lambda: stub.DeleteJob(pb.DeleteJobRequest(job_id="job-1"), timeout=DEADLINE))
    assert told.reason == "STORAGE_FAILED"
    wait_for(lambda: stub.GetJob(pb.GetJobRequest(job_id="job-1")).job.state == job_pb2.JOB_STATE_FAILED)
    training.join()
    job = stub.GetJob(pb.GetJobRequest(job_id="job-1")).job
    assert "the deletion failed" in job.error
    stub.DeleteJob(pb.DeleteJobRequest(job_id="job-1"), timeout=DEADLINE)
    assert refusal(lambda: stub.GetJob(pb.GetJobRequest(job_id="job-1"))).reason == "JOB_NOT_FOUND"


def test_parameters_that_cannot_be_written_for_another_reason_fail_the_job(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(DataFolder, "save_parameters", lambda *_: (_ for _ in ()).throw(ValueError("a mistake")))
        job = train(server, make_spec())
    assert job.state == job_pb2.JOB_STATE_FAILED
    assert job.error == "the server could not write to its data folder: a mistake"
    assert train(server, make_spec()).state == job_pb2.JOB_STATE_SUCCEEDED


_NO_MEMORY = MemoryError("no memory")


def _fails(*_: object, **__: object) -> Any:
    raise _NO_MEMORY


@pytest.mark.parametrize("end", ["cancelled", "succeeded"])
@pytest.mark.parametrize(
    ("owner", "name", "state"),
    [
        (LocalArrays, "hand_over", job_pb2.JOB_STATE_FAILED),
        (Holdings, "_collect", job_pb2.JOB_STATE_FAILED),
        (Checkpoints, "write", None),
        (Holdings, "checkpoint", None),
        (Trajectory, "add", None),
        (DataFolder, "save_trajectory", None),
        (ResultWriter, "keep", job_pb2.JOB_STATE_FAILED),
        (ResultWriter, "remove_checkpoints", None),
    ],
)
def test_a_job_ends_whatever_fails_at_its_end(
    owner: type, name: str, state: job_pb2.JobState.ValueType | None, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server(tmp_path, max_running_jobs=1) as server, stub_of(server) as stub:
        if end == "succeeded":
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, _fails)
                job = train(server, make_spec())
            usual = job_pb2.JOB_STATE_SUCCEEDED
        else:
            job = create(stub)
            with Peer(server.address) as peer:
                peer.hello(job.id)
                peer.prepare(PREPARED)
                peer.initialize(np.array([1, 2, 3], np.float32))
                with monkeypatch.context() as patch:
                    patch.setattr(owner, name, _fails)
                    job = stub.CancelJob(pb.CancelJobRequest(job_id=job.id), timeout=DEADLINE).job
                    assert job == stub.CancelJob(pb.CancelJobRequest(job_id=job.id), timeout=DEADLINE).job
                peer.receive("goodbye")
            usual = job_pb2.JOB_STATE_CANCELLED
        if (name, end) not in (("remove_checkpoints", "cancelled"), ("checkpoint", "succeeded"), ("write", "succeeded")):
            assert job.state == (usual if state is None else state)
            assert ("no memory" in job.error) == (state is not None)
        # Its place is free.
        assert train(server, make_spec()).state == job_pb2.JOB_STATE_SUCCEEDED


def test_cancelling_answers_though_the_end_takes_long(
    server: Server, stub: TrainingServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "ANSWER_SECONDS", 0.01)
    writing, go_on, save = threading.Event(), threading.Event(), DataFolder.save_parameters

    def slow(*arguments: Any) -> None:
        writing.set()
        assert go_on.wait(DEADLINE)
        save(*arguments)

    monkeypatch.setattr(DataFolder, "save_parameters", slow)
    job = create(stub)
    with Peer(server.address) as peer:
        peer.hello(job.id)
        peer.prepare(PREPARED)
        peer.initialize(np.array([1, 2, 3], np.float32))
        answered = stub.CancelJob(pb.CancelJobRequest(job_id=job.id)).job
        assert writing.wait(DEADLINE)
        assert answered.state == job_pb2.JOB_STATE_RUNNING
        assert answered.status == "ended; its result is being written"
        go_on.set()
        with Client(str(server.address)) as client:
            assert client.job(job.id).cancel() == "CANCELLED"


@pytest.mark.parametrize("slow", ["save_parameters", "parameters", "export_parameters", "finish"])
def test_jobs_are_accepted_and_scaled_while_files_take_long(
    server: Server, stub: TrainingServiceStub, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    done, waiting = train(server, make_spec()), create(stub)
    owner = UploadFiles if slow == "finish" else DataFolder
    begun, go_on, function = threading.Event(), threading.Event(), getattr(owner, slow)

    def blocking(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(DEADLINE)
        return function(*arguments)

    monkeypatch.setattr(owner, slow, blocking)
    calls: dict[str, Callable[[], object]] = {
        "save_parameters": lambda: train(server, make_spec()),
        "parameters": lambda: list(stub.DownloadParameters(pb.DownloadParametersRequest(job_id=done.id))),
        "export_parameters": lambda: create(stub, model={**MODEL, "initial": {"job": done.id}}),
        "finish": lambda: upload(stub, b"content"),
    }
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(calls[slow])
        assert begun.wait(DEADLINE)
        scaled = stub.ScaleJob(pb.ScaleJobRequest(job_id=waiting.id, workers=2), timeout=DEADLINE / 2).job
        assert scaled.spec.training.workers == 2
        if slow != "export_parameters":
            assert create(stub).id
        assert not call.done()
        go_on.set()
        assert call.result()
