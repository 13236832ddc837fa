"""The limit of a worker's time, beside which some work may take more."""

import queue
from math import inf

import pytest

from tests.end_to_end.command import wait_for
from thalweg.v1 import parameter_service_pb2 as pb
from thalweg.workers import watch
from thalweg.workers.watch import Watch


def test_what_may_take_more_is_overdue_only_after_that(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    sent: queue.SimpleQueue[pb.WorkRequest] = queue.SimpleQueue()
    monkeypatch.setattr(watch, "monotonic", lambda: now)
    with Watch(sent.put, 0.01, 10.0, 5.0, own_process=False) as watching, watching.doing("compiling the model", 60.0):
        now = 64.0
        for _ in range(20):
            # The time is looked at after each heartbeat.
            assert sent.get(timeout=60).HasField("heartbeat")
        now = 66.0
        failures: list[str] = []

        def failed() -> bool:
            message = sent.get(timeout=60)
            failures.extend([message.failure.problem] if message.HasField("failure") else [])
            return bool(failures)

        wait_for(failed)
    assert failures == ["training.task_seconds: compiling the model took longer than 5 s, and 60 s"]


def test_heartbeats_say_how_far_a_download_is() -> None:
    sent: queue.SimpleQueue[pb.WorkRequest] = queue.SimpleQueue()
    bytes_ = iter(range(1_000_000))

    def heard(wanted: str) -> bool:
        return sent.get(timeout=60).heartbeat.doing.startswith(wanted)

    with Watch(sent.put, 0.01, 10.0, 0.0, own_process=False) as watching, watching.doing("loading the data"):
        assert sent.get(timeout=60).heartbeat.doing == ""
        with watching.doing("downloading", inf, lambda: f"downloading: {next(bytes_)} bytes"):
            wait_for(lambda: heard("downloading: 2 bytes"))
        wait_for(lambda: sent.get(timeout=60).heartbeat.doing == "")
