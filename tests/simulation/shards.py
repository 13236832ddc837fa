"""Imaginary shards: the production code of their streams, to the server and from workers, on an imaginary network."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import grpc

from tests.simulation.network import Context, Inbox, Pipe, unavailable
from thalweg.contract import frames
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.contract.errors import from_rpc_error
from thalweg.contract.frames import Parcel
from thalweg.contract.release import hello
from thalweg.server.arrays.sharded.registry import ShardLink, ShardRegistry
from thalweg.server.services.parameter import ParameterService
from thalweg.server.services.shard import ShardService
from thalweg.server.settings import RunSettings
from thalweg.server.sharding.process import Attendance
from thalweg.v1 import parameter_service_pb2 as pb
from thalweg.v1 import shard_service_pb2
from thalweg.workers.transport.streams import Arrivals

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster
    from tests.simulation.worker import ImaginaryWorker

_SECRET = bytes(32)


class _Shares(ShardRegistry):
    """The shards of a server, and the numbers of the shares that were made of its run's arrays."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.of_run: set[int] = set()

    def number(self) -> int:
        share = super().number()
        self.of_run.add(share)
        return share


class ShardSide:
    """What a server's process has of its shards. It is `Jobs` for ShardService; `lost` is called when a shard is gone."""

    def __init__(self, cluster: "Cluster", settings: RunSettings, lost: Callable[[ShardLink], object]) -> None:
        self.settings = settings
        self.shards = _Shares(lambda: cluster.now)
        self.alive = True
        self._loop = cluster.loop
        self._lost = lost
        jobs: Any = self
        self._service = ShardService(jobs)
        self._streams: list[_ServerStream] = []

    def shard_lost(self, shard: ShardLink) -> None:
        """See `Jobs`."""
        if self.alive and shard in self.shards.attending:
            self.shards.attending.remove(shard)
            with self._loop.held_against_the_run():
                self._lost(shard)

    def hold(self, requests: Any, context: Any) -> AsyncGenerator[shard_service_pb2.HoldResponse, None]:
        """See `ShardService`."""
        return cast("AsyncGenerator[shard_service_pb2.HoldResponse, None]", self._service.Hold(requests, context))

    def open(self, stream: "_ServerStream") -> None:
        """A shard's stream has come."""
        self._streams.append(stream)

    def die(self) -> None:
        """The process ends."""
        self.alive = False
        for stream in self._streams:
            stream.server_dies()


class _ServerStream:
    """A shard's stream to the server. It is gRPC's channel and its call for a shard."""

    def __init__(self, cluster: "Cluster", shard: "ImaginaryShard") -> None:
        self._cluster = cluster
        self._loop = cluster.loop
        network = cluster.network
        self._requests: Inbox[shard_service_pb2.HoldRequest] = Inbox(cluster.loop)
        self._responses: Inbox[shard_service_pb2.HoldResponse] = Inbox(cluster.loop)
        self._up = Pipe(network, self._at_server, lambda: max(shard.stopped_until, cluster.stalled_until))
        self._down = Pipe(network, self._at_shard, lambda: shard.stopped_until)
        self._server: ShardSide | None = None
        self._serving: asyncio.Task[None] | None = None
        self._sending: asyncio.Task[None] | None = None
        shard.stream = self

    async def __aenter__(self) -> "_ServerStream":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()

    def stream_stream(self, *_: object, **__: object) -> Callable[..., AsyncIterator[shard_service_pb2.HoldResponse]]:
        """As gRPC's channels have it."""
        return self._open

    def _open(self, messages: AsyncIterator[Any], metadata: object) -> AsyncIterator[shard_service_pb2.HoldResponse]:
        self._loop.at(self._cluster.network.seconds(), lambda: self._connect(messages))
        return self._responses

    def _connect(self, messages: AsyncIterator[Any]) -> None:
        server = self._cluster.server
        if server is None:
            self._responses.end(unavailable("connection refused"))
            return
        self._server = server
        server.open(self)
        self._serving = self._loop.create_task(self._serve(server))
        self._sending = self._loop.create_task(self._send(messages))

    async def _send(self, messages: AsyncIterator[Any]) -> None:
        async for message in messages:
            await self._up.write(message)

    async def _serve(self, server: ShardSide) -> None:
        context: Any = Context(self._down, "ipv4:10.0.0.1:1")
        try:
            async with aclosing(server.hold(self._requests, context)) as responses:
                async for response in responses:
                    await self._down.write(response)
        except grpc.aio.AbortError:
            return
        self._down.send(StopAsyncIteration())

    def _at_server(self, message: shard_service_pb2.HoldRequest) -> None:
        if self._server:
            self._cluster.heard_of_shard(self._server, message)
        self._requests.put(message)

    def _at_shard(self, message: Any) -> None:
        if isinstance(message, BaseException):
            self._check(message)
            self._responses.end(message)
        else:
            self._responses.put(message)

    def _check(self, error: BaseException) -> None:
        if isinstance(error, grpc.aio.AioRpcError):
            reason = from_rpc_error(error, "").reason
            assert reason == "EVICTED", f"an honest shard was refused: {error.details()}"

    def cut(self, *, noticed: bool = True) -> None:
        """The connection breaks. Both ends notice it, each at its time; or neither does, before the other is silent."""
        self._up.cut()
        self._down.cut()
        if self._sending:
            self._sending.cancel()
        if noticed and self._serving:
            self._loop.at(self._cluster.random.uniform(0, 0.05), self._serving.cancel)
        # Pings go unanswered, at the latest.
        seconds = self._cluster.random.uniform(0, 0.05) if noticed else 1.0
        self._loop.at(seconds, lambda: self._responses.end(unavailable("socket closed")))

    def server_dies(self) -> None:
        """The server's process ends."""
        if self._serving:
            self._serving.cancel()
        self.cut()


