"""Fixtures of the client's tests: folders of their own, a cluster that all share, and the command line."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.client.helpers import Cluster, Printed, fleet_of_threads
from tests.end_to_end.cluster import running_server
from thalweg.client import Client
from thalweg.client.cli.app import run
from thalweg.server.process import Server

Command = Callable[..., Printed]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's own folders, server or token."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home" / "data"))
    for name in ("THALWEG_SERVER", "THALWEG_TOKEN", "THALWEG_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A server with a fleet and two jobs that ended."""
    with (
        running_server(tmp_path_factory.mktemp("cluster")) as server,
        fleet_of_threads(server),
        Client(server.address) as client,
    ):
        gate = client.submit("xor", {"training.epochs": 40}, id="gate")
        digits = client.submit(
            "digits",
            {"training.epochs": 3, "model.layers[0].dense.units": 16, "data.standardize": True},
            id="digits",
        )
        gate.wait()
        digits.wait()
        yield Cluster(server, client, gate, digits)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server without a fleet: its jobs wait."""
    with running_server(tmp_path / "server") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of the server without a fleet."""
    with Client(server.address) as client:
        yield client


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line as the shell would."""

    def call(*arguments: object) -> Printed:
        code = run([str(argument) for argument in arguments])
        return Printed(code, *capsys.readouterr())

    return call
