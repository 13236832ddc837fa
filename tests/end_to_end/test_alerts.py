"""A real Prometheus scrapes a real server, and each alert is made to fire by a fault.

The rules are those of deploy/, except that they wait for seconds.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.end_to_end.barrier import Barrier
from tests.end_to_end.command import Running, wait_for
from tests.end_to_end.faults import SmallDisk, disk_problem, stopped
from tests.end_to_end.peer import Peer
from tests.end_to_end.prometheus import PROBLEM, Prometheus, alerts, board_expressions, prometheus
from tests.end_to_end.refusals import refusal
from tests.server.test_training_service import PREPARED, make_spec
from thalweg.client import Client, ThalwegError
from thalweg.client.job import Job
from thalweg.contract.endpoint import Address, Endpoint, parse_address
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub
from thalweg.workers.worker import work

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM)),
    pytest.mark.skipif(disk_problem() is not None, reason=str(disk_problem())),
]
_TOKEN = "secret"


class Cluster:
    """A server on a small disk and a shard of it, each a process that can be killed and started again, and their Prometheus."""

    def __init__(self, home: Path, disk: SmallDisk) -> None:
        self._home = home
        self.disk = disk
        self.address = self.metrics = self.shard_metrics = "127.0.0.1:0"
        self.prometheus: Prometheus
        self.start_server()
        self.start_shard()

    def start_server(self) -> None:
        """At the addresses that it had before, if it had any."""
        options = ("--data", str(self.disk.folder / "data"), "--checkpoint-seconds", "0", "--metrics", self.metrics)
        self.server = Running(self._home, "serve", "--address", self.address, *options, "--json", THALWEG_TOKEN=_TOKEN)
        told = json.loads(self.server.line())
        self.address, self.metrics = told["address"], told["metrics"]

    def start_shard(self) -> None:
        """The same for the shard."""
        options = ("--server", self.address, "--metrics", self.shard_metrics, "--json")
        self.shard = Running(self._home, "shard", *options, THALWEG_TOKEN=_TOKEN)
        self.shard_metrics = json.loads(self.shard.line())["metrics"]

    def fill_disk(self) -> None:
        """Fills the disk, though the server may write something at the same time."""

        def filled() -> bool:
            with suppress(OSError):
                self.disk.fill(free=0)
                return True
            return False

        wait_for(filled)

    @property
    def where(self) -> Address:
        """The server's address."""
        return parse_address(self.address)

    def close(self) -> None:
        """Ends the processes."""
        for each in (self.shard, self.server):
            each.process.terminate()
            each.end()
            each.assert_nothing_left()

    @contextmanager
    def job(self, **training: Any) -> Iterator[Job]:
        """A job, which is cancelled at the end."""
        given = {"epochs": 2, "batch_size": 4, "microbatches": 1, "workers": 1, **training}
        with Client(self.address, _TOKEN) as client:
            job = client.submit(make_spec(training=given))
            try:
                yield job
            finally:
                job.cancel()

    @contextmanager
    def training(self, barrier: Barrier, **training: Any) -> Iterator[Job]:
        """A job that has taken a step, and waits at the barrier."""
        barrier.hold(1)
        with self.job(**training) as job:
            worker = threading.Thread(target=work, args=(Endpoint(self.where, _TOKEN), job.id, "a-worker"))
            worker.start()
            try:
                wait_for(lambda: job.progress.step == 1)
                yield job
            finally:
                job.cancel()
                barrier.release()
                worker.join()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("home")
    with SmallDisk(home / "disk", mebibytes=16) as disk:
        cluster = Cluster(home, disk)
        try:
            with prometheus(home / "prometheus", [cluster.metrics, cluster.shard_metrics]) as cluster.prometheus:
                yield cluster
        finally:
            cluster.close()


@contextmanager
def killed_server(cluster: Cluster, _: Barrier) -> Iterator[None]:
    cluster.server.process.kill()
    cluster.server.end()
    try:
        yield
    finally:
        cluster.start_server()


@contextmanager
def full_disk(cluster: Cluster, _: Barrier) -> Iterator[None]:
    with cluster.job() as job:
        cluster.fill_disk()
        # Its end waits for room.
        with pytest.raises(ThalwegError, match="unable to write"):
            job.cancel()
        try:
            yield
        finally:
            cluster.disk.clear()


@contextmanager
def almost_full_disk(cluster: Cluster, _: Barrier) -> Iterator[None]:
    cluster.disk.fill(free=1 << 20)
    try:
        yield
    finally:
        cluster.disk.clear()


@contextmanager
def checkpoints_without_room(cluster: Cluster, barrier: Barrier) -> Iterator[None]:
    with cluster.training(barrier, epochs=1000) as job:
        cluster.fill_disk()
        try:
            barrier.hold(500)
            wait_for(lambda: job.refresh().progress.checkpoints.failed)
            yield
        finally:
            cluster.disk.clear()


