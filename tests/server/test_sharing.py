"""The server's end of shared memory: who is let in, what is refused, and that nothing stays open."""

import asyncio
import errno
import gc
import os
import queue
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

from tests.end_to_end.cluster import running_server, stub_of, train
from tests.end_to_end.command import wait_for
from tests.server.specs import make_spec
from thalweg.contract import shared_memory as memory
from thalweg.contract.release import hello
from thalweg.server.process import Server
from thalweg.server.streams import memory_listener
from thalweg.server.streams.memory_listener import Sharing
from thalweg.server.streams.memory_peers import MemoryPeer
from thalweg.v1 import job_pb2, parameter_service_pb2_grpc, training_service_pb2
from thalweg.v1 import parameter_service_pb2 as pb

pytestmark = pytest.mark.skipif(not memory.AVAILABLE, reason="memory is shared on Linux only")
LAYOUT = job_pb2.Layout(tensors=[job_pb2.Tensor(name="0.weight", shape=[3])], dtype="float32")
FLOAT = np.dtype("<f4")


class Peer:
    """A worker, played by hand."""

    def __init__(self, server: Server, spec: job_pb2.JobSpec) -> None:
        with stub_of(server) as stub:
            self.job = stub.CreateJob(training_service_pb2.CreateJobRequest(spec=spec)).job.id
        self._outbox: queue.SimpleQueue[pb.WorkRequest | None] = queue.SimpleQueue()
        self._channel = grpc.insecure_channel(str(server.address))
        self._inbox = parameter_service_pb2_grpc.ParameterServiceStub(self._channel).Work(iter(self._outbox.get, None))
        self.say(hello=hello(job_id=self.job, worker="by hand"))
        self.offer = self.hear().welcome.shared_memory

    def say(self, **message: object) -> None:
        self._outbox.put(pb.WorkRequest(**message))  # type: ignore[arg-type]

    def hear(self) -> pb.WorkResponse:
        return next(self._inbox)

    def prepare(self, shared_memory: bool = True) -> None:
        self.say(prepared=pb.Prepared(layout=LAYOUT, train_samples=8, shared_memory=shared_memory))

    def close(self) -> None:
        self._outbox.put(None)
        self._channel.close()


@contextmanager
def peer_of(server: Server, spec: job_pb2.JobSpec | None = None) -> Iterator[Peer]:
    peer = Peer(server, spec or make_spec(microbatches=1))
    try:
        yield peer
    finally:
        peer.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running_server(tmp_path) as server:
        yield server


def differentiated(peer: Peer, **changes: object) -> pb.WorkResponse:
    """What follows when a worker that has taken the offer answers its first task with the one slab that it has handed over."""
    with memory.connect(peer.offer.address, peer.offer.token, 10.0) as connection:
        peer.prepare()
        assert peer.hear().accepted.shared_memory
        _, (even, odd) = memory.take(connection, 2)
        parameters = memory.slab(even, 3, FLOAT, writable=False)
        os.close(odd)
        assert pb.WorkResponse.FromString(connection.recv(1000)).HasField("initialize")
        peer.say(initial=pb.ParametersChunk(data=np.array([1, 2, 3], FLOAT).tobytes()))
        task = pb.WorkResponse.FromString(connection.recv(1000)).differentiate
        assert parameters.tolist() == [1, 2, 3]
        file = memory.create(12)
        memory.slab(file, 3, FLOAT, writable=True)[:] = [1, 1, 1]
        memory.give(connection, file)
        fields = {"version": task.version, "step": task.step, "level": task.level, "index": task.index, "end_chunk": 1}
        gradient = pb.SharedGradient(**{**fields, "sums": pb.Sums(loss=1, samples=8), **changes})  # type: ignore[arg-type]
        connection.send(pb.WorkRequest(shared_gradient=gradient).SerializeToString())
        answer = connection.recv(1000)
        return pb.WorkResponse.FromString(answer) if answer else peer.hear()


def test_parameters_and_gradients_need_no_messages(server: Server) -> None:
    with peer_of(server) as peer:
        assert differentiated(peer).differentiate.version == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"slab": 1},
        {"slab": (1 << 32) - 1},
        {"end_chunk": 2},
        {"end_chunk": 0},
        {"first_chunk": 1},
        {"sums": None},
    ],
)
def test_a_reference_to_nothing_breaks_the_stream_and_nothing_else(server: Server, changes: dict[str, object]) -> None:
    with peer_of(server) as peer, pytest.raises(grpc.RpcError, match="the peer broke the protocol"):
        differentiated(peer, **changes)
    assert train(server, make_spec()).state == job_pb2.JOB_STATE_SUCCEEDED


