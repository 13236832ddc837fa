"""A server and a fleet as processes of their own, and what may happen to them: the same bits all the same."""

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.command import Running, service, thalweg, wait_for

pytestmark = pytest.mark.ray

# Some seconds of work for two workers.
JOB = ("digits", "--set", "training.epochs=120")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of an undisturbed run with one worker."""
    ended = thalweg(tmp_path_factory.mktemp("undisturbed"), "train", *JOB, "--set", "training.workers=1", "--json")
    assert ended.code == 0, ended.stderr
    return str(ended.answer["weights_sha256"])


class Cluster:
    """A server at a port that stays the same, and a fleet of three slots. `serve` are further arguments for the server."""

    def __init__(self, home: Path, stack: ExitStack, *serve: str, data: Path | None = None) -> None:
        self._home = home
        self._stack = stack
        self._serve = serve
        self.data = data or home / "server"
        self.address = "127.0.0.1:0"
        self.server = self.start_server()
        self.fleet = self.start_fleet()

    def start_server(self) -> Running:
        """Starts the server, again if it ran before."""
        arguments = ("serve", "--address", self.address, "--data", str(self.data), *self._serve)
        running, facts = self._stack.enter_context(service(self._home, *arguments))
        self.address = facts["address"]
        return running

    def start_fleet(self) -> Running:
        """Starts a fleet of the same name as others."""
        arguments = ("fleet", "--server", self.address, "--slots", "3", "--name", "spare")
        return self._stack.enter_context(service(self._home, *arguments))[0]

    def __call__(self, *arguments: str) -> Any:
        """What a command answers."""
        ended = thalweg(self._home, *arguments, "--server", self.address, "--json")
        assert ended.code == 0, ended.stderr
        return ended.answer

    def submit(self) -> str:
        """A job that has taken some steps."""
        job = str(self("submit", *JOB)["job"])
        wait_for(lambda: self("jobs", job)["jobs"][0]["steps"] > 50)
        return job

    def events(self, job: str) -> list[dict[str, Any]]:
        """All events of a job, which is waited for."""
        ended = thalweg(self._home, "watch", job, "--server", self.address, "--json")
        assert ended.code == 0, ended.stderr
        return [json.loads(line) for line in ended.stdout.splitlines()]

    def digest(self, job: str) -> str:
        """The digest of what comes of a job, which is waited for."""
        sequences = [event["sequence"] for event in self.events(job)]
        assert sequences == list(range(1, len(sequences) + 1))
        return str(self("jobs", job)["jobs"][0]["weights_sha256"])

    def workers(self, job: str, number: int) -> list[int]:
        """The process ids of a job's workers, which are waited for until there are so many."""
        watching = Running(self._home, "watch", job, "--server", self.address, "--json")
        try:
            while (event := json.loads(watching.line()))["event"] != "workers_changed" or event["workers"] != number:
                pass
        finally:
            watching.process.kill()
            watching.end()
        return [int(name.rpartition("/")[2]) for name in event["names"]]


@pytest.fixture
def cluster(tmp_path: Path) -> Any:
    with ExitStack() as stack:
        yield Cluster(tmp_path, stack)


def test_a_worker_is_killed(cluster: Cluster, expected: str) -> None:
    job = cluster.submit()
    os.kill(cluster.workers(job, 2)[0], signal.SIGKILL)
    assert cluster.digest(job) == expected
    notices = [event["text"] for event in cluster.events(job) if event["event"] == "notice"]
    assert len(notices) == 1
    assert notices[0].startswith("a worker of fleet spare ended and is replaced: ")


def test_workers_come_and_go(cluster: Cluster, expected: str) -> None:
    job = cluster.submit()
    for workers in (3, 1, 2):
        cluster("scale", job, str(workers))
        cluster.workers(job, workers)
    assert cluster.digest(job) == expected


def test_the_server_is_killed(cluster: Cluster, expected: str) -> None:
    job = cluster.submit()
    cluster.server.process.kill()
    cluster.server.process.wait()
    cluster.server = cluster.start_server()
    assert cluster.digest(job) == expected


def test_the_fleet_is_killed_and_another_takes_its_place(tmp_path: Path, expected: str) -> None:
    with ExitStack() as stack:
        arguments = ("serve", "--address", "127.0.0.1:0", "--data", str(tmp_path / "server"))
        _, facts = stack.enter_context(service(tmp_path, *arguments))
        address = facts["address"]
        first = Running(tmp_path, "fleet", "--server", address, "--slots", "2", "--json")
        first.line()
        job = thalweg(tmp_path, "submit", *JOB, "--server", address, "--json").answer["job"]

        def steps() -> int:
            return int(thalweg(tmp_path, "jobs", job, "--server", address, "--json").answer["jobs"][0]["steps"])

        wait_for(lambda: steps() > 50)
        first.process.kill()
        first.process.wait()
        waiting = wait_for(lambda: _waits(tmp_path, job, address))
        assert waiting["state"] == "RUNNING"
        wait_for(lambda: not first.left_behind())
        stack.enter_context(service(tmp_path, "fleet", "--server", address, "--slots", "2"))
        ended = thalweg(tmp_path, "watch", job, "--server", address, "--json")
        assert ended.code == 0, ended.stderr
        assert thalweg(tmp_path, "jobs", job, "--server", address, "--json").answer["jobs"][0]["weights_sha256"] == expected


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


def test_a_server_that_asks_for_a_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a secret\n")
    arguments = ("serve", "--address", "127.0.0.1:0", "--data", str(tmp_path / "server"), "--token-file", str(token))
    with ExitStack() as stack:
        _, facts = stack.enter_context(service(tmp_path, *arguments))
        address = facts["address"]
        refused = thalweg(tmp_path, "train", "and", "--server", address)
        assert refused.code == 1
        assert refused.stderr.startswith("thalweg: this server asks for a token")
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
