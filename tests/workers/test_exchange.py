"""What the server says beside the stream: all of it comes, in order, and a worker stays awake for it where waits are short."""

import socket
import threading
from collections.abc import Iterator

import pytest

from thalweg.contract.frames import Parcel
from thalweg.v1 import parameter_service_pb2 as pb
from thalweg.workers.transport import exchange


def response(version: int) -> pb.WorkResponse:
    return pb.WorkResponse(parameters=pb.ParametersChunk(version=version))


class Stream:
    """A stream on which nothing comes before it is let end; then the goodbye."""

    def __init__(self) -> None:
        self.end = threading.Event()

    def __iter__(self) -> Iterator[Parcel[pb.WorkResponse]]:
        self.end.wait()
        yield Parcel(pb.WorkResponse(goodbye=pb.Goodbye()))


def test_all_messages_come_in_order_and_the_goodbye_is_the_last() -> None:
    server, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stream = Stream()
    with server, worker:
        server.send(response(0).SerializeToString())
        server.send(response(1).SerializeToString())
        heard = exchange.listen(worker, iter(stream))
        assert [next(heard).message, next(heard).message] == [response(0), response(1)]
        server.send(response(2).SerializeToString())
        assert next(heard).message == response(2)
        stream.end.set()
        assert [parcel.message for parcel in heard] == [pb.WorkResponse(goodbye=pb.Goodbye())]


class Peer:
    """A socket and its clock: messages come at certain times. Each look at the clock takes a microsecond."""

    def __init__(self, arrivals: list[float]) -> None:
        self.now = 0.0
        self.arrivals = arrivals
        self.slept: list[bool] = []

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now

    def recv(self, size: int, flags: int = 0) -> bytes:
        assert size
        if not self.arrivals:
            return b""
        if flags & socket.MSG_DONTWAIT and self.arrivals[0] > self.now:
            raise BlockingIOError
        self.slept.append(self.arrivals[0] > self.now)
        self.now = max(self.now, self.arrivals.pop(0))
        return b"message"


@pytest.mark.parametrize(
    ("waits", "slept"),
    [
        ([0.0001] * 4, [False] * 4),
        ([0.0, 0.0, 0.0], [False] * 3),
        ([0.0007, 0.0001], [True, False]),
        ([0.1, 0.0001, 0.0001], [True, True, False]),
        ([0.1] * 4, [True] * 4),
    ],
    ids=["short", "none", "short enough", "one long", "long"],
)
def test_a_worker_stays_awake_where_the_last_wait_was_short(
    waits: list[float], slept: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = Peer([])
    monkeypatch.setattr(exchange, "time", peer)
    messages = exchange._messages(peer)  # type: ignore[arg-type]
    for wait in waits:
        peer.arrivals = [peer.now + wait]
        assert next(messages) == b"message"
    assert peer.slept == slept
    assert list(messages) == []
