"""A stranger on the network of a cluster: it finds the ports, and gets nothing from any of them."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end import hosts, scanner
from tests.end_to_end.command import THALWEG, Running, service, thalweg, wait_for
from tests.end_to_end.hosts import Host, Network
from thalweg.client.certificates import Authority

_PROBLEM = hosts.problem()
pytestmark = [
    pytest.mark.ray,
    pytest.mark.nightly,
    pytest.mark.netns,
    pytest.mark.skipif(_PROBLEM is not None, reason=str(_PROBLEM)),
]
TOKEN = {"THALWEG_TOKEN": "a-secret"}
# As docs/cluster.md has them.
HEAD = ("--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false", "--no-monitor")
RAY_OPTIONS = ("--object-store-memory=80000000", "--disable-usage-stats", "--block")
# What Ray's processes tell everyone: the names of their services, and that they serve.
OPEN = {"grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "OK", "grpc.health.v1.Health/Watch": "DEADLINE_EXCEEDED"}
REFUSALS = {"UNAUTHENTICATED", "401"}


class Cluster:
    """A server, a shard, a Ray head and a node with a job at work, and a run of its own on another host. A stranger looks on."""

    def __init__(self, network: Network, stack: ExitStack, *, encrypted: bool) -> None:
        self._stack = stack
        self.stranger = network.host("stranger")
        self.server, self.shard, self.head, self.node, self.alone = (
            network.host(name) for name in ("server", "shard", "head", "node", "alone")
        )
        long = ("digits", "--set", "training.epochs=1000000", "--json")
        running = Running(self.alone.home, "train", *long, program=self.alone.thalweg)
        stack.callback(self.alone.kill)
        running.until("2 workers")
        environment, own = self._credentials(network.folder) if encrypted else (TOKEN, lambda _: ("--trust-network",))
        address = f"{self.server.address}:7070"
        serve = ("serve", "--address", address, "--data", str(self.server.home / "data"), *own(self.server))
        stack.enter_context(service(self.server.home, *serve, program=self.server.thalweg, **TOKEN))
        share = ("shard", "--server", address, "--address", f"{self.shard.address}:7071", *own(self.shard))
        stack.enter_context(service(self.shard.home, *share, program=self.shard.thalweg, **environment))
        self._ray(self.head, *HEAD)
        ray_address = f"{self.head.address}:6379"
        ray = ("--ray-address", ray_address, "--ray-token-file", str(self.head.home / "ray-token"))
        fleet = ("fleet", "--server", address, "--name", "hosts", *ray)
        stack.enter_context(service(self.head.home, *fleet, program=self.head.thalweg, **environment))
        self._ray(self.node, f"--address={ray_address}", "--num-cpus=1")
        submitted = thalweg(self.node.home, "submit", *long, "--server", address, program=self.node.thalweg, **environment)
        jobs = ("jobs", submitted.answer["job"], "--server", address, "--json")

        def trains() -> bool:
            listed = thalweg(self.node.home, *jobs, program=self.node.thalweg, **environment)
            return bool(listed.answer["jobs"][0]["steps"] > 0)

        wait_for(trains)

    def _credentials(self, folder: Path) -> tuple[dict[str, str], Any]:
        """The environment of those who connect, and the options of those who listen: TLS, with certificates for all."""
        authority = Authority.new(folder / "tls")
        of_fleet = authority.add("fleet")
        files = {"CA": authority.cert, "CERT": of_fleet.cert, "KEY": of_fleet.key}

        def own(host: Host) -> tuple[str, ...]:
            pair = authority.add(host.name, [host.address])
            ca = str(authority.cert)
            return ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--tls-client-ca", ca, "--tls-ca", ca)

        return TOKEN | {f"THALWEG_TLS_{name}": str(path) for name, path in files.items()}, own

    def _ray(self, host: Host, *arguments: str) -> None:
        """A Ray node on a host."""
        (host.home / "ray-token").write_text("a-secret-of-rays\n")
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(host.home / "ray-token")}
        options = (f"--node-ip-address={host.address}", *RAY_OPTIONS)
        running = Running(host.home, "start", *arguments, *options, program=host.program(THALWEG.with_name("ray")), **token)
        self._stack.callback(running.end)
        self._stack.callback(host.kill)
        while "Ray runtime started" not in running.line():
            pass

    def scan(self) -> dict[str, dict[str, dict[str, str]]]:
        """What the stranger finds: by host, the ports that are open, and what each answers to what is tried there."""
        all_hosts = (self.server, self.shard, self.head, self.node, self.alone)
        python = self.stranger.program(Path(sys.executable))
        ended = Running(self.stranger.home, scanner.__file__, *(host.address for host in all_hosts), program=python).end()
        assert ended.code == 0, ended.stderr
        found: dict[str, dict[str, dict[str, str]]] = {host.name: {} for host in all_hosts}
        for address, answers in ended.answer.items():
            ip, _, port = address.rpartition(":")
            (host,) = (host for host in all_hosts if host.address == ip)
            found[host.name][port] = answers
        return found


@pytest.fixture(params=[True, False], ids=["encrypted", "in the clear"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        network = stack.enter_context(Network(tmp_path / "hosts"))
        yield Cluster(network, stack, encrypted=request.param)


def test_a_stranger_finds_ports_and_gets_nothing_from_them(cluster: Cluster, request: pytest.FixtureRequest) -> None:
    found = cluster.scan()
    for host, ports in found.items():
        for port, answers in ports.items():
            print(f"{host}:{port} {dict(Counter(answers.values()))}")  # noqa: T201 - the list that the page on security has
    # A run without a cluster is on loopback alone, with all that belongs to it.
    assert found["alone"] == {}
    assert set(found["server"]) == {"7070"}
    assert set(found["shard"]) == {"7071"}
    # Ray's store of state, its server for clients, the raylet's two ports, the agent's, the fleet's; on a node, a worker's.
    assert {"6379", "10001"} <= set(found["head"])
    assert len(found["head"]) == 6
    assert len(found["node"]) >= 4
    # The autoscaler's page of metrics, which asks for no token.
    assert "44217" not in found["head"]
    if "encrypted" in request.node.name:
        for answers in (found["server"]["7070"], found["shard"]["7071"]):
            assert set(answers) == {"TLS"}
            assert answers["TLS"] != "it takes anyone"
    else:
        assert found["server"]["7070"].keys() >= {
            f"thalweg.v1.{name}" for name in ("TrainingService/ListJobs", "ShardService/Hold")
        }
        for answers in (found["server"]["7070"], found["shard"]["7071"]):
            assert set(answers.values()) == {"UNAUTHENTICATED"}
    for answers in (*found["head"].values(), *found["node"].values()):
        told = {tried for tried, answer in answers.items() if answer not in REFUSALS}
        assert all(OPEN.get(tried) == answers[tried] for tried in told), answers
        assert REFUSALS & set(answers.values()), answers