def accepted(peer: Peer, connection: socket.socket) -> None:
    peer.prepare()
    assert peer.hear().accepted.shared_memory
    for file in memory.take(connection, 2)[1]:
        os.close(file)


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"\xff\xff", "bytes that are not a message"),
        (b"", "considers this worker lost"),
        (pb.WorkRequest(hello=pb.Hello()).SerializeToString(), "hello was not expected"),
        (bytes(memory.MAX_BYTES), "considers this worker lost"),
        (bytes(50_000), "considers this worker lost"),
    ],
)
def test_nonsense_on_the_socket_ends_the_stream_and_nothing_else(server: Server, said: bytes, answer: str) -> None:
    with peer_of(server) as peer, memory.connect(peer.offer.address, peer.offer.token, 10.0) as connection:
        accepted(peer, connection)
        connection.send(said)
        with pytest.raises(grpc.RpcError, match=answer):
            peer.hear()
    assert train(server, make_spec()).state == job_pb2.JOB_STATE_SUCCEEDED


def test_a_worker_that_closes_its_socket_is_lost(server: Server) -> None:
    with peer_of(server) as peer:
        with memory.connect(peer.offer.address, peer.offer.token, 10.0) as connection:
            accepted(peer, connection)
        with pytest.raises(grpc.RpcError, match="considers this worker lost"):
            peer.hear()


def test_more_slabs_than_there_can_be_are_not_kept(server: Server) -> None:
    with peer_of(server) as peer, memory.connect(peer.offer.address, peer.offer.token, 10.0) as connection:
        accepted(peer, connection)
        file = memory.create(12)
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(10_000):
                memory.give(connection, file)
        with pytest.raises(grpc.RpcError, match="considers this worker lost"):
            peer.hear()
        os.close(file)


def test_an_offer_that_was_not_taken_cannot_be_claimed(server: Server) -> None:
    with peer_of(server) as peer:
        peer.prepare(shared_memory=True)
        with pytest.raises(grpc.RpcError, match="shared memory that was not accepted"):
            peer.hear()


@pytest.mark.parametrize("token", [b"", b"short", bytes(memory.TOKEN_BYTES), bytes(1000)])
def test_a_wrong_token_is_not_answered(server: Server, token: bytes) -> None:
    with peer_of(server) as peer, pytest.raises(memory.SharingError):
        memory.connect(peer.offer.address, token, 10.0)


def test_a_token_is_taken_once(server: Server) -> None:
    with peer_of(server) as peer, memory.connect(peer.offer.address, peer.offer.token, 10.0), pytest.raises(memory.SharingError):
        memory.connect(peer.offer.address, peer.offer.token, 10.0)


def test_a_worker_that_shares_nothing_is_served_as_well(server: Server) -> None:
    with peer_of(server) as peer:
        peer.prepare(shared_memory=False)
        assert not peer.hear().accepted.shared_memory
        assert peer.hear().HasField("initialize")
        peer.say(initial=pb.ParametersChunk(data=np.array([1, 2, 3], FLOAT).tobytes()))
        assert np.frombuffer(peer.hear().differentiate.parameters.data, FLOAT).tolist() == [1, 2, 3]


@pytest.mark.parametrize("synchrony", ["stale", "asynchronous"])
def test_nothing_is_shared_where_a_task_may_be_older_than_the_parameters(server: Server, synchrony: str) -> None:
    with peer_of(server, make_spec(synchrony={synchrony: {}})) as peer:
        assert not peer.offer.address


def test_nothing_is_shared_where_that_is_not_wanted(tmp_path: Path) -> None:
    with running_server(tmp_path, shared_memory=False) as server, peer_of(server) as peer:
        assert not peer.offer.address


def test_memory_that_the_machine_does_not_give_is_done_without(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(memory, "create", refuse)
    assert train(server, make_spec(), workers=2).state == job_pb2.JOB_STATE_SUCCEEDED


def test_nothing_stays_open(server: Server) -> None:
    def mapped() -> int:
        return sum("memfd:thalweg" in each.path for each in psutil.Process().memory_maps(grouped=False))

    # What a test before this one used may be collected late.
    gc.collect()
    before = mapped()
    for _ in range(5):
        assert train(server, make_spec(), workers=2).state == job_pb2.JOB_STATE_SUCCEEDED
    wait_for(lambda: gc.collect() >= 0 and mapped() <= before)


def test_callers_that_say_nothing_keep_nobody_out(server: Server) -> None:
    with peer_of(server) as peer:
        callers = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(50)]
        for caller in callers:
            caller.connect(f"\0{peer.offer.address}")
        with memory.connect(peer.offer.address, peer.offer.token, 10.0):
            pass
        for caller in callers:
            caller.close()


