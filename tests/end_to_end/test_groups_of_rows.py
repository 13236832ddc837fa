"""Training from a Parquet file that is read by groups of rows: equal bits whatever the cluster does, against a plain loop."""

import hashlib
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from google.protobuf import json_format
from threadpoolctl import threadpool_limits

from tests.end_to_end.cluster import running_server, stub_of, train
from tests.end_to_end.reference import reference
from tests.learning.parquets import numbers
from thalweg.contract import layout as layouts
from thalweg.contract.endpoint import Endpoint
from thalweg.contract.errors import ThalwegError
from thalweg.learning import data
from thalweg.learning.data import memory
from thalweg.learning.data.groups import Groups
from thalweg.server import validation
from thalweg.server.process import Server
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.workers.worker import work

BASE: dict[str, Any] = {
    "model": {"layers": [{"dense": {"units": 8}}, {"relu": {}}, {"dense": {"units": 1}}], "loss": "mean_squared_error"},
    "data": {"parquet": "trips.parquet", "validation_fraction": 0.1, "standardize": True, "window": 2},
    "training": {"epochs": 2, "batch_size": 100, "microbatches": 9},
    "optimizer": {"adam": {}},
}
LOCAL: dict[str, Any] = {"training": {**BASE["training"], "synchrony": {"local": {"steps": 4}}}}


@pytest.fixture
def trips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of many groups of rows, whose samples are too large to be held in memory."""
    monkeypatch.setattr(memory, "MAX_HELD", 0)
    path = tmp_path / "trips.parquet"
    pq.write_table(numbers(3000, 0), path, row_group_size=130)
    return path


def spec_of(server: Server, path: Path, more: dict[str, Any]) -> job_pb2.JobSpec:
    spec = json_format.ParseDict({**BASE, **more}, job_pb2.JobSpec())
    content = path.read_bytes()
    header = pb.UploadHeader(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    with stub_of(server) as stub:
        spec.data.sha256 = stub.UploadData(iter([pb.UploadDataRequest(header=header), pb.UploadDataRequest(data=content)])).sha256
    return spec


def plain(spec: job_pb2.JobSpec, path: Path) -> str:
    complete = validation.complete(spec)
    dataset = data.load(complete, lambda _: path)
    assert isinstance(dataset.train, Groups)
    assert len(dataset.train.groups) == 24
    with threadpool_limits(1, "blas"):
        return layouts.digest(reference(complete, path)[0])


@pytest.mark.parametrize("more", [{}, LOCAL], ids=["bulk", "local steps"])
def test_training_by_groups_of_rows_equals_a_plain_loop_on_any_number_of_workers(
    more: dict[str, Any], trips: Path, tmp_path: Path
) -> None:
    with running_server(tmp_path / "server") as server:
        spec = spec_of(server, trips, more)
        wanted = plain(spec, trips)
        for workers in (1, 2, 3, 7):
            job = train(server, spec, workers)
            assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
            assert job.result.weights_sha256 == wanted


def test_training_by_groups_of_rows_is_resumed_in_mid_epoch_with_equal_bits(trips: Path, tmp_path: Path) -> None:
    with running_server(tmp_path / "server") as server:
        spec = spec_of(server, trips, {"training": {**BASE["training"], "epochs": 30}})
        wanted = plain(spec, trips)
        with stub_of(server) as stub:
            job = stub.CreateJob(pb.CreateJobRequest(spec=spec)).job
            workers = working(server, job.id, 2)
            for response in stub.WatchJob(pb.WatchJobRequest(job_id=job.id)):
                if response.event.HasField("steps_taken") and response.event.steps_taken.first_step >= 40:
                    break
    for worker in workers:
        worker.join()
    with running_server(tmp_path / "server") as server, stub_of(server) as stub:
        # It was stopped in the middle, and ends in the second run.
        resumed = stub.GetJob(pb.GetJobRequest(job_id=job.id)).job
        assert 40 <= resumed.progress.step < 27 * 30
        workers = working(server, job.id, 3)
        for response in stub.WatchJob(pb.WatchJobRequest(job_id=job.id)):
            if response.event.HasField("state_changed"):
                job = response.event.state_changed.job
        for worker in workers:
            worker.join()
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    assert job.result.weights_sha256 == wanted


def working(server: Server, job: str, count: int) -> list[threading.Thread]:
    """Workers of a job, which are threads."""

    def until_the_server_ends(name: str) -> None:
        with suppress(ThalwegError):
            work(Endpoint(server.address), job, name)

    workers = [threading.Thread(target=until_the_server_ends, args=(f"worker-{i}",)) for i in range(count)]
    for worker in workers:
        worker.start()
    return workers
