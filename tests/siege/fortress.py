"""A server in a process of its own, a job that is trained there by workers in another one, and those who besiege it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.end_to_end.command import Running, service
from tests.siege import besieger
from thalweg.client import Client
from thalweg.client.job import Job

TOKEN = "secret"
_WORKERS = """if True:
    import sys, threading
    from thalweg.contract.process import prepare
    prepare()
    from thalweg.contract.endpoint import Endpoint, parse_address
    from thalweg.workers.worker import work
    address, job, token = sys.argv[1:]
    for number in range(2):
        threading.Thread(target=work, args=(Endpoint(parse_address(address), token), job, f"worker-{number}")).start()
"""


class Siege(NamedTuple):
    """One kind of besieger: how many, and whether they have the server's token."""

    kind: str
    number: int
    has_token: bool


class Fortress:
    """A server that is besieged."""

    def __init__(self, running: Running, address: str, home: Path) -> None:
        self.address = address
        self._home = home
        self._process = psutil.Process(running.process.pid)
        self.running = running

    @property
    def mib(self) -> int:
        """The memory that the server has."""
        return int(self._process.memory_info().rss) >> 20

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client with a connection of its own."""
        with Client(self.address, TOKEN) as client:
            yield client

    @contextmanager
    def training(self, epochs: int) -> Iterator[Job]:
        """A job that is trained."""
        with self.client() as client:
            job = client.submit("digits", {"training.epochs": epochs, "training.workers": 2})
            workers = subprocess.Popen([sys.executable, "-c", _WORKERS, self.address, job.id, TOKEN])
            try:
                yield job
            finally:
                job.cancel()
                assert workers.wait() == 0

    @contextmanager
    def besieged(self, siege: Siege, job: str) -> Iterator[None]:
        """Besieges the server within the context."""
        token = {"THALWEG_TOKEN": TOKEN} if siege.has_token else {}
        arguments = (siege.kind, self.address, str(siege.number), job)
        with subprocess.Popen(
            [sys.executable, "-m", besieger.__name__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**_plain_environment(), **token},
        ) as process:
            assert process.stdout
            assert process.stdin
            assert process.stdout.readline() == "begun\n"
            yield
            process.stdin.close()


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("THALWEG_")}


@contextmanager
def fortress(home: Path) -> Iterator[Fortress]:
    """A server with a token."""
    serve = ("serve", "--address", "127.0.0.1:0", "--data", str(home / "server"))
    with service(home, *serve, THALWEG_TOKEN=TOKEN) as (running, facts):
        yield Fortress(running, facts["address"], home)


def steps_of(job: Job) -> int:
    """How many steps a job has taken."""
    return int(job.refresh().progress.step)


def speed(job: Job, seconds: float) -> float:
    """How many steps a job takes in a second, over some seconds."""
    before, began = steps_of(job), time.monotonic()
    time.sleep(seconds)
    after, ended = steps_of(job), time.monotonic()
    return (after - before) / (ended - began)
