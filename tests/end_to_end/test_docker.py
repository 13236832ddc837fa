"""The cluster of docker-compose.yml, from a clean build."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end import intruder
from tests.end_to_end.command import THALWEG, thalweg, wait_for
from thalweg.client.certificates import Authority

ROOT = Path(__file__).parents[2]
JOB = ("digits", "--set", "training.epochs=400")


def _engine_answers() -> bool:
    if not (shutil.which("docker") and shutil.which("docker-compose")):
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not _engine_answers(), reason="needs a Docker engine and docker-compose"),
]


def docker(*arguments: str) -> list[str]:
    """The lines that a docker command prints."""
    ended = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


class Compose:
    """A cluster of its own name and port."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.name = f"thalweg-test-{uuid.uuid4().hex[:8]}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._place = ("--server", f"127.0.0.1:{self.port}")

    def __call__(self, *arguments: str) -> str:
        """What a docker-compose command prints."""
        ended = subprocess.run(
            ["docker-compose", "-p", self.name, *arguments],
            cwd=ROOT,
            env=os.environ | {"THALWEG_PORT": str(self.port)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    @cached_property
    def token(self) -> str:
        """The server's token, which the cluster made itself."""
        return self("exec", "-T", "server", "cat", "/secrets/token").strip()

    @cached_property
    def environment(self) -> dict[str, str]:
        """What a client needs: the token, and the certificate of the cluster's authority."""
        authority = self._home / "ca.pem"
        authority.write_text(self("exec", "-T", "server", "cat", "/secrets/ca.pem"))
        return {"THALWEG_TOKEN": self.token, "THALWEG_TLS_CA": str(authority)}

    def thalweg(self, *arguments: str) -> list[Any]:
        """What a command on this machine answers."""
        ended = thalweg(self._home, *arguments, *self._place, "--json", program=THALWEG, **self.environment)
        assert ended.code == 0, ended.stderr
        return [json.loads(line) for line in ended.stdout.splitlines()]

    def job(self, job: str) -> dict[str, Any]:
        """One job as it is now."""
        found: dict[str, Any] = self.thalweg("jobs", job)[0]["jobs"][0]
        return found

    def serves(self) -> bool:
        """Whether the server answers."""
        return thalweg(self._home, "jobs", *self._place, program=THALWEG, **self.environment).code == 0

    def left(self) -> dict[str, list[str]]:
        """What the engine has of this cluster."""
        label = f"label=com.docker.compose.project={self.name}"
        return {
            "containers": docker("ps", "-a", "-q", "--filter", label),
            "networks": docker("network", "ls", "-q", "--filter", label),
            "volumes": docker("volume", "ls", "-q", "--filter", label),
        }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    compose = Compose(tmp_path_factory.mktemp("compose"))
    volumes = docker("volume", "ls", "-q")
    # All services have one image: it is built from nothing once, and the others take its layers.
    compose("build", "--no-cache", "server")
    compose("build")
    compose("up", "-d", "--scale", "worker=2")
    yield compose
    compose("down")
    # Jobs and secrets outlive the containers; all else is gone.
    kept = [f"{compose.name}_{volume}" for volume in ("authority", "data", "secrets")]
    assert compose.left() == {"containers": [], "networks": [], "volumes": kept}
    compose("down", "-v")
    assert compose.left() == {"containers": [], "networks": [], "volumes": []}
    assert docker("volume", "ls", "-q") == volumes


@pytest.fixture(scope="module")
def expected() -> str:
    """The digest of the same job, embedded, on the same image."""
    return str(json.loads(docker("run", "--rm", "thalweg", "train", *JOB, "--json")[-1])["weights_sha256"])


def test_a_job_trains_on_both_nodes_to_the_same_bits(cluster: Compose, expected: str) -> None:
    job = cluster.thalweg("submit", *JOB)[0]["job"]
    events = cluster.thalweg("watch", job)
    names = next(event["names"] for event in events if event["event"] == "workers_changed" and event["workers"] == 2)
    nodes = {name.split("/")[1] for name in names}
    assert nodes == {container[:12] for container in cluster("ps", "-q", "worker").split()}
    ended = cluster.job(job)
    assert ended["state"] == "SUCCEEDED"
    assert ended["validation"]["accuracy"] >= 0.97
    assert ended["weights_sha256"] == expected


@pytest.mark.nightly
def test_the_server_is_killed_and_comes_back_by_itself(cluster: Compose, expected: str) -> None:
    job = cluster.thalweg("submit", *JOB)[0]["job"]
    wait_for(lambda: cluster.job(job)["steps"] > 50)
    # All processes of the container but this one and the first.
    subprocess.run(["docker", "exec", *cluster("ps", "-q", "server").split(), "sh", "-c", "kill -9 -1"], check=False)
    wait_for(cluster.serves)
    events = cluster.thalweg("watch", job)
    assert any(event.get("status", "").startswith("the server was restarted") for event in events)
    assert cluster.job(job)["weights_sha256"] == expected


def test_the_server_is_killed_and_started_again(cluster: Compose, expected: str) -> None:
    job = cluster.thalweg("submit", *JOB)[0]["job"]
    wait_for(lambda: cluster.job(job)["steps"] > 50)
    cluster("kill", "server")
    cluster("up", "-d", "server")
    wait_for(cluster.serves)
    # It finishes by itself, and those who watch get all of its events.
    events = cluster.thalweg("watch", job)
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert cluster.job(job)["state"] == "SUCCEEDED"
    assert cluster.job(job)["weights_sha256"] == expected


@pytest.mark.parametrize("service", ["server", "head", "worker"])
def test_nothing_runs_as_root(cluster: Compose, service: str) -> None:
    for container in cluster("ps", "-q", service).split():
        assert docker("exec", container, "id", "-u") == ["1000"]
        assert docker("inspect", "-f", "{{.State.Health.Status}}", container) == ["healthy"]


def test_one_port_is_published_on_loopback_only(cluster: Compose) -> None:
    published = {port for container in cluster("ps", "-q").split() for port in docker("port", container)}
    assert published == {f"7070/tcp -> 127.0.0.1:{cluster.port}"}


def test_who_reaches_the_containers_needs_a_secret(cluster: Compose, tmp_path: Path) -> None:
    """Every user of this machine reaches the containers' addresses, and the published port."""
    jobs = ("jobs", "--server", f"127.0.0.1:{cluster.port}")
    refused = thalweg(tmp_path, *jobs)
    assert refused.code == 1
    assert "if it uses TLS, give the certificate of its authority with --tls-ca" in refused.stderr
    refused = thalweg(tmp_path, *jobs, THALWEG_TLS_CA=cluster.environment["THALWEG_TLS_CA"])
    assert refused.code == 1
    assert "this server requires a token" in refused.stderr
    of_network = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    (head,) = docker("inspect", "-f", of_network, *cluster("ps", "-q", "head").split())
    (worker, *_) = docker("inspect", "-f", of_network, *cluster("ps", "-q", "worker").split())
    # Ray's head with its server for clients, and the manager of a node.
    ports = (f"{head}:6379", f"{head}:10001", f"{worker}:6380")
    command = [sys.executable, intruder.__file__, head, *ports]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout)
    assert found == {"code": "ConnectionError", "ports": {key: ["UNAUTHENTICATED"] for key in ports}}


def test_no_secret_is_in_the_environment_of_a_service(cluster: Compose) -> None:
    secrets = [cluster("exec", "-T", "server", "cat", f"/secrets/{name}").strip() for name in ("token", "ray-token")]
    assert all(len(secret) == 64 for secret in secrets)
    for container in cluster("ps", "-q").split():
        inspected = docker("inspect", container)
        assert not any(secret in line for secret in secrets for line in inspected)
    assert set(cluster("exec", "-T", "server", "sh", "-c", "stat -c %a /secrets/*").split()) == {"600"}
    # Who has the authority's key can make certificates that all trust.
    names = cluster("exec", "-T", "server", "sh", "-c", "cd /secrets; echo *; ls -A /authority").split()
    assert sorted(names) == sorted(["ca.pem", "ray-token", "server-key.pem", "server.pem", "shard-key.pem", "shard.pem", "token"])


_LITTLE = {
    "memory": ("--shm-size=64m",),
    "disk": ("--read-only", "--tmpfs=/tmp", "--tmpfs=/data"),
    "user": ("--user=12345:12345",),
}


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param(sum(_LITTLE.values(), ()), id="all"),
        *(pytest.param(limits, id=name, marks=pytest.mark.nightly) for name, limits in _LITTLE.items()),
    ],
)
def test_the_image_trains_in_a_container_with_little(cluster: Compose, expected: str, limits: tuple[str, ...]) -> None:
    command = ["run", "--rm", "--network=none", *limits, "thalweg", "train", *JOB, "--json", "--data", "/tmp/jobs"]
    assert json.loads(docker(*command)[-1])["weights_sha256"] == expected


