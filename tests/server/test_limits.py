"""Peers that connect and ask for nothing: they are bounded, ended, and harm no other peer."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.end_to_end.cluster import running_server, stub_of, train
from tests.server.specs import make_spec
from thalweg.contract import resources
from thalweg.server.services import limits
from thalweg.server.services.limits import Limits
from thalweg.v1 import job_pb2, training_service_pb2

# The beginning of an HTTP/2 connection: the client's preface and its empty settings.
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"


@contextmanager
def connected(address: tuple[str, int], said: bytes = HELLO) -> Iterator[socket.socket]:
    with socket.create_connection(address, timeout=60.0) as connection:
        connection.sendall(said)
        yield connection


def end_of(connection: socket.socket) -> bool:
    """Whether the other side ends the connection, whatever it says before."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize("said", [HELLO, b"", b"PRI * HT"])
def test_a_connection_that_asks_for_nothing_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(limits, "_IDLE_MS", 200)
    monkeypatch.setattr(limits, "_HANDSHAKE_MS", 200)
    with running_server(tmp_path) as server, connected(server.address, said) as connection:
        assert end_of(connection)


def test_a_client_outlives_the_end_of_its_unused_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_IDLE_MS", 200)
    with running_server(tmp_path) as server, stub_of(server) as stub, connected(server.address) as other:
        stub.GetServerInfo(training_service_pb2.GetServerInfoRequest())
        # What is idle as long is ended as well.
        assert end_of(other)
        assert stub.GetServerInfo(training_service_pb2.GetServerInfoRequest()).version


def test_connections_are_bounded_and_the_ones_there_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "limits", lambda: Limits(10, 10))
    with running_server(tmp_path) as server, stub_of(server) as stub, ExitStack() as stack:
        assert stub.GetServerInfo(training_service_pb2.GetServerInfoRequest()).version
        others = [stack.enter_context(connected(server.address)) for _ in range(9)]
        assert end_of(stack.enter_context(connected(server.address)))
        assert stub.GetServerInfo(training_service_pb2.GetServerInfoRequest()).version
        for other in others:
            other.close()
        # Workers of a job get connections again.
        assert train(server, make_spec(), workers=2).state == job_pb2.JOB_STATE_SUCCEEDED


@pytest.mark.parametrize("left", [0, 100, 1000, 100_000, 1 << 40])
def test_descriptors_are_left_for_what_is_written(monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    monkeypatch.setattr(resources, "descriptors_left", lambda: left)
    connections, guests = limits.limits()
    assert connections >= 1
    assert connections + guests <= max(1, left - limits._RESERVED)
    assert connections < 1 << 31


def test_the_command_raises_its_limit() -> None:
    program = """if True:
        import resource
        from thalweg.command import main
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
        try:
            main(["--version"])
        finally:
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    """
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
