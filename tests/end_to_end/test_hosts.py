"""A server, a Ray head and two Ray nodes as hosts of their own, and a network that fails: the result has the same bits."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end import hosts, intruder
from tests.end_to_end.barrier import Barrier
from tests.end_to_end.command import THALWEG, Ended, Running, service, thalweg, wait_for
from tests.end_to_end.hosts import Host, Network
from tests.end_to_end.watching import Watching, undisturbed
from thalweg.client.certificates import Authority

_PROBLEM = hosts.problem()
pytestmark = [
    pytest.mark.ray,
    pytest.mark.chaos,
    pytest.mark.nightly,
    pytest.mark.netns,
    pytest.mark.skipif(_PROBLEM is not None, reason=str(_PROBLEM)),
]

TOKEN = {"THALWEG_TOKEN": "a-secret"}
RAY_TOKEN = "a-secret-of-rays"
RAY = THALWEG.with_name("ray")
# As in docker-compose.yml. Ray alone would take a third of the memory for each host's object store.
RAY_OPTIONS = ("--object-store-memory=80000000", "--disable-usage-stats", "--block")
EPOCHS = 30
# The steps between two barriers.
MIDST = 60


class Cluster:
    """The hosts, and what runs on them."""

    def __init__(self, network: Network, stack: ExitStack) -> None:
        self.network = network
        self._stack = stack
        self.server = network.host("server")
        self.stranger = network.host("stranger")
        self.head = network.host("head")
        self.nodes = [network.host(f"node{number}") for number in (1, 2)]
        self.address = f"{self.server.address}:7070"
        self.barrier = Barrier(network.folder / "barrier.json")
        authority = Authority.new(network.folder / "tls")
        of_server, of_fleet = authority.add("server", [self.server.address]), authority.add("fleet")
        pair = ("--tls-cert", str(of_server.cert), "--tls-key", str(of_server.key), "--tls-client-ca", str(authority.cert))
        serve = ("serve", "--address", self.address, "--data", str(self.server.home / "data"), *pair)
        stack.enter_context(service(self.server.home, *serve, program=self.server.thalweg, **TOKEN))
        # The fleet's workers read the same files on their nodes.
        files = {"CA": authority.cert, "CERT": of_fleet.cert, "KEY": of_fleet.key}
        self._environment = TOKEN | {f"THALWEG_TLS_{name}": str(path) for name, path in files.items()}
        # A run without a cluster leaves nothing that disturbs one.
        alone = thalweg(self.head.home, "train", "and", "--json", program=self.head.thalweg)
        assert alone.code == 0, alone.stderr
        self._ray(self.head, "--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false")
        self.ray_address = f"{self.head.address}:6379"
        token_file = str(self.head.home / "ray-token")
        ray = ("--ray-address", self.ray_address, "--ray-token-file", token_file)
        fleet = ("fleet", "--server", self.address, "--name", "hosts", *ray)
        self.fleet, _ = stack.enter_context(service(self.head.home, *fleet, program=self.head.thalweg, **self._environment))
        self._running = {node: self._join(node) for node in self.nodes}

    def _ray(self, host: Host, *arguments: str) -> Running:
        """A Ray node on a host."""
        options = (f"--node-ip-address={host.address}", *RAY_OPTIONS)
        (host.home / "ray-token").write_text(f"{RAY_TOKEN}\n")
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(host.home / "ray-token")}
        running = Running(
            host.home, "start", *arguments, *options, program=host.program(RAY), **token, **self.barrier.environment
        )
        self._stack.callback(running.end)
        self._stack.callback(host.kill)
        while "Ray runtime started" not in running.line():
            pass
        return running

    def _join(self, node: Host) -> Running:
        return self._ray(node, f"--address={self.ray_address}", "--num-cpus=1")

    def mend(self) -> None:
        """Starts Ray again where it has ended, as a service manager would: a node that its head took for dead ends."""
        for node, running in self._running.items():
            if running.process.poll() is not None:
                node.kill()
                self._running[node] = self._join(node)

    def _thalweg(self, *arguments: str) -> Any:
        """What a command on the server's host answers."""
        command = (*arguments, "--server", self.address, "--json")
        ended = thalweg(self.server.home, *command, program=self.server.thalweg, **self._environment)
        assert ended.code == 0, ended.stderr
        return ended.answer

    def submit(self) -> Watching:
        """A job of two workers, one on each node, that has taken some steps, and waits at the barrier."""
        self.mend()
        self.barrier.hold(MIDST)
        self.job = str(self._thalweg("submit", "digits", "--set", f"training.epochs={EPOCHS}")["job"])
        watching = Watching(self.server.home, self.job, self.address, self.server.thalweg, **self._environment)
        self._stack.callback(watching.stop)
        watching.until_workers(2)
        assert {name.split("/")[1] for name in watching.workers} == {node.name for node in self.nodes}
        self._until_held(MIDST)
        # Now both take part.
        self.go_on()
        return watching

    def _until_held(self, steps: int) -> None:
        wait_for(lambda: self._thalweg("jobs", self.job)["jobs"][0]["steps"] == steps)

    def go_on(self) -> None:
        """Waits until the job has taken `MIDST` steps more, and waits at the barrier again."""
        steps = int(self._thalweg("jobs", self.job)["jobs"][0]["steps"]) + MIDST
        self.barrier.hold(steps)
        self._until_held(steps)

    def join_as_node(self, **environment: str) -> Ended:
        """The end of an attempt to join the Ray cluster with a host that does not belong to it."""
        joining = ("start", f"--address={self.ray_address}", f"--node-ip-address={self.stranger.address}", *RAY_OPTIONS)
        try:
            return Running(self.stranger.home, *joining, program=self.stranger.program(RAY), **environment).end()
        finally:
            self.stranger.kill()

    def cancel(self) -> None:
        """Ends the job."""
        self._thalweg("cancel", self.job)

    def intrude(self, *ports: str, **environment: str) -> Any:
        """The result of each attempt to get into the Ray cluster from a host that does not belong to it."""
        python = self.stranger.program(Path(sys.executable))
        running = Running(self.stranger.home, intruder.__file__, self.head.address, *ports, program=python, **environment)
        ended = running.end()
        assert ended.code == 0, ended.stderr
        return ended.answer

    def digest(self, watching: Watching) -> str:
        """The digest of a job's result, which is waited for. The barrier is released."""
        self.barrier.release()
        assert watching.end() == "SUCCEEDED"
        return str(self._thalweg("jobs", self.job)["jobs"][0]["weights_sha256"])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ExitStack() as stack:
        network = stack.enter_context(Network(tmp_path_factory.mktemp("hosts")))
        yield Cluster(network, stack)