def test_shards_are_verified_by_a_name(cluster: Compose) -> None:
    cluster("--profile", "shards", "up", "-d", "--scale", "shard=2", "--scale", "worker=2")
    try:
        connected = re.compile(r"shard \S+ is connected")
        wait_for(lambda: len(connected.findall(cluster("logs", "--no-color", "server"))) == 2)
        large = ("--set", "training.epochs=1", "--set", "model.layers[0].dense.units=8000")
        job = cluster.thalweg("submit", "digits", *large)[0]["job"]
        events = cluster.thalweg("watch", job)
        assert any("split over this server and" in event.get("text", "") for event in events)
        assert cluster.job(job)["state"] == "SUCCEEDED"
    finally:
        cluster("--profile", "shards", "rm", "-f", "-s", "-v", "shard")


class Machines:
    """Machines of their own addresses on a network of their own, set up by hand as docs/cluster.md says."""

    def __init__(self, tls: Path) -> None:
        Authority.new(tls).add("server", ["server"])
        # Of the image's user.
        for file in tls.iterdir():
            file.chmod(0o644)
        tls.chmod(0o755)
        self._tls = tls
        self.name = f"thalweg-test-{uuid.uuid4().hex[:8]}"
        docker("network", "create", self.name)

    def start(self, machine: str, *command: str) -> str:
        """Starts a machine that runs a command, and gives its name."""
        options = ["--network", self.name, "--network-alias", machine, "--name", f"{self.name}-{machine}", "--init"]
        tokens = ["-e", "THALWEG_TOKEN=a-secret", "-e", "RAY_AUTH_MODE=token", "-e", "RAY_AUTH_TOKEN=a-secret-of-rays"]
        environment = [*tokens, "-e", "THALWEG_SERVER=server:7070", "-e", "THALWEG_TLS_CA=/tls/ca.pem"]
        options += ["-v", f"{self._tls}:/tls:ro"]
        docker("run", "-d", *options, *environment, "--shm-size=512m", "--entrypoint", "sh", "thalweg", "-c", " ".join(command))
        return f"{self.name}-{machine}"

    def thalweg(self, *arguments: str) -> Any:
        """What a command on the server's machine answers."""
        return json.loads(docker("exec", f"{self.name}-server", "thalweg", *arguments, "--json")[-1])

    def remove(self) -> None:
        """Removes everything."""
        docker("rm", "-f", "-v", *docker("ps", "-a", "-q", "--filter", f"name={self.name}-"))
        docker("network", "rm", self.name)


