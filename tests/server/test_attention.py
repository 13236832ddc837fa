"""A server that stood still takes nobody for lost who only could not be heard."""

import time
from pathlib import Path

import pytest

from tests.end_to_end.cluster import ThreadFleet, running_server, stub_of
from tests.end_to_end.command import wait_for
from tests.server.specs import make_spec
from thalweg.server.attention import Attention
from thalweg.server.shards import AttendingShard, Shards
from thalweg.v1 import training_service_pb2


@pytest.mark.parametrize(("late", "missed"), [(0.0, 0.0), (0.4, 0.0), (0.6, 0.6), (13.0, 13.0)])
def test_what_is_missed_is_how_late_the_loop_wakes(late: float, missed: float) -> None:
    now = 100.0
    attention = Attention(0.025, 10.0, lambda: now)
    for _ in range(3):
        now += 0.025
        assert attention.missed() == 0.0
        now += 0.025 + late
        assert attention.missed() == pytest.approx(missed)


def test_shards_are_not_silent_while_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    shards, shard = Shards(), AttendingShard("a")
    shards.attending.append(shard)
    now += 13.0
    assert shards.silent(10.0, missed=12.9) == []
    assert shards.silent(10.0) == []
    now += 11.0
    assert shards.silent(10.0) == [shard]


@pytest.mark.parametrize("shared_memory", [True, False])
def test_workers_outlive_a_server_that_stands_still(tmp_path: Path, shared_memory: bool) -> None:
    spec = make_spec(epochs=1_000_000, microbatches=2, batch_size=4, workers=2)
    settings = {"silence_seconds": 0.4, "shared_memory": shared_memory}
    with running_server(tmp_path, **settings) as server, stub_of(server) as stub:
        job = stub.CreateJob(training_service_pb2.CreateJobRequest(spec=spec)).job.id

        def steps() -> int:
            return stub.GetJob(training_service_pb2.GetJobRequest(job_id=job)).job.progress.step

        with ThreadFleet(server.address, 2):
            for _ in range(5):
                before = steps()
                wait_for(lambda before=before: steps() > before)  # type: ignore[misc]
                server._loop.call_soon_threadsafe(time.sleep, 1.0)
            before = steps()
            wait_for(lambda: steps() > before)
            progress = stub.CancelJob(training_service_pb2.CancelJobRequest(job_id=job)).job.progress
    assert progress.contributions.lost_workers == 0
