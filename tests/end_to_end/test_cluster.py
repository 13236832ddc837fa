"""A server and a fleet as processes of their own, and what may happen to them: the result has the same bits."""

import json
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import pytest

from tests.end_to_end.barrier import Barrier
from tests.end_to_end.command import THALWEG, Running, service, thalweg, wait_for
from tests.end_to_end.faults import kill
from tests.end_to_end.watching import Watching, undisturbed

pytestmark = pytest.mark.ray

# 276 steps, of which jobs take 60 before they wait at the barrier.
EPOCHS = "training.epochs=12"
JOB = ("digits", "--set", EPOCHS)
MIDST = 60


@pytest.fixture(scope="module")
def expected() -> str:
    """The digest of a plain loop."""
    return undisturbed("digits", EPOCHS)


class Cluster:
    """A server at a port that stays the same, and a fleet of three slots. `serve` and `fleet` are arguments for the two.

    Its jobs obey `barrier`. `program` is what runs the fleet, with further variables of its environment.
    """

    def __init__(
        self,
        home: Path,
        stack: ExitStack,
        *serve: str,
        data: Path | None = None,
        fleet: tuple[str, ...] = ("--slots", "3"),
        program: Path = THALWEG,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.home = home
        self._stack = stack
        self._serve = serve
        self._program = program
        self._environment = environment
        self.data = data or home / "server"
        self.barrier = Barrier(home / "barrier.json")
        self.address = "127.0.0.1:0"
        self.server = self.start_server()
        self.fleet = self.start_fleet(*fleet)

    def start_server(self) -> Running:
        """Starts the server, again if it ran before."""
        arguments = ("serve", "--address", self.address, "--data", str(self.data), *self._serve)
        running, facts = self._stack.enter_context(service(self.home, *arguments))
        self.address = facts["address"]
        return running

    def start_fleet(self, *options: str) -> Running:
        """Starts a fleet of the same name as others, of three slots unless said otherwise."""
        arguments = ("fleet", "--server", self.address, "--name", "spare", *(options or ("--slots", "3")))
        fleet = service(self.home, *arguments, program=self._program, **self.barrier.environment, **self._environment)
        return self._stack.enter_context(fleet)[0]

    def __call__(self, *arguments: str) -> Any:
        """What a command answers."""
        ended = thalweg(self.home, *arguments, "--server", self.address, "--json")
        assert ended.code == 0, ended.stderr
        return ended.answer

    def submit(self, job: tuple[str, ...] = JOB) -> str:
        """A job that has taken some steps, and waits at the barrier."""
        self.barrier.hold(MIDST)
        submitted = str(self("submit", *job)["job"])
        self.until_steps(submitted, MIDST)
        return submitted

    def until_steps(self, job: str, steps: int) -> None:
        """Waits until a job waits after a number of steps."""
        wait_for(lambda: self("jobs", job)["jobs"][0]["steps"] == steps)

    def watch(self, job: str) -> Watching:
        """What happens to a job, as it happens."""
        watching = Watching(self.home, job, self.address)
        self._stack.callback(watching.stop)
        return watching

    def events(self, job: str) -> list[dict[str, Any]]:
        """All events of a job, which is waited for."""
        ended = thalweg(self.home, "watch", job, "--server", self.address, "--json")
        assert ended.code == 0, ended.stderr
        return [json.loads(line) for line in ended.stdout.splitlines()]

    def digest(self, job: str) -> str:
        """The digest of a job's result, which is waited for. The barrier is released."""
        self.barrier.release()
        sequences = [event["sequence"] for event in self.events(job)]
        assert sequences == list(range(1, len(sequences) + 1))
        return str(self("jobs", job)["jobs"][0]["weights_sha256"])

    def workers(self, job: str, number: int) -> list[int]:
        """The process ids of a job's workers, once there are `number` of them."""
        watching = Running(self.home, "watch", job, "--server", self.address, "--json")
        try:
            while (event := json.loads(watching.line()))["event"] != "workers_changed" or event["workers"] != number:
                pass
        finally:
            watching.process.kill()
            watching.end()
        return [int(name.rpartition("/")[2]) for name in event["names"]]


def below(running: Running, *names: str) -> list[psutil.Process]:
    """The processes under a command that have one of these names."""
    return [process for process in psutil.Process(running.process.pid).children(recursive=True) if process.name() in names]


class RayCluster:
    """A Ray cluster of this machine alone, at a port that stays the same, with a token in a file unless it is to be open."""

    def __init__(self, home: Path, *, is_open: bool = False) -> None:
        self._home = home
        self.token_file = home / "ray-token"
        self.token_file.write_text("a-secret-of-rays\n")
        self._environment = {} if is_open else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)}
        # Its workers inherit it; `Cluster` has the same file.
        self._environment |= {name: str(value) for name, value in Barrier(home / "barrier.json").environment.items()}
        with socket.create_server(("127.0.0.1", 0)) as server:
            self._port = server.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self._command: Running | None = None

    def start(self) -> None:
        """Starts its head, as its user does."""
        size = ("--num-cpus", "2", "--object-store-memory", str(80 << 20))
        quiet = ("--include-dashboard=false", "--disable-usage-stats")
        where = ("--port", str(self._port), "--node-ip-address", "127.0.0.1")
        program = THALWEG.with_name("ray")
        self._command = Running(self._home, "start", "--head", *where, *size, *quiet, program=program, **self._environment)
        assert self._command.process.wait() == 0, self._command.stderr

    def kill(self) -> None:
        """Kills all its processes."""
        if self._command:
            for process in self._command.processes():
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            assert self._command.left_behind() == []


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(tmp_path, stack)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster for the tests that leave server and fleet alone."""
    with ExitStack() as stack:
        yield Cluster(tmp_path_factory.mktemp("shared"), stack)


def test_a_worker_is_killed(shared: Cluster, expected: str) -> None:
    job = shared.submit()
    watching = shared.watch(job)
    os.kill(shared.workers(job, 2)[0], signal.SIGKILL)
    wait_for(lambda: watching.of("notice"))
    assert shared.digest(job) == expected
    notices = [event["text"] for event in shared.events(job) if event["event"] == "notice"]
    assert len(notices) == 1
    assert notices[0].startswith("a worker of fleet spare ended and will be replaced: ")


def test_all_workers_are_killed_at_once(shared: Cluster, expected: str) -> None:
    job = shared.submit()
    watching = shared.watch(job)
    watching.until_workers(2)
    for worker in watching.workers:
        kill(worker)
    wait_for(lambda: len(watching.of("notice")) == 2)
    assert shared.digest(job) == expected
    notices = [event["text"] for event in shared.events(job) if event["event"] == "notice"]
    assert len(notices) == 2
    assert all("its process died" in notice for notice in notices)


def test_workers_come_and_go(shared: Cluster, expected: str) -> None:
    job = shared.submit()
    for number, workers in enumerate((3, 1, 2), 2):
        shared("scale", job, str(workers))
        shared.workers(job, workers)
        shared.barrier.hold(number * MIDST)
        shared.until_steps(job, number * MIDST)
    assert shared.digest(job) == expected


def test_the_server_is_killed(cluster: Cluster, expected: str) -> None:
    job = cluster.submit()
    cluster.server.process.kill()
    cluster.server.process.wait()
    cluster.server = cluster.start_server()
    assert cluster.digest(job) == expected


@pytest.mark.nightly
def test_the_fleet_is_killed_and_another_takes_its_place(tmp_path: Path, expected: str) -> None:
    with ExitStack() as stack:
        arguments = ("serve", "--address", "127.0.0.1:0", "--data", str(tmp_path / "server"))
        _, facts = stack.enter_context(service(tmp_path, *arguments))
        address = facts["address"]
        barrier = Barrier(tmp_path / "barrier.json")
        barrier.hold(MIDST)
        fleet = ("fleet", "--server", address, "--slots", "2")
        first = Running(tmp_path, *fleet, "--json", **barrier.environment)
        first.line()
        job = thalweg(tmp_path, "submit", *JOB, "--server", address, "--json").answer["job"]

        def steps() -> int:
            return int(thalweg(tmp_path, "jobs", job, "--server", address, "--json").answer["jobs"][0]["steps"])

        wait_for(lambda: steps() >= MIDST)
        first.process.kill()
        first.process.wait()
        waiting = wait_for(lambda: _waits(tmp_path, job, address))
        assert waiting["state"] == "RUNNING"
        wait_for(lambda: not first.left_behind())
        stack.enter_context(service(tmp_path, *fleet, **barrier.environment))
        barrier.release()
        ended = thalweg(tmp_path, "watch", job, "--server", address, "--json")
        assert ended.code == 0, ended.stderr
        assert thalweg(tmp_path, "jobs", job, "--server", address, "--json").answer["jobs"][0]["weights_sha256"] == expected


@pytest.mark.parametrize(
    "killed",
    [
        pytest.param(["gcs_server"], id="gcs_server"),
        pytest.param(["raylet"], id="raylet", marks=pytest.mark.nightly),
        pytest.param(["gcs_server", "raylet"], id="gcs_server+raylet", marks=pytest.mark.nightly),
    ],
)
def test_the_head_of_a_fleets_own_ray_is_killed(cluster: Cluster, expected: str, killed: list[str]) -> None:
    job = cluster.submit()
    before = below(cluster.fleet, "gcs_server", "raylet")
    for process in before:
        if process.name() in killed:
            process.kill()
    cluster.fleet.until("Ray is lost")
    assert cluster.digest(job) == expected
    assert cluster.fleet.process.poll() is None
    assert "Ray is lost" in cluster.fleet.stderr
    assert "Traceback" not in cluster.fleet.stderr
    assert not [process for process in before if process.is_running()]


def test_the_process_that_drives_ray_is_killed(cluster: Cluster, expected: str) -> None:
    job = cluster.submit()
    fleet = psutil.Process(cluster.fleet.process.pid)
    (driver,) = fleet.children()
    driver.kill()
    wait_for(lambda: [process for process in fleet.children() if process != driver])
    assert cluster.digest(job) == expected


@pytest.mark.nightly
def test_a_ray_cluster_dies_and_is_started_again(tmp_path: Path, expected: str) -> None:
    ray = RayCluster(tmp_path)
    with ExitStack() as stack:
        stack.callback(ray.kill)
        ray.start()
        fleet = ("--ray-address", ray.address, "--ray-token-file", str(ray.token_file))
        cluster = Cluster(tmp_path, stack, fleet=fleet)
        job = cluster.submit()
        ray.kill()
        cluster.fleet.until("Ray is lost")
        ray.start()
        assert cluster.digest(job) == expected


def test_a_ray_cluster_lets_nobody_in_without_its_token(tmp_path: Path) -> None:
    ray = RayCluster(tmp_path)
    with ExitStack() as stack:
        stack.callback(ray.kill)
        ray.start()
        without = thalweg(tmp_path, "fleet", "--ray-address", ray.address)
        assert without.code == 1
        assert f"cannot join the Ray cluster at {ray.address} without its token" in without.stderr
        (tmp_path / "other").write_text("another-token")
        refused = thalweg(tmp_path, "fleet", "--ray-address", ray.address, "--ray-token-file", "other")
        assert refused.code == 1
        assert f"cannot join the Ray cluster at {ray.address}: it refuses this token" in refused.stderr
        # Where Ray itself looks.
        arguments = ("fleet", "--ray-address", ray.address, "--name", "of-the-environment")
        with service(tmp_path, *arguments, RAY_AUTH_TOKEN_PATH="ray-token") as (_, facts):
            assert facts["name"] == "of-the-environment"


def test_a_ray_cluster_that_asks_for_no_token_is_refused_unless_its_network_is_trusted(tmp_path: Path) -> None:
    ray = RayCluster(tmp_path, is_open=True)
    with ExitStack() as stack:
        stack.callback(ray.kill)
        ray.start()
        fleet = ("fleet", "--ray-address", ray.address)
        refused = thalweg(tmp_path, *fleet, "--ray-token-file", "ray-token")
        assert refused.code == 1
        assert "it requires no token, so anyone who can reach its ports can run code on it" in refused.stderr
        stack.enter_context(service(tmp_path, *fleet, "--trust-network"))
        assert not (tmp_path / ".ray").exists()


def test_a_ray_of_its_own_leaves_nothing_at_home_and_listens_on_loopback_only(shared: Cluster) -> None:
    shared.digest(shared.submit())
    listening = {
        connection.laddr.ip
        for process in shared.fleet.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    assert not (shared.home / ".ray").exists()


@pytest.mark.nightly
def test_two_rays_of_their_own_have_tokens_of_their_own(tmp_path: Path) -> None:
    with ExitStack() as stack:
        fleets = [stack.enter_context(service(tmp_path, "fleet", "--slots", "1"))[0] for _ in range(2)]
        environments = [process.environ() for fleet in fleets for process in below(fleet, "raylet")]
    assert [environment["RAY_AUTH_MODE"] for environment in environments] == ["token", "token"]
    tokens = {environment["RAY_AUTH_TOKEN"] for environment in environments}
    assert len(tokens) == 2
    assert all(len(token) == 64 for token in tokens)


@pytest.mark.nightly
def test_a_fleet_offers_the_cpus_that_it_may_use(tmp_path: Path) -> None:
    confined = tmp_path / "confined"
    one = min(os.sched_getaffinity(0))
    confined.write_text(f'#!/bin/sh\nexec taskset --cpu-list {one} {THALWEG} "$@"\n')
    confined.chmod(0o755)
    with service(tmp_path, "fleet", program=confined) as (fleet, _):
        (raylet,) = below(fleet, "raylet")
        assert any("CPU,1," in f"{argument}," for argument in raylet.cmdline() if "resource" in argument), raylet.cmdline()


def _waits(home: Path, job: str, address: str) -> dict[str, Any] | None:
    found: dict[str, Any] = thalweg(home, "jobs", job, "--server", address, "--json").answer["jobs"][0]
    return found if found["status"].startswith("waiting for workers") else None


def test_a_job_waits_visibly_when_there_is_no_worker(tmp_path: Path) -> None:
    with service(tmp_path, "serve", "--address", "127.0.0.1:0", "--data", str(tmp_path / "server")) as (_, facts):
        address = facts["address"]
        job = thalweg(tmp_path, "submit", "and", "--server", address, "--json").answer
        assert job["state"] == "QUEUED"
        assert "start one with `thalweg fleet`" in job["status"]
        listed = thalweg(tmp_path, "jobs", "--server", address)
        assert "waiting for workers" in listed.stdout
        watching = Running(tmp_path, "watch", job["job"], "--server", address)
        watching.until("waiting for workers")
        watching.interrupt()
        assert watching.end().code == 130
        assert thalweg(tmp_path, "jobs", "--server", address, "--json").answer["jobs"][0]["state"] == "QUEUED"


@pytest.mark.nightly
def test_a_server_that_asks_for_a_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a secret\n")
    arguments = ("serve", "--address", "127.0.0.1:0", "--data", str(tmp_path / "server"), "--token-file", str(token))
    with ExitStack() as stack:
        _, facts = stack.enter_context(service(tmp_path, *arguments))
        address = facts["address"]
        refused = thalweg(tmp_path, "train", "and", "--server", address)
        assert refused.code == 1
        assert refused.stderr.startswith("thalweg: this server requires a token")
        stack.enter_context(service(tmp_path, "fleet", "--server", address, "--slots", "2", THALWEG_TOKEN="a secret"))
        trained = thalweg(tmp_path, "train", "and", "--server", address, "--json", "--token-file", str(token))
        assert trained.code == 0, trained.stderr
        assert Path(trained.answer["weights"]) == tmp_path / f"{trained.answer['job']}.safetensors"
        assert Path(trained.answer["weights"]).is_file()


def test_a_busy_port_and_an_unreachable_server(tmp_path: Path) -> None:
    with service(tmp_path, "serve", "--address", "127.0.0.1:0", "--data", str(tmp_path / "server")) as (_, facts):
        busy = thalweg(tmp_path, "serve", "--address", facts["address"], "--data", str(tmp_path / "other"))
        assert busy.code == 1
        assert busy.stderr.startswith(f"thalweg: cannot listen at {facts['address']}")
    gone = thalweg(tmp_path, "train", "and", "--server", facts["address"])
    assert gone.code == 1
    assert gone.stderr == f"thalweg: cannot reach a Thalweg server at {facts['address']}: nothing listens there\n"