@pytest.fixture
def machines(cluster: Compose) -> Iterator[Machines]:
    """Machines that have the image which the cluster was built from."""
    folder = Path(tempfile.mkdtemp(prefix="thalweg-tls-"))
    folder.chmod(0o755)
    machines = Machines(folder / "tls")
    yield machines
    machines.remove()
    shutil.rmtree(folder)


@pytest.mark.nightly
def test_a_machine_joins_with_one_command_and_may_be_cut_off(machines: Machines, expected: str) -> None:
    pair = "--tls-cert /tls/server.pem --tls-key /tls/server-key.pem"
    server = machines.start("server", f"exec thalweg serve --address 0.0.0.0:7070 --data /data {pair}")
    wait_for(lambda: "serving at" in "".join(docker("logs", server)))
    fleet = "exec thalweg fleet --server server:7070 --ray-address auto"
    machines.start("head", f"ray start --head --port=6379 --num-cpus=1 --include-dashboard=false && {fleet}")
    job = machines.thalweg("submit", *JOB, "--set", "training.epochs=1000000")["job"]
    wait_for(lambda: machines.thalweg("jobs", job)["jobs"][0]["workers"] == 1)
    node = machines.start("node", "exec ray start --address=head:6379 --num-cpus=1 --block")
    wait_for(lambda: machines.thalweg("jobs", job)["jobs"][0]["workers"] == 2)
    machines.thalweg("cancel", job)

    job = machines.thalweg("submit", *JOB)["job"]
    wait_for(lambda: machines.thalweg("jobs", job)["jobs"][0]["steps"] > 50)
    docker("network", "disconnect", machines.name, node)
    ended = machines.thalweg("watch", job)
    assert ended["state"] == "SUCCEEDED"
    assert machines.thalweg("jobs", job)["jobs"][0]["weights_sha256"] == expected
