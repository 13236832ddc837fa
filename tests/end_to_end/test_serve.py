"""`thalweg serve` as an operator sees it: its signals, and the lines that its log has for a job."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.command import Running, service, thalweg, wait_for
from tests.server.test_training_service import make_spec
from thalweg.client import Client
from thalweg.contract.endpoint import Endpoint, parse_address
from thalweg.v1 import training_service_pb2
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub
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
    told = [
        line.partition("INFO ")[2].partition(" by admin at ipv4:127.0.0.1:") for line in log.splitlines() if "INFO job" in line
    ]
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


def test_a_log_of_json_has_fields_and_is_opened_again_while_jobs_go_on(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def lines(path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    options = ("--log-format", "json", "--log-file", str(log))
    with service(tmp_path, "serve", "--address", "127.0.0.1:0", "--data", str(tmp_path / "data"), *options) as (serving, told):
        where = Endpoint(parse_address(told["address"]))
        with where.open() as channel:
            given = (*where.metadata, ("x-request-id", "r-1"))
            stub = TrainingServiceStub(channel)
            job = stub.CreateJob(training_service_pb2.CreateJobRequest(spec=make_spec()), metadata=given).job
        log.rename(tmp_path / "log.1")
        serving.process.send_signal(signal.SIGHUP)
        wait_for(lambda: lines(log))
        work(where, job.id, "a-worker")
        wait_for(lambda: [line for line in lines(log) if "ended" in line["message"]])
        log.rename(tmp_path / "log.2")
        log.mkdir()
        serving.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "cannot open" in lines(tmp_path / "log.2")[-1]["message"])
        assert serving.stderr == ""
    accepted, submitted = lines(tmp_path / "log.1")
    assert (accepted["job"], accepted["request"], accepted["message"]) == (job.id, "r-1", f"job {job.id}: accepted")
    assert (submitted["job"], submitted["request"]) == (job.id, "r-1")
    assert submitted["by"].startswith("admin at ipv4:127.0.0.1:")
    first, joined, began, ended, _ = lines(tmp_path / "log.2")
    assert first["message"] == f"SIGHUP: the log continues in {log}"
    assert (joined["worker"], joined["job"]) == ("a-worker", job.id)
    assert began["message"] == f"job {job.id}: began"
    assert ended["message"] == f"job {job.id}: ended as SUCCEEDED at step 2"
    assert joined["request"] == began["request"] != "r-1"
    assert all(line["level"] and line["logger"].startswith("thalweg") and line["time"] for line in (accepted, ended))


@pytest.mark.parametrize("command", [("serve",), ("shard",), ("fleet",)])
def test_a_log_file_that_cannot_be_opened_is_told(tmp_path: Path, command: tuple[str, ...]) -> None:
    ended = thalweg(tmp_path, *command, "--log-file", str(tmp_path / "missing" / "log"))
    assert ended.code == 2
    assert "--log-file: cannot open" in ended.stderr
    assert "No such file or directory" in ended.stderr
