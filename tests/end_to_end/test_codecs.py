"""Digits are learnt with every codec, from fewer bytes."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.end_to_end.cluster import running_server, train
from thalweg.client.jobfile import load_job
from thalweg.contract import codecs
from thalweg.v1 import job_pb2

LOSSY = [kind for kind in codecs.CODECS if kind != "float32"]
# How much of a gradient's, and of the parameters', bytes are sent at most.
SHARES = {"float32": (1.0, 1.0), "bfloat16": (0.5, 0.5), "float16": (0.5, 0.5), "int8": (0.3, 1.0), "top_k": (0.05, 1.0)}


def run(folder: Path, kind: str, workers: int, **settings: Any) -> job_pb2.Job:
    spec = load_job("digits", {f"training.codec.{kind}": {}} | {f"training.{key}": value for key, value in settings.items()}).spec
    # What lies in shared memory does not travel.
    with running_server(folder, shared_memory=False) as server:
        job = train(server, spec, workers)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    return job


@cache
def undisturbed() -> job_pb2.Job:
    """The job as it is, with numbers as they are."""
    with TemporaryDirectory() as folder:
        return run(Path(folder), "float32", 1)


@pytest.mark.parametrize("kind", LOSSY)
def test_digits_are_learnt(kind: str, tmp_path: Path) -> None:
    job = run(tmp_path, kind, 3)
    assert job.result.validation.accuracy >= undisturbed().result.validation.accuracy - 0.01
    assert job.result.train.accuracy >= 0.99


@pytest.mark.parametrize("kind", LOSSY)
@pytest.mark.parametrize("synchrony", ["stale", "asynchronous", "local"])
def test_every_synchrony_goes_with_every_codec(kind: str, synchrony: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"synchrony": {synchrony: {}}}
    if synchrony == "local":
        # The outer momentum does not go well with what comes many rounds late.
        fraction = {"codec.top_k": {"fraction": 0.1}} if kind == "top_k" else {}
        settings = {"synchrony": {"local": {"steps": 8}}, "epochs": 60, **fraction}
    job = run(tmp_path, kind, 3, **settings)
    assert job.result.validation.accuracy >= 0.95
    if synchrony == "asynchronous":
        assert job.progress.contributions.lost_residuals == 0


@pytest.mark.parametrize("kind", codecs.CODECS)
def test_bytes_are_counted(kind: str, tmp_path: Path) -> None:
    job = run(tmp_path, kind, 1, epochs=2, microbatches=3)
    elements, steps = 64 * 256 + 256 + 256 * 10 + 10, job.result.steps
    gradient, parameters = codecs.of_gradients(job.spec, elements), codecs.of_parameters(job.spec, elements)
    sent = job.progress.exchange
    # One worker sends one gradient a step, or, if they are rounded, one for each microbatch; it gets each version once.
    assert sent.gradient_bytes == gradient.size(elements) * steps * (1 if kind == "float32" else 3)
    assert sent.parameter_bytes == parameters.size(elements) * (steps + 1)
    assert gradient.size(elements) <= SHARES[kind][0] * 4 * elements
    assert parameters.size(elements) <= SHARES[kind][1] * 4 * elements
