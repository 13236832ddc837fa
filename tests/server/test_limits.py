"""Peers that connect and ask for nothing: they are bounded, ended, and harm no other peer."""

import asyncio
import socket
import subprocess
import sys
import threading
import time
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
from thalweg.contract.endpoint import Address, authorization
from thalweg.contract.errors import ThalwegError
from thalweg.server.access.principal import Principal, Role
from thalweg.server.process import Server, ServerConfig
from thalweg.server.services.guarding import doorkeeper, limits, stalling
from thalweg.server.services.guarding.limits import Limits
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


def test_the_time_in_which_the_server_stands_still_is_not_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalling, "OPENING_SECONDS", 0.2)

    async def open_while_nothing_moves() -> bytes | None:
        come = asyncio.Event()

        async def requests() -> AsyncIterator[bytes]:
            await come.wait()
            yield b"x"

        loop = asyncio.get_running_loop()
        loop.call_later(0.01, time.sleep, 0.6)
        loop.call_later(0.02, come.set)
        return await stalling.opening(requests())

    assert asyncio.run(open_while_nothing_moves()) == b"x"


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


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_strangers_leave_room_for_those_who_may_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr(limits, "limits", lambda: Limits(40, 10))
    monkeypatch.setattr(doorkeeper, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(doorkeeper, "_GRACE_SECONDS", 0.1)
    config = ServerConfig(Address(host, 0), tmp_path, token="secret")
    server = Server(config)
    server.start()
    try:
        with ExitStack() as stack:
            metadata = authorization("secret")
            guests = [
                stack.enter_context(grpc.insecure_channel(str(server.address), options=[("grpc.use_local_subchannel_pool", 1)]))
                for _ in range(10)
            ]
            stubs = [training_service_pb2_grpc.TrainingServiceStub(guest) for guest in guests]
            job = stubs[0].CreateJob(training_service_pb2.CreateJobRequest(spec=make_spec()), metadata=metadata).job.id
            watching = [stub.WatchJob(training_service_pb2.WatchJobRequest(job_id=job), metadata=metadata) for stub in stubs]
            for watch in watching:
                assert next(watch).event.sequence == 1
            strangers = [stack.enter_context(connected(server.address)) for _ in range(30)]
            # All places are taken.
            assert end_of(stack.enter_context(connected(server.address)))
            assert all(end_of(stranger) for stranger in strangers)
            # Those who showed the token stay, and others find room.
            stubs[0].CancelJob(training_service_pb2.CancelJobRequest(job_id=job), metadata=metadata)
            for watch in watching:
                assert [response.event.sequence for response in watch][-1] > 1
    finally:
        server.stop()


def test_a_few_strangers_are_not_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = threading.Event()
    monkeypatch.setattr(limits, "limits", lambda: Limits(40, 10))
    monkeypatch.setattr(doorkeeper, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(doorkeeper, "_GRACE_SECONDS", 0.0)
    with running_server(tmp_path) as server, ExitStack() as stack:
        strangers = [stack.enter_context(connected(server.address)) for _ in range(20)]
        look = server._doorkeeper.look

        def look_twice() -> None:
            look()
            look()
            looked.set()

        monkeypatch.setattr(server._doorkeeper, "look", look_twice)
        # There are more descriptors than a half of the connections, and no more connections.
        assert looked.wait(DEADLINE)
        for stranger in strangers:
            stranger.settimeout(0.05)
            # The server's own settings, and nothing else.
            assert stranger.recv(1 << 16)


def test_a_principals_calls_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_STRANGERS_CALLS", 3)
    silence = threading.Event()
    with running_server(tmp_path, token="secret") as server, grpc.insecure_channel(str(server.address)) as channel:
        check: Any = channel.stream_stream("/grpc.health.v1.Health/Check")
        silent = [check(iter(silence.wait, True), timeout=DEADLINE) for _ in range(4)]
        refusals = {refused.reason for refused in [refusal(lambda call=call: call) for call in silent]}  # type: ignore[misc]
        assert refusals == {"TOO_MANY_CALLS", "TOO_SLOW"}
        silence.set()
        # Places are free again.
        assert list(check(iter([b""]), timeout=DEADLINE))


def test_calls_are_counted_by_principal() -> None:
    calls = limits.Calls()
    viewer, other, admin = Principal("v", Role.VIEWER), Principal("w", Role.VIEWER), Principal("a", Role.ADMIN)
    with ExitStack() as stack:
        for principal in [*[viewer] * 256, *[admin] * 5000]:
            stack.enter_context(calls.one_more(principal))
        with pytest.raises(ThalwegError, match="v may have 256 calls at a time"):
            stack.enter_context(calls.one_more(viewer))
        stack.enter_context(calls.one_more(other))
        stack.enter_context(calls.one_more(None))
    assert not calls._open


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
