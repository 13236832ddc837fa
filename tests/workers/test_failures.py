"""Whose fault a worker says that something is, and what the server makes of that."""

import os
import re
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow
import pytest
from google.protobuf import json_format
from pyarrow import parquet

from tests.end_to_end.cluster import running_server, stub_of
from tests.end_to_end.command import wait_for
from tests.learning.urls import Site, served
from thalweg.contract.endpoint import Endpoint
from thalweg.contract.errors import ThalwegError
from thalweg.learning.data.errors import AbsentError, DataError, MemoryLackError
from thalweg.learning.data.remote.limits import Limits
from thalweg.learning.errors import NodeError
from thalweg.learning.sequential.layers import gelu
from thalweg.learning.sequential.model import ModelError
from thalweg.server import validation
from thalweg.server.deciding.workers.failures import MAX_REPORTS
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.parameter_service_pb2 import Failure
from thalweg.workers.data_access import DataPolicy
from thalweg.workers.differentiator import Differentiator
from thalweg.workers.failures import failure_of
from thalweg.workers.worker import work


@pytest.mark.parametrize(
    ("error", "scope", "problem"),
    [
        (ModelError("model.layers[0]: no"), Failure.SCOPE_JOB, "model.layers[0]: no"),
        (DataError("data.csv: no"), Failure.SCOPE_JOB, "data.csv: no"),
        (MemoryLackError("data.npz: too large"), Failure.SCOPE_NODE, "data.npz: too large"),
        (AbsentError("data.csv: no such file"), Failure.SCOPE_UNSPECIFIED, "data.csv: no such file"),
        (NodeError("needs SciPy"), Failure.SCOPE_NODE, "needs SciPy"),
        (MemoryError(), Failure.SCOPE_NODE, "this worker has too little memory"),
        (OSError(5, "cannot be read"), Failure.SCOPE_NODE, "OSError: [Errno 5] cannot be read"),
        (ImportError("no package"), Failure.SCOPE_NODE, "ImportError: no package"),
        (IndexError("7"), Failure.SCOPE_UNSPECIFIED, "IndexError: 7"),
    ],
)
def test_whose_fault_it_is(error: Exception, scope: Failure.Scope.ValueType, problem: str) -> None:
    assert failure_of(error) == Failure(problem=problem, scope=scope)


def spec() -> job_pb2.JobSpec:
    job = {
        "model": {"layers": [{"dense": {"units": 2}}, {"gelu": {}}, {"dense": {"units": 1}}], "loss": "mean_squared_error"},
        "data": {"builtin": "xor"},
        "optimizer": {"sgd": {}},
    }
    return validation.complete(json_format.ParseDict(job, job_pb2.JobSpec()))


def test_a_package_that_one_node_lacks_fails_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_scipy(path: str) -> None:
        raise NodeError(f"{path}: needs SciPy")

    with running_server(tmp_path) as server, stub_of(server) as stub:
        stub.CreateJob(pb.CreateJobRequest(spec=spec(), job_id="a"))
        with monkeypatch.context() as patch:
            patch.setattr(gelu, "_erf", without_scipy)
            for _ in range(7):
                assert work(Endpoint(server.address), "a", "poor") == "model.layers[1].gelu: needs SciPy"
        job = stub.GetJob(pb.GetJobRequest(job_id="a")).job
        assert job.state == job_pb2.JOB_STATE_RUNNING
        assert work(Endpoint(server.address), "a", "rich") == "the job ended: SUCCEEDED"


