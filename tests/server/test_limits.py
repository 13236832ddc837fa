"""Peers that connect and ask for nothing: they are bounded, ended, and harm no other peer."""

import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.end_to_end.cluster import running_server, stub_of, train
from tests.end_to_end.peer import DEADLINE
from tests.end_to_end.refusals import refusal
from tests.fuzz.calls import METHODS
from tests.server.specs import make_spec
from thalweg.contract import resources
from thalweg.contract.endpoint import authorization
from thalweg.server.process import Server
from thalweg.server.services import limits, stalling
from thalweg.server.services.limits import Limits
from thalweg.v1 import job_pb2, training_service_pb2, training_service_pb2_grpc

# The beginning of an HTTP/2 connection: the client's preface and its empty settings.
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"

# A method of shards alone.
CONFIRM = "/thalweg.v1.ShardConfirmationService/Confirm"


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


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a token, and without patience."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stalling, "OPENING_SECONDS", 0.2)
        patch.setattr(stalling, "STALLED_SECONDS", 0.2)
        with running_server(tmp_path_factory.mktemp("hasty"), token="secret") as server:
            yield server


@pytest.mark.parametrize("path", [method.path for method in METHODS if method.path != CONFIRM])
def test_a_call_that_says_nothing_is_ended(hasty: Server, path: str) -> None:
    silence = threading.Event()
    with grpc.insecure_channel(str(hasty.address)) as channel:
        make: Any = channel.stream_stream(path)
        # The iterator is another thread's, and ends with the call.
        call = make(iter(silence.wait, True), timeout=DEADLINE, metadata=authorization("secret"))
        refused = refusal(lambda: call)
        silence.set()
    assert (refused.code, refused.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "TOO_SLOW")


def test_a_watcher_that_reads_nothing_is_ended(hasty: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    event = training_service_pb2.Event(notice=training_service_pb2.Notice(text="x" * 100_000))
    ended = threading.Event()

    async def watch(*_: object) -> AsyncIterator[training_service_pb2.Event]:
        try:
            while True:
                yield event
        finally:
            ended.set()

    monkeypatch.setattr(hasty.jobs.queries, "watch", watch)
    with grpc.insecure_channel(str(hasty.address)) as channel:
        watching = training_service_pb2_grpc.TrainingServiceStub(channel).WatchJob(
            training_service_pb2.WatchJobRequest(job_id="any"), metadata=authorization("secret"), timeout=DEADLINE
        )
        assert ended.wait(DEADLINE)
        assert refusal(lambda: watching).reason == "TOO_SLOW"


@pytest.mark.parametrize("packing", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_message_that_is_large_when_it_is_unpacked_is_refused(hasty: Server, packing: grpc.Compression) -> None:
    with grpc.insecure_channel(str(hasty.address), options=[("grpc.max_send_message_length", -1)]) as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        refused = refusal(lambda: check(bytes(64 << 20), compression=packing, timeout=DEADLINE))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_headers_are_bounded(hasty: Server) -> None:
    with grpc.insecure_channel(str(hasty.address)) as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        refused = refusal(lambda: check(b"", metadata=(("x", "y" * (1 << 20)),), timeout=DEADLINE))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED


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