class _ServerEndpoint(Endpoint):
    """The server, as a shard reaches it."""

    connect: Callable[[], Any]

    def open_aio(self) -> Any:
        return self.connect()


class ImaginaryShard:
    """One shard's process."""

    def __init__(self, cluster: "Cluster", number: int) -> None:
        self.number = number
        self.address = Address(f"shard-{number}", 7071)
        self.alive = True
        self.stopped_until = 0.0
        self.stream: _ServerStream | None = None
        self.guests: list[GuestStream] = []
        self._loop = cluster.loop
        endpoint = _ServerEndpoint(Address("server", 7070))
        endpoint.connect = lambda: _ServerStream(cluster, self)
        self._attendance = Attendance(endpoint, _SECRET)
        self.expects = self._attendance.host.expects
        handlers: list[Any] = []
        offer: Any = SimpleNamespace(add_generic_rpc_handlers=handlers.extend)
        ParameterService(self._attendance.host).add_to(offer)
        self.work: Callable[[Any, Any], Any] = handlers[0].service(SimpleNamespace(method=frames.METHOD)).stream_stream
        self._attending = cluster.loop.create_task(self._attendance.attend(self.address))

    def die(self) -> None:
        """The process ends. What it was about to say is not said."""
        self.alive = False
        self._attending.cancel()
        if self.stream:
            self.stream.cut()
        for guest in list(self.guests):
            guest.shard_dies()


class GuestStream:
    """A worker's stream to a shard. `arrived` holds what has come."""

    def __init__(self, cluster: "Cluster", worker: "ImaginaryWorker", shard: pb.ShardRange) -> None:
        self.chunks = range(shard.first_chunk, shard.end_chunk)
        self.arrived = Arrivals()
        self.over = False
        self._cluster = cluster
        self._loop = cluster.loop
        self._worker = worker
        self._token = shard.token
        self._address = shard.address
        self._shard: ImaginaryShard | None = None
        self._serving: asyncio.Task[None] | None = None
        self._requests: Inbox[Parcel[pb.WorkRequest]] = Inbox(cluster.loop)
        self._up = Pipe(cluster.network, self._at_shard, lambda: self._shard.stopped_until if self._shard else 0.0)
        self._down = Pipe(cluster.network, self._at_worker, lambda: worker.stopped_until)
        self.send(pb.WorkRequest(hello=hello(token=shard.token)))
        self._loop.at(cluster.network.seconds(), self._connect)

    def _connect(self) -> None:
        shard = self._shard = self._cluster.shards.get(self._address)
        if not self._worker.alive:
            return
        if shard is None:
            self._lose(unavailable("connection refused"))
            return
        shard.guests.append(self)
        self._serving = self._loop.create_task(self._serve(shard))

    async def _serve(self, shard: ImaginaryShard) -> None:
        context: Any = Context(self._down, "ipv4:10.0.0.1:1")
        try:
            # The guard of a shard's server asks this first.
            if not await shard.expects(self._token.hex()):
                self._down.send(unavailable("not invited"))
                return
            await shard.work(self._requests, context)
        except grpc.aio.AbortError:
            return
        self._down.send(unavailable("the stream ended"))

    def send(self, message: pb.WorkRequest) -> None:
        """The worker says something, and a gradient's chunk perhaps twice."""
        again = message.HasField("gradient") and self._cluster.random.random() < self._cluster.faults.duplicate
        parcel = frames.unpacked(message)
        for _ in range(1 + again):
            self._up.send(parcel)

    def _at_shard(self, request: Parcel[pb.WorkRequest]) -> None:
        if self._worker.heard:
            self._requests.put(request)

    def _at_worker(self, message: Any) -> None:
        if not (self._worker.alive and self._worker.heard) or self.over:
            return
        if isinstance(message, grpc.aio.AioRpcError):
            self._lose(message)
            return
        parcel = frames.response_of(message) if isinstance(message, bytes) else frames.unpacked(_copy(message))
        if parcel.message.HasField("goodbye"):
            self.over = True
        else:
            self.arrived.put(parcel)
        self._worker.shard_spoke()

    def _lose(self, error: grpc.aio.AioRpcError) -> None:
        reason = from_rpc_error(error, self._address)
        # A shard whose share was dropped does not know the worker any more.
        assert reason.reason in ("UNREACHABLE", "EVICTED", "UNAUTHENTICATED"), f"a shard refused an honest worker: {reason}"
        self.over = True
        if self._worker.alive:
            self._cluster.without_shard(self._worker)

    def cut(self) -> None:
        """The connection breaks, and both ends notice it some time."""
        self._up.cut()
        self._down.cut()
        random = self._cluster.random
        if self._serving:
            self._loop.at(random.uniform(0, 0.05), self._serving.cancel)
        self._loop.at(random.uniform(0, 0.05), lambda: None if self.over else self._lose(unavailable("socket closed")))
        if self._shard and self in self._shard.guests:
            self._shard.guests.remove(self)

    def shard_dies(self) -> None:
        """The shard's process ends."""
        if self._serving:
            self._serving.cancel()
        self.cut()

    def close(self) -> None:
        """The worker's process ends."""
        self.over = True
        self.cut()


def _copy(message: pb.WorkResponse) -> pb.WorkResponse:
    """A message of the receiver's own: several workers get the same one."""
    copied = pb.WorkResponse()
    copied.CopyFrom(message)
    return copied