def test_a_file_of_a_node_is_read_where_the_operator_allows_it_alone(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.csv").write_text("a,b,y\n0,0,0\n0,1,1\n1,0,1\n1,1,0\n")
    job = spec()
    job.data.csv = f"file://{tmp_path}/files/a.csv"
    with running_server(tmp_path / "server") as server, stub_of(server) as stub:
        stub.CreateJob(pb.CreateJobRequest(spec=job, job_id="a"))
        assert "is not in a folder that this fleet reads" in work(Endpoint(server.address), "a", "strict")
        assert stub.GetJob(pb.GetJobRequest(job_id="a")).job.state == job_pb2.JOB_STATE_RUNNING
        allowed = DataPolicy(Limits(roots=(str(tmp_path / "files"),)))
        assert work(Endpoint(server.address), "a", "open", policy=allowed) == "the job ended: SUCCEEDED"
    with running_server(tmp_path / "server") as server, stub_of(server) as stub:
        header = next(iter(stub.DownloadParameters(pb.DownloadParametersRequest(job_id="a")))).header
        assert len(header.preprocessing.fingerprint) == 64


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a.csv", "cannot be read on this node: No such file or directory"),
        ("*.csv", "on this node"),
        ("", "cannot be read on this node: No such file or directory"),
    ],
)
def test_a_file_that_no_node_has_fails_the_job(name: str, problem: str, tmp_path: Path) -> None:
    job = spec()
    job.data.csv = f"file://{tmp_path}/files/{name}"
    with running_server(tmp_path / "server") as server, stub_of(server) as stub:
        stub.CreateJob(pb.CreateJobRequest(spec=job, job_id="a"))
        for _ in range(MAX_REPORTS):
            # Another node may have it.
            assert stub.GetJob(pb.GetJobRequest(job_id="a")).job.state != job_pb2.JOB_STATE_FAILED
            assert problem in work(Endpoint(server.address), "a", "w", policy=DataPolicy())
        wait_for(lambda: stub.GetJob(pb.GetJobRequest(job_id="a")).job.state == job_pb2.JOB_STATE_FAILED)
        error = stub.GetJob(pb.GetJobRequest(job_id="a")).job.error
        assert "last error: data.csv: " in error
        assert f"file://{tmp_path}/files/{name}" in error
        assert problem in error


def test_the_status_of_a_job_says_what_a_worker_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("THALWEG_DATA_CACHE", str(tmp_path / "cache"))
    content, job = b"a,b,y\n0,0,0\n0,1,1\n1,0,1\n1,1,0\n", spec()
    # The first answer is looked at only, and the second one stops.
    with served(Site(content, broken=[len(content), 10], silent=threading.Event())) as site:
        job.data.csv = f"{site.url}/a.csv?token=secret"
        with running_server(tmp_path / "server", silence_seconds=2.0) as server, stub_of(server) as stub:
            stub.CreateJob(pb.CreateJobRequest(spec=job, job_id="a"))

            def status() -> str:
                return stub.GetJob(pb.GetJobRequest(job_id="a")).job.status

            with ThreadPoolExecutor() as workers:
                ended = workers.submit(work, Endpoint(server.address), "a", "w", policy=DataPolicy())
                told = f"preparing the data and the model: worker w is downloading {site.url}/a.csv: 0.00 MiB of 0.00 MiB"
                wait_for(lambda: status() == told)
                assert site.silent
                site.silent.set()
                assert ended.result() == "the job ended: SUCCEEDED"