@contextmanager
def no_fleet(cluster: Cluster, _: Barrier) -> Iterator[None]:
    with cluster.job():
        yield


@contextmanager
def one_worker_of_two(cluster: Cluster, barrier: Barrier) -> Iterator[None]:
    with cluster.training(barrier, workers=2):
        yield


@contextmanager
def worker_that_computes_for_ever(cluster: Cluster, barrier: Barrier) -> Iterator[None]:
    with cluster.training(barrier, epochs=3):
        yield


@contextmanager
def job_with_a_mistake(cluster: Cluster, _: Barrier) -> Iterator[None]:
    with cluster.job() as job, Peer(cluster.where, _TOKEN) as peer:
        peer.hello(job.id)
        peer.fail("a column is missing")
        wait_for(lambda: job.state == "FAILED")
        yield


@contextmanager
def workers_that_die(cluster: Cluster, _: Barrier) -> Iterator[None]:
    with cluster.job() as job:
        for _worker in range(5):
            with Peer(cluster.where, _TOKEN) as peer:
                peer.hello(job.id)
                peer.prepare(PREPARED)
            wait_for(lambda: not job.progress.workers)
        yield


@contextmanager
def killed_shard(cluster: Cluster, _: Barrier) -> Iterator[None]:
    cluster.shard.process.kill()
    cluster.shard.end()
    try:
        yield
    finally:
        cluster.start_shard()


@contextmanager
def stopped_server(cluster: Cluster, _: Barrier) -> Iterator[None]:
    with stopped(cluster.server.process.pid):
        # Longer than the rule allows.
        wait_for(lambda: cluster.prometheus.query(f'max_over_time(up{{instance="{cluster.metrics}"}}[3s]) == 0'))
    yield


@contextmanager
def wrong_tokens(cluster: Cluster, _: Barrier) -> Iterator[None]:
    with grpc.insecure_channel(cluster.address) as channel:
        stub = TrainingServiceStub(channel)

        def guess(number: int) -> None:
            told = (("authorization", f"Bearer guess-{number}"),)
            refused = refusal(lambda: stub.ListJobs(pb.ListJobsRequest(), metadata=told))
            assert refused.code is grpc.StatusCode.UNAUTHENTICATED

        guess(0)
        # Prometheus has to know the series before it grows.
        wait_for(lambda: cluster.prometheus.query('thalweg_calls_total{code="UNAUTHENTICATED"}'))
        for number in range(1, 40):
            guess(number)
        yield


FAULTS: dict[str, Callable[[Cluster, Barrier], AbstractContextManager[None]]] = {
    "ThalwegDown": killed_server,
    "ThalwegDataFolderNotWritable": full_disk,
    "ThalwegDiskAlmostFull": almost_full_disk,
    "ThalwegCheckpointsFail": checkpoints_without_room,
    "ThalwegJobsWait": no_fleet,
    "ThalwegJobLacksWorkers": one_worker_of_two,
    "ThalwegStepsStall": worker_that_computes_for_ever,
    "ThalwegJobFailed": job_with_a_mistake,
    "ThalwegWorkersDie": workers_that_die,
    "ThalwegShardLost": killed_shard,
    "ThalwegShardDetached": killed_server,
    "ThalwegUnresponsive": stopped_server,
    "ThalwegCallsRefused": wrong_tokens,
}


def test_a_job_that_trains_well_raises_no_alert(cluster: Cluster, barrier: Barrier) -> None:
    with cluster.training(barrier) as job:
        barrier.release()
        wait_for(lambda: job.state == "SUCCEEDED")
    wait_for(lambda: cluster.prometheus.query('thalweg_jobs_ended_total{state="succeeded"} == 1'))
    assert cluster.prometheus.query("thalweg_steps_total == 2")
    wait_for(lambda: cluster.prometheus.alerts() == [])
    assert cluster.prometheus.query('count_over_time(ALERTS{alertstate="firing"}[5m])') == []


@pytest.mark.parametrize("name", alerts() if PROBLEM is None else [])
def test_each_alert_fires_by_a_fault(name: str, cluster: Cluster, barrier: Barrier) -> None:
    # What the fault before has left is over.
    wait_for(lambda: cluster.prometheus.up() == 2 and not cluster.prometheus.firing(name))
    with FAULTS[name](cluster, barrier):
        fired = wait_for(lambda: cluster.prometheus.firing(name))
    assert {alert.labels["severity"] for alert in fired} <= {"critical", "warning", "info"}
    assert all(alert.labels["instance"] in alert.summary for alert in fired)


def test_the_panels_of_the_board_are_understood(cluster: Cluster) -> None:
    for expression in board_expressions():
        cluster.prometheus.query(expression)