def attach_and_leave(peer: Peer) -> None:
    """Sends the token, and is gone before the answer."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(f"\0{peer.offer.address}")
    connection.send(peer.offer.token)
    connection.close()


@pytest.mark.parametrize("then", ["falls silent", "ends its stream", "goes on"])
def test_a_worker_that_is_gone_before_it_is_let_in_ends_nothing_but_its_own_stream(tmp_path: Path, then: str) -> None:
    with running_server(tmp_path, silence_seconds=0.5) as server, stub_of(server) as stub:
        with peer_of(server) as peer, peer_of(server) as other:
            attach_and_leave(peer)
            attach_and_leave(other)
            if then == "goes on":
                peer.prepare(shared_memory=True)
            if then != "ends its stream":
                with pytest.raises(grpc.RpcError):
                    peer.hear()
        job = stub.GetJob(training_service_pb2.GetJobRequest(job_id=peer.job)).job
        assert job.state in (job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING), job.error
        assert train(server, make_spec()).state == job_pb2.JOB_STATE_SUCCEEDED


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def guest(lost: list[str]) -> MemoryPeer:
    return MemoryPeer("name", lambda _: None, lost.append)


def test_a_full_socket_is_waited_for(pair: tuple[socket.socket, socket.socket]) -> None:
    async def test() -> None:
        ours, theirs = pair
        lost: list[str] = []
        worker = guest(lost)
        worker.attach(ours)
        messages = [str(number).encode() * 100 for number in range(2000)]
        for message in messages:
            worker.say(message)
        assert theirs.recv(1) == memory.OK
        read: list[bytes] = []
        while len(read) < len(messages):
            with suppress(BlockingIOError):
                read.append(theirs.recv(memory.MAX_BYTES))
                continue
            await asyncio.sleep(0)
        assert read == messages
        assert not lost
        worker.close()

    asyncio.run(test())


def test_a_worker_that_reads_nothing_is_lost(pair: tuple[socket.socket, socket.socket]) -> None:
    async def test() -> None:
        lost: list[str] = []
        worker = guest(lost)
        worker.attach(pair[0])
        for _ in range(20_000):
            worker.say(bytes(100))
        assert len(lost) == 1
        assert not worker.attached

    asyncio.run(test())


def test_a_slab_costs_no_descriptor_once_it_is_used(pair: tuple[socket.socket, socket.socket]) -> None:
    async def test() -> None:
        ours, theirs = pair
        worker = guest([])
        worker.attach(ours)
        before = psutil.Process().num_fds()
        for _ in range(20):
            file = memory.create(12)
            memory.give(theirs, file)
            os.close(file)
        await asyncio.sleep(0.01)
        for number in range(20):
            assert worker.slab(number, 3, FLOAT).tolist() == [0, 0, 0]
        assert psutil.Process().num_fds() == before
        worker.close()

    asyncio.run(test())


def test_without_descriptors_nobody_is_let_in_and_nothing_spins(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory_listener, "_PAUSE_SECONDS", 0.01)
    attempts: list[int] = []

    class Exhausted(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            attempts.append(1)
            if len(attempts) <= 3:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    def listen() -> tuple[socket.socket, str]:
        listener = Exhausted(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(f"\0thalweg-test-{os.getpid()}")
        listener.listen(10)
        return listener, f"thalweg-test-{os.getpid()}"

    async def test() -> None:
        monkeypatch.setattr(memory, "listen", listen)
        open_ = Sharing()
        worker = open_.invite(lambda _: None, lambda _: None)
        assert worker
        connecting = asyncio.to_thread(memory.connect, worker.offer.address, worker.token, 10.0)
        with await connecting:
            assert worker.attached
        open_.close()

    asyncio.run(test())
    assert len(attempts) >= 4
    assert caplog.text.count("Too many open files") == 1


def test_callers_that_say_nothing_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_listener, "_TOKEN_SECONDS", 0.01)

    async def test() -> None:
        open_ = Sharing()
        worker = open_.invite(lambda _: None, lambda _: None)
        assert worker
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
            caller.setblocking(False)
            caller.connect(f"\0{worker.offer.address}")
            assert await asyncio.get_running_loop().sock_recv(caller, 1) == b""
        open_.close()

    asyncio.run(test())


def test_workers_beyond_the_most_use_their_streams() -> None:
    async def test() -> None:
        open_ = Sharing(max_guests=1)
        first = open_.invite(lambda _: None, lambda _: None)
        assert first
        assert open_.invite(lambda _: None, lambda _: None) is None
        open_.dismiss(first)
        assert open_.invite(lambda _: None, lambda _: None)
        open_.close()

    asyncio.run(test())
