"""Parameters to start from: what is checked in a file, against a layout, and when a job is created."""

import hashlib
import sqlite3
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from tests.end_to_end.cluster import running_server, stub_of, train
from tests.end_to_end.refusals import Refusal, refusal
from tests.server.test_storage import make_older
from tests.server.test_training_service import LAYOUT, create, make_spec, upload
from thalweg.contract import layout as layouts
from thalweg.server.process import Server
from thalweg.server.storage import initial
from thalweg.server.storage.folder import DataFolder
from thalweg.server.storage.initial import initial_slab
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub

GOOD: dict[str, Any] = {"0.weight": np.array([[1, 2]], np.float32), "0.bias": np.array([3], np.float32)}


def test_a_slab_is_filled_by_name() -> None:
    slab = initial_slab(LAYOUT, dict(reversed(GOOD.items())))
    assert slab.dtype == layouts.dtype_of(LAYOUT)
    assert slab.tolist() == [1, 2, 3]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"0.bias": None}, "the model's '0.bias' is missing; found: '0.weight'"),
    ({"0.bias": None, "0.weight": None}, "the model's '0.weight', '0.bias' is missing; found: none"),
    (
        {f"x{i}": np.zeros(1) for i in range(7)},
        "the model has no 'x0', 'x1', 'x2', 'x3', 'x4' and 2 more; it has '0.weight', '0.bias'",
    ),
    ({"0.weight": np.zeros((2, 1), np.float32)}, "'0.weight' has the shape [2, 1], but the model's has [1, 2]"),
    ({"0.bias": np.zeros((), np.float32)}, "'0.bias' has the shape [], but the model's has [1]"),
    ({"0.bias": np.zeros(1)}, "'0.bias' is float64, but the model's is float32"),
    ({"0.bias": np.zeros(1, np.int32)}, "'0.bias' is int32, but the model's is float32"),
    ({"0.bias": np.array([np.nan], np.float32)}, "'0.bias' has values that are NaN or infinite"),
    ({"0.weight": np.array([[0, -np.inf]], np.float32)}, "'0.weight' has values that are NaN or infinite"),
]


def test_counters_are_ignored_and_constants_may_hold_anything() -> None:
    layout = job_pb2.Layout()
    layout.CopyFrom(LAYOUT)
    layout.tensors.add(name="mask", shape=[2], kind=job_pb2.Tensor.KIND_CONSTANT)
    layout.counters.add(name="batches")
    mask, batches = np.array([0, -np.inf], np.float32), np.array(7)
    for given in ({}, {"batches": batches}):
        assert initial_slab(layout, {**GOOD, "mask": mask, **given}).tolist() == [1, 2, 3, 0, -np.inf]
    with pytest.raises(ValueError, match="the model has no 'other'"):
        initial_slab(layout, {**GOOD, "mask": mask, "other": batches})
    layout.tensors[2].kind = job_pb2.Tensor.KIND_STATISTIC
    with pytest.raises(ValueError, match="'mask' has values that are NaN or infinite"):
        initial_slab(layout, {**GOOD, "mask": mask})


def test_a_tensor_may_be_given_by_any_of_its_names() -> None:
    layout = job_pb2.Layout()
    layout.CopyFrom(LAYOUT)
    layout.aliases.add(name="head.bias", tensor="0.bias")
    layout.fixed.add(name="mask", dtype="bool", shape=[1], data=b"\1")
    for given in ({"0.bias": GOOD["0.bias"]}, {"head.bias": GOOD["0.bias"]}, {**GOOD, "head.bias": np.zeros(1, np.float32)}):
        found = initial_slab(layout, {"0.weight": GOOD["0.weight"], "mask": np.array([True]), **given})
        assert found.tolist() == [1, 2, 3]


def test_integers_of_all_types_may_be_in_a_file(tmp_path: Path) -> None:
    save_file({**GOOD, "mask": np.array([True]), "ids": np.array([1], np.int16)}, tmp_path / "a.safetensors")
    initial.check(tmp_path / "a.safetensors", "float32")


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_what_does_not_fit_the_model_is_told(changes: dict[str, Any], message: str) -> None:
    tensors = {name: tensor for name, tensor in {**GOOD, **changes}.items() if tensor is not None}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        initial_slab(LAYOUT, tensors)
    assert str(caught.value) == message


def test_a_file_is_checked_without_its_values(tmp_path: Path) -> None:
    path = tmp_path / "parameters.safetensors"
    save_file(GOOD, path)
    initial.check(path, "float32")
    save_file({**GOOD, "batches": np.array(7)}, tmp_path / "counted.safetensors")
    initial.check(tmp_path / "counted.safetensors", "float32")
    with pytest.raises(ValueError, match=r"'0\.bias' is of type F32, but model\.dtype is float64, which needs F64"):
        initial.check(path, "float64")
    assert {name: tensor.tolist() for name, tensor in initial.read(path).items()} == {"0.weight": [[1, 2]], "0.bias": [3]}
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is not a whole safetensors file"):
            initial.check(path, "float32")
    path.unlink()
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        initial.check(path, "float32")


