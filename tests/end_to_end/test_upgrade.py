"""A server resumes jobs that an earlier release began, and leaves those of a later release alone."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import json_format

from tests.end_to_end.cluster import running_server, stub_of
from tests.end_to_end.peer import DEADLINE
from thalweg.contract.endpoint import Endpoint
from thalweg.contract.layout import Slab, ordered_names
from thalweg.server.process import Server
from thalweg.server.storage import checkpoints
from thalweg.server.storage.disk import RealDisk
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.workers.worker import work

DATA = Path(__file__).parents[1] / "data"
# The job whose checkpoints of step 20 lie in tests/data.
SPEC = json_format.ParseDict(
    {
        "model": {"layers": [{"dense": {"units": 2}}, {"tanh": {}}, {"dense": {"units": 1}}], "loss": "mean_squared_error"},
        "data": {"builtin": "xor"},
        "training": {"epochs": 40, "batch_size": 4, "microbatches": 1},
        "optimizer": {"adam": {"amsgrad": True, "learning_rate": 0.05}},
    },
    job_pb2.JobSpec(),
)


def begin(data: Path, job_id: str) -> None:
    """Has a server accept the job, and end."""
    with running_server(data) as server, stub_of(server) as stub:
        stub.CreateJob(pb.CreateJobRequest(spec=SPEC, job_id=job_id))


def finish(server: Server, job_id: str) -> tuple[job_pb2.Job, Slab]:
    """Works for the job to its end. Gives its record and its parameters."""
    work(Endpoint(server.address), job_id, "w")
    with stub_of(server) as stub:
        job = stub.GetJob(pb.GetJobRequest(job_id=job_id)).job
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
        parts = list(stub.DownloadParameters(pb.DownloadParametersRequest(job_id=job_id), timeout=DEADLINE))
    # The checkpoints do not say the author's order.
    assert ordered_names(parts[0].header.layout) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    return job, np.frombuffer(b"".join(part.data for part in parts), np.float32)


def put(checkpoint: Path, data: Path, job_id: str) -> None:
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    folder = data / "jobs" / job_id / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(checkpoint, folder / f"{20:012d}-{digest}.safetensors")


# The first holds Adam's moments, the second their sums, as today's; neither has the number of a format.
@pytest.mark.parametrize("name", ["checkpoint_moments", "checkpoint_format_1"])
def test_a_job_goes_on_from_the_checkpoint_of_an_earlier_release(tmp_path: Path, name: str) -> None:
    begin(tmp_path, "whole")
    begin(tmp_path, "interrupted")
    put(DATA / f"{name}.safetensors", tmp_path, "interrupted")
    with running_server(tmp_path) as server:
        with stub_of(server) as stub:
            status = stub.GetJob(pb.GetJobRequest(job_id="interrupted")).job.progress
            assert status.step == 20
        _, wanted = finish(server, "whole")
        job, found = finish(server, "interrupted")
    assert job.result.steps == 40
    # Adam's arithmetic was another before, and the machine may have been.
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_a_job_of_a_newer_release_is_refused_and_can_be_resumed_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, "a")
    with monkeypatch.context() as newer:
        newer.setattr(checkpoints, "FORMAT", checkpoints.FORMAT + 1)
        found = checkpoints.decode(memoryview((DATA / "checkpoint_format_1.safetensors").read_bytes()))
        checkpoints.Checkpoints(tmp_path / "jobs" / "a" / "checkpoints", RealDisk()).write(found)
        with running_server(tmp_path) as server, stub_of(server) as stub:
            assert stub.GetJob(pb.GetJobRequest(job_id="a")).job.progress.step == 20
    with running_server(tmp_path) as server, stub_of(server) as stub:
        list(stub.WatchJob(pb.WatchJobRequest(job_id="a"), timeout=DEADLINE))
        job = stub.GetJob(pb.GetJobRequest(job_id="a")).job
        assert job.state == job_pb2.JOB_STATE_FAILED
        assert f"format {checkpoints.FORMAT + 1}" in job.error
        assert f"up to {checkpoints.FORMAT}" in job.error
    with monkeypatch.context() as newer:
        newer.setattr(checkpoints, "FORMAT", checkpoints.FORMAT + 1)
        with running_server(tmp_path) as server, stub_of(server) as stub:
            stub.ResumeJob(pb.ResumeJobRequest(job_id="a"))
            assert finish(server, "a")[0].result.steps == 40
