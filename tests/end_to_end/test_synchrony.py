"""Training that is not bulk-synchronous learns as well, and keeps what it promises."""

from pathlib import Path

import pytest

from tests.end_to_end.cluster import running_server, train
from thalweg.client.jobfile import load_job
from thalweg.v1 import job_pb2

SETTINGS: dict[str, tuple[str, ...]] = {
    "stale": ("training.synchrony.stale.bound=2",),
    "asynchronous": ("training.synchrony.asynchronous={}",),
    "asynchronous, scaled": ("training.synchrony.asynchronous.scale_by_staleness=true",),
    "local": ("training.synchrony.local.steps=8", "training.epochs=60"),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_digits_are_learnt(kind: str, tmp_path: Path) -> None:
    spec = load_job("digits", SETTINGS[kind]).spec
    with running_server(tmp_path) as server:
        job = train(server, spec, workers=3)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    assert job.result.validation.accuracy >= 0.96
    staleness = job.progress.contributions.greatest_staleness
    if kind == "stale":
        assert staleness <= 2
    elif kind == "local":
        assert staleness == 0