def test_a_job_is_not_resumed_on_files_that_have_changed(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("a,b,y\n0,0,0\n0,1,1\n1,0,1\n1,1,0\n")
    before = file.stat()
    job = spec()
    job.data.csv, job.training.epochs = f"file://{file}", 1_000_000
    with running_server(tmp_path / "server") as server, stub_of(server) as stub:
        stub.CreateJob(pb.CreateJobRequest(spec=job, job_id="a"))

        def steps() -> int:
            return stub.GetJob(pb.GetJobRequest(job_id="a")).job.progress.step

        def start() -> "Future[str]":
            return workers.submit(work, Endpoint(server.address), "a", "w", policy=DataPolicy())

        with ThreadPoolExecutor() as workers:
            first = start()
            wait_for(lambda: steps() > 0)
            stub.CancelJob(pb.CancelJobRequest(job_id="a"))
            assert first.result() == "the job ended: CANCELLED"
            done = steps()
            os.utime(file, ns=(1, 1))
            stub.ResumeJob(pb.ResumeJobRequest(job_id="a"))
            told = f"the data's files are not those that the job has learned from: file://{file} has another ETag or time of"
            with pytest.raises(ThalwegError, match=f"^{re.escape(told)}"):
                start().result()
            assert steps() == done
            # Another node may have the files.
            assert stub.GetJob(pb.GetJobRequest(job_id="a")).job.state == job_pb2.JOB_STATE_RUNNING
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
            third = start()
            wait_for(lambda: steps() > done)
            stub.CancelJob(pb.CancelJobRequest(job_id="a"))
            assert third.result() == "the job ended: CANCELLED"


def test_a_job_whose_files_have_changed_everywhere_fails_and_is_resumed_when_they_are_restored(tmp_path: Path) -> None:
    folder, job = tmp_path / "rows", spec()
    folder.mkdir()
    tables = {"a": {"a": [0, 1], "y": [0, 1]}, "b": {"a": [2, 3], "y": [1, 0]}}
    for name, table in tables.items():
        parquet.write_table(pyarrow.table(table), folder / f"{name}.parquet")
    before = (folder / "b.parquet").read_bytes(), (folder / "b.parquet").stat()
    job.data.parquet, job.training.epochs = f"file://{folder}", 1_000_000
    with running_server(tmp_path / "server") as server, stub_of(server) as stub:
        stub.CreateJob(pb.CreateJobRequest(spec=job, job_id="a"))

        def now() -> job_pb2.Job:
            return stub.GetJob(pb.GetJobRequest(job_id="a")).job

        def start() -> "Future[str]":
            return workers.submit(work, Endpoint(server.address), "a", "w", policy=DataPolicy())

        with ThreadPoolExecutor() as workers:
            first = start()
            wait_for(lambda: now().progress.step > 0)
            stub.CancelJob(pb.CancelJobRequest(job_id="a"))
            assert first.result() == "the job ended: CANCELLED"
            done = now().progress.step
            parquet.write_table(pyarrow.table({"a": [2, 3, 4], "y": [1, 0, 1]}), folder / "b.parquet")
            (folder / "c.parquet").write_bytes((folder / "b.parquet").read_bytes())
            stub.ResumeJob(pb.ResumeJobRequest(job_id="a"))
            for _ in range(MAX_REPORTS):
                with pytest.raises(ThalwegError, match=r"b\.parquet has .* bytes, and had .*c\.parquet is new"):
                    start().result()
            wait_for(lambda: now().state == job_pb2.JOB_STATE_FAILED)
            assert "b.parquet has" in now().error
            assert "Restore them (copies on nodes need equal times of modification) and resume the job" in now().error
            (folder / "c.parquet").unlink()
            (folder / "b.parquet").write_bytes(before[0])
            os.utime(folder / "b.parquet", ns=(before[1].st_atime_ns, before[1].st_mtime_ns))
            stub.ResumeJob(pb.ResumeJobRequest(job_id="a"))
            last = start()
            wait_for(lambda: now().progress.step > done)
            stub.CancelJob(pb.CancelJobRequest(job_id="a"))
            assert last.result() == "the job ended: CANCELLED"


def test_an_exception_that_nobody_can_place_fails_the_job_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IndexError("7")

    monkeypatch.setattr(Differentiator, "gradient", broken)
    with running_server(tmp_path) as server, stub_of(server) as stub:
        stub.CreateJob(pb.CreateJobRequest(spec=spec(), job_id="a"))
        for _ in range(MAX_REPORTS):
            assert stub.GetJob(pb.GetJobRequest(job_id="a")).job.state != job_pb2.JOB_STATE_FAILED
            assert work(Endpoint(server.address), "a", "broken") == "IndexError: 7"
        wait_for(lambda: stub.GetJob(pb.GetJobRequest(job_id="a")).job.state == job_pb2.JOB_STATE_FAILED)
        assert stub.GetJob(pb.GetJobRequest(job_id="a")).job.error.endswith("last error: IndexError: 7")
