"""Training a model of each kind equals a plain loop, bit for bit, whatever the number of workers."""

from pathlib import Path
from typing import Any

import pytest
from threadpoolctl import threadpool_limits

from tests.end_to_end import reference as loops
from tests.end_to_end.cluster import running_server, stub_of, train
from tests.end_to_end.reference import reference
from tests.end_to_end.test_shards import notices, sharded
from tests.learning.kinds.cases import MODELS, require, settled, spec_of
from thalweg.contract import layout as layouts
from thalweg.server.deciding import plan
from thalweg.v1 import job_pb2, training_service_pb2

# Few samples, of few sizes: each worker compiles what JAX computes for each size.
_DATA: dict[str, Any] = {"builtin": "xor", "validation_fraction": 0.25}
_TRAINING: dict[str, Any] = {"epochs": 5, "batch_size": 3, "microbatches": 2}
_VARIANTS: dict[str, dict[str, Any]] = {
    "bulk": {},
    "local steps": {"synchrony": {"local": {"steps": 2}}},
}
# Without a gradient of the model's own, local steps are not possible.
_CASES = [(kind, "bulk") for kind in MODELS if "mean" not in kind] + [
    (kind, "local steps") for kind in ("torch", "jax", "python")
]


@pytest.mark.parametrize(("kind", "variant"), _CASES, ids=lambda value: value)
def test_training_equals_a_plain_loop(kind: str, variant: str, tmp_path: Path) -> None:
    require(kind)
    spec = spec_of(kind, 2, 2, training={**_TRAINING, **_VARIANTS[variant]}, data=_DATA)
    # Workers are threads here; what they set for the process is set around all of them.
    with settled(spec), threadpool_limits(1, "blas"), running_server(tmp_path, allow_code=True) as server:
        expected, losses = reference(spec)
        for workers in (1, 2, 3):
            job = train(server, spec, workers)
            assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
            assert job.result.steps == len(losses)
            assert job.result.weights_sha256 == layouts.digest(expected)
            assert job.result.validation.loss > 0


def test_a_compiled_module_over_shards_with_a_codec_equals_a_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("torch, compiled")
    # Four chunks.
    monkeypatch.setattr(plan, "CHUNK_BYTES", 40)
    monkeypatch.setattr(loops, "CHUNK_BYTES", 40)
    spec = spec_of("torch, compiled", 2, 2, training={**_TRAINING, "codec": {"bfloat16": {}}}, data=_DATA)
    with settled(spec), threadpool_limits(1, "blas"), sharded(tmp_path, 2, allow_code=True) as (server, _):
        expected, _ = reference(spec)
        job = train(server, spec, 2)
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
        assert any("split over" in text for text in notices(server, job.id))
    assert job.result.weights_sha256 == layouts.digest(expected)


def test_the_server_knows_that_workers_take_differences(tmp_path: Path) -> None:
    """Then it shares out the coordinates, and says what that will cost."""
    with running_server(tmp_path, allow_code=True) as server, stub_of(server) as stub:
        said = {}
        for kind in ("python", "python, numerical"):
            job = train(server, spec_of(kind, 2, 2, training=_TRAINING, data=_DATA))
            events = [response.event for response in stub.WatchJob(training_service_pb2.WatchJobRequest(job_id=job.id))]
            said[kind] = [event.notice.text for event in events if event.HasField("notice")]
    assert not said["python"]
    assert said["python, numerical"][0].startswith(
        "numerical differentiation: 6 parameters × 2 evaluations of the loss = 12 a step"
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_notice_says_once_that_tensors_are_converted(dtype: str, tmp_path: Path) -> None:
    require("torch")
    spec = spec_of("torch", 2, 2, training=_TRAINING, data=_DATA)
    spec.model.torch.entrypoint, spec.model.dtype = "tests.learning.kinds.torch_model:double", dtype
    with settled(spec), running_server(tmp_path, allow_code=True) as server, stub_of(server) as stub:
        job = train(server, spec, 2)
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
        events = [response.event for response in stub.WatchJob(training_service_pb2.WatchJobRequest(job_id=job.id))]
    texts = [event.notice.text for event in events if event.HasField("notice")]
    told = "model.dtype: the code makes 0.weight and 5 more tensors of type float64, which the job converts to float32"
    assert texts == ([f'{told}; to train with float64, set model.dtype = "float64"'] if dtype == "float32" else [])


def test_a_mistake_in_the_code_is_the_jobs_error(tmp_path: Path) -> None:
    spec = spec_of("python", 65, 10)
    with running_server(tmp_path, allow_code=True) as server:
        job = train(server, spec)
    assert job.state == job_pb2.JOB_STATE_FAILED
    assert job.error.startswith("model.python: ValueError: matmul: ")
    assert "tests/learning/kinds/python_model.py:" in job.error