@pytest.fixture(scope="module")
def expected() -> str:
    return undisturbed("digits", f"training.epochs={EPOCHS}")


def test_a_node_is_cut_off_in_the_midst_of_a_step_and_returns(cluster: Cluster, expected: str) -> None:
    watching = cluster.submit()
    cut = next(name for name in watching.workers if cluster.nodes[0].name in name)
    (other,) = set(watching.workers) - {cut}

    def is_back() -> bool:
        cluster.mend()
        return len(watching.workers) == 2 or watching.ended

    with cluster.network.is_cut(cluster.nodes[0]):
        # It continues without that node, which is then considered lost.
        cluster.go_on()
        watching.until_workers(1)
        assert watching.workers == [other]
    wait_for(is_back)
    assert cut not in watching.workers
    assert cluster.digest(watching) == expected


def test_the_servers_host_is_cut_off_and_returns(cluster: Cluster, expected: str) -> None:
    watching = cluster.submit()
    said = cluster.fleet.stderr.count("trying again")
    with cluster.network.is_cut(cluster.server):
        # Both sides notice.
        watching.until_workers(0)
        wait_for(lambda: cluster.fleet.stderr.count("trying again") > said)
    assert cluster.digest(watching) == expected


def test_a_stranger_without_the_token_gets_nowhere_in_the_ray_cluster(cluster: Cluster) -> None:
    cluster.submit()
    ports = [port for host in (cluster.head, *cluster.nodes) for port in host.listening()]
    for token in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another-secret"}):
        assert cluster.join_as_node(**token).code != 0
        found = cluster.intrude(*ports, **token)
        assert found["code"] == "ConnectionError"
        statuses = [status for of_port in found["ports"].values() for status in of_port]
        assert set(statuses) <= {"UNAUTHENTICATED", "401", "closed"}
        # The head, and a raylet with two ports and a worker on each node.
        assert statuses.count("UNAUTHENTICATED") > len(("head", *2 * ("raylet", "objects", "worker")))
        assert all(found["ports"].values())
    # With the token, code runs: it was the token that was missing.
    assert cluster.intrude(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=RAY_TOKEN)["code"] == "it ran"
    cluster.cancel()


def test_a_fleet_whose_server_only_its_own_machine_reaches_is_refused(cluster: Cluster) -> None:
    token_file = str(cluster.head.home / "ray-token")
    fleet = ("fleet", "--server", "127.0.0.1:7070", "--ray-address", cluster.ray_address, "--ray-token-file", token_file)
    refused = thalweg(cluster.head.home, *fleet, program=cluster.head.thalweg)
    assert refused.code == 1
    others = ", ".join(sorted(node.address for node in cluster.nodes))
    assert f"the Ray cluster has other machines: {others}; give an address that all of them reach" in refused.stderr


@pytest.mark.skipif(hosts.wire_problem() is not None, reason=str(hosts.wire_problem()))
def test_a_node_behind_a_line_that_delays_and_loses(cluster: Cluster, expected: str) -> None:
    watching = cluster.submit()
    with cluster.network.impaired(cluster.nodes[0], delay_ms=50, jitter_ms=5, loss_percent=5) as frames:
        cluster.go_on()
    assert frames["lost"] > 0
    assert cluster.digest(watching) == expected


@pytest.mark.skipif(not shutil.which("tc"), reason="needs tc (Debian: iproute2)")
def test_a_node_behind_a_narrow_line(cluster: Cluster, expected: str) -> None:
    watching = cluster.submit()
    with cluster.network.limited(cluster.nodes[0], megabits=10):
        cluster.go_on()
    assert cluster.digest(watching) == expected
