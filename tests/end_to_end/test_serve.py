"""`thalweg serve` as an operator sees it: its signals, and the lines that its log has for a job."""

import json
import signal
from pathlib import Path

import pytest

from tests.end_to_end.command import Running
from tests.server.test_training_service import make_spec
from thalweg.client import Client
from thalweg.contract.endpoint import Endpoint, parse_address
from thalweg.workers.worker import work


@pytest.fixture
def serving(tmp_path: Path) -> Running:
    return Running(tmp_path, "serve", "--address", "127.0.0.1:0", "--data", str(tmp_path / "data"), "--json")


def test_a_server_outlives_its_terminal(serving: Running) -> None:
    address = json.loads(serving.line())["address"]
    serving.process.send_signal(signal.SIGHUP)
    serving.until("SIGHUP is ignored; SIGTERM stops the process")
    with Client(address) as client:
        assert client.jobs() == []
    serving.process.send_signal(signal.SIGTERM)
    assert serving.end().code == 0
    serving.assert_nothing_left()


def test_the_log_tells_what_happens_to_a_job_and_by_whom(serving: Running) -> None:
    address = json.loads(serving.line())["address"]
    with Client(address) as client:
        job = client.submit(make_spec())
        work(Endpoint(parse_address(address)), job.id, "a-worker")
        other = client.submit(make_spec())
        other.scale(2)
        other.cancel()
        other.resume()
        other.cancel()
        other.delete()
    serving.process.send_signal(signal.SIGTERM)
    log = serving.end().stderr
    told = [line.partition("INFO ")[2].partition(" by ipv4:127.0.0.1:") for line in log.splitlines() if "INFO job" in line]
    assert [what for what, _, _ in told] == [
        "job job-1: accepted",
        "job job-1: submitted",
        "job job-1: worker a-worker joined",
        "job job-1: began",
        "job job-1: ended as SUCCEEDED at step 2",
        "job job-2: accepted",
        "job job-2: submitted",
        "job job-2: scaled to 2 workers",
        "job job-2: cancellation asked for",
        "job job-2: ended as CANCELLED at step 0",
        "job job-2: resumed; the job starts again from the beginning",
        "job job-2: resumed",
        "job job-2: cancellation asked for",
        "job job-2: ended as CANCELLED at step 0",
        "job job-2: deleted",
    ]
    assert [what.partition(": ")[2] for what, by, _ in told if by] == [
        "submitted",
        "submitted",
        "scaled to 2 workers",
        "cancellation asked for",
        "resumed",
        "cancellation asked for",
        "deleted",
    ]
