"""A worker's stream played by hand, and a proxy that meddles with a real worker's."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from tests.end_to_end.refusals import Refusal, refusal
from thalweg.contract.endpoint import Address, authorization
from thalweg.contract.layout import Slab
from thalweg.contract.release import hello
from thalweg.v1 import job_pb2, parameter_service_pb2_grpc
from thalweg.v1 import parameter_service_pb2 as pb

# Longer than anything here takes; a call that hangs ends with it.
DEADLINE = 60.0


class Peer:
    """A worker's stream, message by message."""

    def __init__(self, address: Address, token: str | None = None) -> None:
        self._channel = grpc.insecure_channel(str(address))
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        method: Any = self._channel.stream_stream(
            "/thalweg.v1.ParameterService/Work",
            request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
            response_deserializer=pb.WorkResponse.FromString,
        )
        self.call = method(iter(self._outbox.get, None), timeout=DEADLINE, metadata=authorization(token))

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def send(self, message: pb.WorkRequest | bytes) -> None:
        """Sends a message, or bytes that are none."""
        self._outbox.put(message)

    def hello(self, job_id: str, place: pb.Place | None = None) -> job_pb2.JobSpec:
        """Says hello, and gives the job's specification."""
        self.send(pb.WorkRequest(hello=hello(job_id=job_id, worker="peer", place=place)))
        welcome: pb.Welcome = self.receive("welcome")
        return welcome.spec

    def turned_away(self, job_id: str) -> str:
        """Says hello, and gives the reason for the goodbye that answers it."""
        self.send(pb.WorkRequest(hello=hello(job_id=job_id)))
        goodbye: pb.Goodbye = self.receive("goodbye")
        return goodbye.reason

    def fail(self, problem: str, scope: pb.Failure.Scope.ValueType = pb.Failure.SCOPE_JOB) -> str:
        """Says that it cannot do its job, and gives the reason for the goodbye that answers it."""
        self.send(pb.WorkRequest(failure=pb.Failure(problem=problem, scope=scope)))
        goodbye: pb.Goodbye = self.receive("goodbye")
        return goodbye.reason

    def prepare(self, prepared: pb.Prepared) -> pb.Accepted:
        """Says that it is prepared, and waits until it is accepted."""
        self.send(pb.WorkRequest(prepared=prepared))
        accepted: pb.Accepted = self.receive("accepted")
        return accepted

    def initialize(self, values: Slab) -> pb.DifferentiateTask:
        """Answers the task to make the initial parameters, which fit one chunk, and gives the first task that follows."""
        self.receive("initialize")
        self.send(pb.WorkRequest(initial=pb.ParametersChunk(data=values.tobytes())))
        task: pb.DifferentiateTask = self.receive("differentiate")
        return task

    def receive(self, kind: str) -> Any:
        """The next message of a kind; others are passed over."""
        for message in self.call:
            if message.HasField(kind):
                return getattr(message, kind)
        raise AssertionError(f"the stream ended without {kind}")

    def refusal(self) -> Refusal:
        """The error that ends the stream."""
        return refusal(lambda: self.call)

    def finish(self) -> None:
        """Says that nothing more comes."""
        self._outbox.put(None)

    def cut(self) -> None:
        """Ends the stream as a process that dies does."""
        self._channel.close()
        self._outbox.put(None)


class CutError(Exception):
    """A meddler's wish that the stream ends here."""


Meddler = Callable[[pb.WorkRequest], Iterator[pb.WorkRequest]]


class _Proxy(parameter_service_pb2_grpc.ParameterServiceServicer):
    def __init__(self, server: Address, meddle: Meddler) -> None:
        self._server = server
        self._meddle = meddle

    def Work(self, request_iterator: Iterator[pb.WorkRequest], context: Any) -> Iterator[pb.WorkResponse]:  # noqa: N802
        with grpc.insecure_channel(str(self._server)) as channel:

            def forward() -> Iterator[pb.WorkRequest]:
                try:
                    for request in request_iterator:
                        yield from self._meddle(request)
                except CutError:
                    channel.close()

            try:
                yield from parameter_service_pb2_grpc.ParameterServiceStub(channel).Work(forward(), timeout=DEADLINE)
            except (grpc.RpcError, ValueError):
                context.abort(grpc.StatusCode.UNAVAILABLE, "the stream was cut")


@contextmanager
def proxy(server: Address, meddle: Meddler) -> Iterator[Address]:
    """The address of a ParameterService that passes everything on to a server, and what workers say through a meddler.

    A meddler that raises `CutError` cuts the stream.
    """
    service = grpc.server(ThreadPoolExecutor(8))
    parameter_service_pb2_grpc.add_ParameterServiceServicer_to_server(_Proxy(server, meddle), service)
    port = service.add_insecure_port("127.0.0.1:0")
    service.start()
    try:
        yield Address("127.0.0.1", port)
    finally:
        service.stop(0).wait()


class HoldAfter:
    """A meddler that lets a number of gradient messages pass and then none, until it is released."""

    def __init__(self, messages: int) -> None:
        self._left = messages
        self.holding = threading.Event()
        self.released = threading.Event()

    def __call__(self, request: pb.WorkRequest) -> Iterator[pb.WorkRequest]:
        if request.WhichOneof("message") in ("gradient", "shared_gradient"):
            if self._left == 0:
                self.holding.set()
                self.released.wait(DEADLINE)
            self._left -= 1
        yield request