def refused(stub: TrainingServiceStub, source: dict[str, Any], dtype: str = "float32") -> Refusal:
    """How a job that starts from something is refused."""
    model = {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error", "dtype": dtype, "initial": source}
    told = refusal(lambda: create(stub, model=model))
    assert len(stub.ListJobs(pb.ListJobsRequest()).jobs) == 0 or source.get("job")
    return told


def starting_from(source: dict[str, Any]) -> job_pb2.JobSpec:
    return make_spec(model={"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error", "initial": source})


@pytest.mark.parametrize(
    ("source", "field", "message"),
    [
        ({}, "model.initial", "one of these must be given: job, file"),
        ({"job": ""}, "model.initial.job", "must not be empty"),
        ({"job": "a", "sha256": "0" * 64}, "model.initial.sha256", "the parameters are a job's; leave it out"),
        ({"job": "nobody"}, "model.initial.job", "there is no job 'nobody' on this server"),
        ({"job": "../a" * 9999}, "model.initial.job", "there is no job '../a../a"),
        ({"file": "", "sha256": "0" * 64}, "model.initial.file", "must not be empty"),
        ({"file": "a"}, "model.initial.file", "upload the file first (UploadData) and give its SHA-256 in model.initial.sha256"),
        ({"file": "a", "sha256": "x"}, "model.initial.sha256", "invalid value 'x'; use 64 lower-case hexadecimal digits"),
    ],
)
def test_what_a_job_cannot_start_from_is_told(
    stub: TrainingServiceStub, source: dict[str, Any], field: str, message: str
) -> None:
    told = refused(stub, source)
    assert (told.code, told.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    assert message in told.message


def test_a_file_that_was_never_uploaded_is_not_found(stub: TrainingServiceStub) -> None:
    told = refused(stub, {"file": "a", "sha256": "0" * 64})
    assert (told.code, told.reason) == (grpc.StatusCode.NOT_FOUND, "DATA_NOT_FOUND")


@pytest.mark.parametrize("damage", [b"", b"no parameters at all"])
def test_a_damaged_file_is_refused(stub: TrainingServiceStub, damage: bytes) -> None:
    for content in (damage, save(GOOD)[:-1]):
        told = refused(stub, {"file": "a", "sha256": upload(stub, content)})
        assert told.fields == ["model.initial.file"]
        assert "is not a whole safetensors file" in told.message


def test_a_file_of_another_dtype_is_refused(stub: TrainingServiceStub) -> None:
    told = refused(stub, {"file": "a", "sha256": upload(stub, save(GOOD))}, dtype="float64")
    assert told.fields == ["model.initial.file"]
    assert "model.dtype is float64" in told.message


def test_an_uploaded_file_is_kept_with_its_job(stub: TrainingServiceStub, tmp_path: Path) -> None:
    sha256 = upload(stub, save(GOOD))
    job = stub.CreateJob(pb.CreateJobRequest(spec=starting_from({"file": "a.safetensors", "sha256": sha256}))).job
    assert job.spec.model.initial == job_pb2.Initial(file="a.safetensors", sha256=sha256)
    stub.CancelJob(pb.CancelJobRequest(job_id=job.id))
    stub.DeleteJob(pb.DeleteJobRequest(job_id=job.id))
    assert not list((tmp_path / "uploads").iterdir())


def test_a_jobs_parameters_are_copied_and_outlive_it(server: Server, stub: TrainingServiceStub, tmp_path: Path) -> None:
    first = train(server, make_spec())
    request = pb.CreateJobRequest(spec=starting_from({"job": first.id}), request_id="once")
    job = stub.CreateJob(request).job
    assert job.spec.model.initial.job == first.id
    path = tmp_path / "uploads" / job.spec.model.initial.sha256
    assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    stub.DeleteJob(pb.DeleteJobRequest(job_id=first.id))
    # What a repeated call finds does not depend on what it would find now.
    assert stub.CreateJob(request).job.spec == job.spec
    assert layouts.digest(initial_slab(LAYOUT, initial.read(path))) == first.result.weights_sha256
    assert refused(stub, {"job": first.id}).fields == ["model.initial.job"]


def test_a_job_that_has_not_ended_or_kept_nothing_is_refused(stub: TrainingServiceStub) -> None:
    create(stub, job_id="other")
    told = refused(stub, {"job": "other"})
    assert told.fields == ["model.initial.job"]
    assert "job other has not ended (it is QUEUED); wait until it has, or cancel it" in told.message
    stub.CancelJob(pb.CancelJobRequest(job_id="other"))
    told = refused(stub, {"job": "other"})
    assert told.fields == ["model.initial.job"]
    assert "job other has no parameters: it ended as CANCELLED before they were initialised" in told.message


def test_damaged_parameters_of_a_job_are_refused(server: Server, stub: TrainingServiceStub, tmp_path: Path) -> None:
    job = train(server, make_spec())
    kept = tmp_path / "jobs" / job.id / "parameters.safetensors"
    kept.write_bytes(kept.read_bytes()[:-1])
    told = refused(stub, {"job": job.id})
    assert told.fields == ["model.initial.job"]
    assert f"the parameters of job {job.id} are damaged" in told.message


def test_a_disk_that_takes_no_export_is_told(server: Server, stub: TrainingServiceStub, monkeypatch: pytest.MonkeyPatch) -> None:
    job = train(server, make_spec())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(DataFolder, "export_parameters", full)
        told = refused(stub, {"job": job.id})
    assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")
    assert stub.CreateJob(pb.CreateJobRequest(spec=starting_from({"job": job.id}))).job.id == "job-2"


def test_uploads_are_known_to_be_used_after_a_restart(tmp_path: Path) -> None:
    with running_server(tmp_path) as server, stub_of(server) as stub:
        sha256 = upload(stub, save(GOOD))
        for _ in range(2):
            stub.CreateJob(pb.CreateJobRequest(spec=starting_from({"file": "a", "sha256": sha256})))
    with sqlite3.connect(tmp_path / "jobs.sqlite") as database:
        make_older(database)
    database.close()
    with running_server(tmp_path) as server, stub_of(server) as stub:
        for job_id, kept in (("job-1", True), ("job-2", False)):
            stub.CancelJob(pb.CancelJobRequest(job_id=job_id))
            stub.DeleteJob(pb.DeleteJobRequest(job_id=job_id))
            assert (tmp_path / "uploads" / sha256).exists() is kept
