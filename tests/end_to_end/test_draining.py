"""Nodes are emptied and the server is drained while jobs train: the bits are those of an undisturbed run, and nothing is lost."""

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.end_to_end.barrier import Barrier
from tests.end_to_end.cluster import ThreadFleet, running_server, train
from tests.end_to_end.command import Running, thalweg, wait_for
from thalweg.client import Client, Job
from thalweg.client.cluster import workers_at
from thalweg.contract.endpoint import Endpoint
from thalweg.contract.errors import ThalwegError
from thalweg.server.process import Server
from thalweg.v1 import cluster_service_pb2 as pb
from thalweg.v1 import job_pb2

SPEC = json_format.ParseDict(
    {
        "model": {"layers": [{"dense": {"units": 8}}, {"relu": {}}, {"dense": {"units": 10}}], "loss": "softmax_cross_entropy"},
        "data": {"builtin": "digits"},
        "training": {"epochs": 1, "batch_size": 64, "microbatches": 4, "workers": 2},
        "optimizer": {"momentum": {"learning_rate": 0.1}},
    },
    job_pb2.JobSpec(),
)
STEP = 5


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of an undisturbed run."""
    with running_server(tmp_path_factory.mktemp("undisturbed")) as server:
        return train(server, SPEC).result.weights_sha256


def held(client: Client, barrier: Barrier) -> Job:
    """A job that two workers hold at a step."""
    barrier.hold(STEP)
    job = client.submit(SPEC)
    wait_for(lambda: job.refresh().progress.step == STEP and job.message.progress.workers == 2)
    return job


def where(client: Client) -> dict[str, int]:
    """How many workers each fleet has."""
    listed = client.cluster.list().fleets
    return {fleet.name: sum(len(node.workers) for node in fleet.nodes) for fleet in listed}


def check(job: Job, expected: str) -> None:
    """The job ends with the expected bits, and lost no worker."""
    assert job.wait(progress=False).weights_sha256 == expected
    assert job.refresh().progress.contributions.lost_workers == 0


def test_the_work_of_a_drained_fleet_moves_to_another(tmp_path: Path, expected: str) -> None:
    barrier = Barrier(tmp_path / "barrier.json")
    with (
        running_server(tmp_path / "data") as server,
        barrier.here(),
        Client(server.address) as client,
        ThreadFleet(server.address, 2, "one", "node1"),
    ):
        job = held(client, barrier)
        assert where(client) == {"one": 2}
        (node,) = client.cluster.list().fleets[0].nodes
        assert {(each.job_id, each.slots) for each in node.workers} == {(job.id, 1)}
        with ThreadFleet(server.address, 2, "two", "node2"):
            assert client.cluster.cordon("two").closure == pb.CLOSURE_CORDONED
            assert client.cluster.drain("node1").fleet == "one"
            # They have tasks.
            assert where(client)["one"] == 2
            client.cluster.uncordon("two")
            wait_for(lambda: where(client) == {"one": 2, "two": 2})
            barrier.hold(STEP + 3)
            wait_for(lambda: where(client) == {"one": 0, "two": 2})
            # It lasts.
            barrier.hold(STEP + 6)
            wait_for(lambda: job.refresh().progress.step == STEP + 6)
            assert where(client) == {"one": 0, "two": 2}
            barrier.release()
            check(job, expected)


def test_a_task_that_takes_too_long_is_left_to_others(tmp_path: Path, expected: str) -> None:
    barrier = Barrier(tmp_path / "barrier.json")
    with (
        running_server(tmp_path / "data") as server,
        barrier.here(),
        Client(server.address) as client,
        ThreadFleet(server.address, 2, "one", "node1"),
        ThreadFleet(server.address, 2, "two", "node2"),
    ):
        client.cluster.cordon("two")
        job = held(client, barrier)
        place = client.cluster.drain("one", now=True)
        assert workers_at(client.cluster.list(), place) == 0
        client.cluster.uncordon("two")
        wait_for(lambda: where(client)["two"] == 2)
        barrier.release()
        assert job.wait(progress=False).weights_sha256 == expected


def test_what_is_cordoned_stays_so_when_the_server_starts_again(tmp_path: Path) -> None:
    with running_server(tmp_path / "data") as server, Client(server.address) as client:
        with pytest.raises(ThalwegError, match="no fleet and no node is named one"):
            client.cluster.cordon("one")
        with ThreadFleet(server.address, 2, "one", "node1"):
            wait_for(lambda: client.cluster.list().fleets)
            client.cluster.cordon("node1")
        with pytest.raises(ThalwegError, match="no fleet and no node is named one"):
            client.cluster.uncordon("one")
    with (
        running_server(tmp_path / "data") as server,
        Client(server.address) as client,
        ThreadFleet(server.address, 2, "one", "node1"),
    ):
        wait_for(lambda: client.cluster.list().fleets)
        job = client.submit(SPEC)
        wait_for(lambda: "cordoned" in job.refresh().status)
        client.cluster.uncordon("one/node1")
        wait_for(lambda: where(client) == {"one": 2})
        assert job.wait(progress=False)


def health(server: Server) -> int:

    with Endpoint(server.address).open() as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        status: int = stub.Check(health_pb2.HealthCheckRequest()).status
        return status


def test_a_drained_server_finishes_what_it_has_begun_and_takes_nothing_new(tmp_path: Path, expected: str) -> None:
    barrier, drained = Barrier(tmp_path / "barrier.json"), []
    with (
        running_server(tmp_path / "data", drained=lambda: drained.append(True)) as server,
        barrier.here(),
        Client(server.address) as client,
        ThreadFleet(server.address, 2, "one", "node1"),
    ):
        job = held(client, barrier)
        client.cluster.end_server(60.0)
        assert client.cluster.list().draining
        wait_for(lambda: health(server) == health_pb2.HealthCheckResponse.NOT_SERVING)
        for refused in (lambda: client.submit(SPEC), job.resume):
            with pytest.raises(ThalwegError, match="is being drained"):
                refused()
        assert drained == []
        barrier.release()
        wait_for(lambda: drained)
        assert job.refresh().progress.step == STEP + 1, "another step began"
    with running_server(tmp_path / "data") as server, Client(server.address) as client, ThreadFleet(server.address, 2):
        again = client.job(job.id)
        assert f"continues from step {STEP + 1}" in " ".join(entry.text for entry in again.story()) or again.progress.step > STEP
        check(again, expected)


def test_serve_drain_ends_a_server(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    serving = Running(tmp_path, "serve", "--address", "127.0.0.1:0", "--data", data, "--json")
    facts: dict[str, Any] = json.loads(serving.line())
    ended = thalweg(tmp_path, "serve", "--drain", "--data", data, "--json")
    assert (ended.code, ended.answer) == (0, {"address": facts["address"], "stopped": True})
    assert serving.end().code == 0
    serving.assert_nothing_left()
    ended = thalweg(tmp_path, "serve", "--drain", "--data", data)
    assert ended.code == 1
    assert "no server runs on the data folder" in ended.stderr
