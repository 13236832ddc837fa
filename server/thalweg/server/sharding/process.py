"""A shard's process: it offers itself to a server, again whenever that is necessary, and serves ParameterService to workers."""

import asyncio
import ipaddress
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from thalweg.contract.endpoint import Address, Endpoint
from thalweg.contract.errors import ThalwegError
from thalweg.contract.frames import METHOD
from thalweg.contract.release import shard_offer
from thalweg.contract.tls import ServerTls
from thalweg.server.arrays.pieces import Piece
from thalweg.server.services.confirmation import Confirmation
from thalweg.server.services.hosted import STOP_GRACE_SECONDS, Hosted
from thalweg.server.services.parameter import ParameterService
from thalweg.server.sharding.host import INVITATION_SECONDS, ShardHost
from thalweg.v1 import parameter_service_pb2, shard_service_pb2_grpc
from thalweg.v1 import shard_service_pb2 as pb

if TYPE_CHECKING:
    from thalweg.server.sharding.observed import ShardSource

_log = logging.getLogger(__name__)
# How long a shard waits before it tries to reach the server again: at first, and at most.
_MIN_SECONDS, _MAX_SECONDS = 0.1, 5.0


@dataclass(frozen=True)
class ShardConfig:
    """How a shard runs: where it listens, and the server that it belongs to, which asks for the same token.

    A shard has `tls` if its server does. Its certificate names the host of its address, or has the name `tls_name`. `metrics`
    is where it can be observed over HTTP.
    """

    address: Address
    server: Endpoint
    trust_network: bool = False
    metrics: Address | None = None
    invitation_seconds: float = INVITATION_SECONDS
    tls: ServerTls | None = None
    tls_name: str = ""


class _Outbox:
    """Messages to the server. Copies, which are long, wait for all urgent messages."""

    def __init__(self) -> None:
        self._urgent: deque[pb.HoldRequest] = deque()
        self._copies: deque[Piece] = deque()
        self._filled = asyncio.Event()

    def put(self, message: pb.HoldRequest | Piece) -> None:
        """Queues a message, or a piece of a copy."""
        if isinstance(message, Piece):
            self._copies.append(message)
        else:
            self._urgent.append(message)
        self._filled.set()

    async def messages(self) -> AsyncIterator[pb.HoldRequest]:
        """What is queued, as it comes."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._urgent or self._copies:
                yield self._urgent.popleft() if self._urgent else self._copies.popleft().message()


class Attendance:
    """A shard's stream to its server, which it opens again whenever it has ended. `secret` confirms its offer.

    `tls_name` is the name that the shard's certificate has, if that is not the host of its address.
    """

    def __init__(
        self, server: Endpoint, secret: bytes, invitation_seconds: float = INVITATION_SECONDS, tls_name: str = ""
    ) -> None:
        self.host = ShardHost(self._say, invitation_seconds)
        self._server = server
        self._secret = secret
        self._tls_name = tls_name
        self._outbox = _Outbox()

    def _say(self, message: pb.HoldRequest | Piece) -> None:
        self._outbox.put(message)

    async def attend(self, address: Address) -> None:
        """Offers the shard, which listens at an address, whenever the server can be reached. Runs until it is cancelled."""
        seconds, told = _MIN_SECONDS, ""
        while True:
            self._outbox, refused = _Outbox(), False
            try:
                async with self._server.open_aio() as channel:
                    if await self._hold(channel, address):
                        seconds, told = _MIN_SECONDS, ""
                    problem = "it ended the stream"
            except grpc.aio.AioRpcError as error:
                found = self._server.translated(error)
                refused, problem = found.reason == "INCOMPATIBLE", str(found)
            except ThalwegError as error:
                problem = str(error)
            self.host.clear()
            if problem != told:
                what = "refuses this shard" if refused else "cannot be reached"
                _log.warning("the server at %s %s: %s; trying again", self._server.address, what, problem)
            told = problem
            await asyncio.sleep(seconds)
            seconds = min(2 * seconds, _MAX_SECONDS)

    async def _hold(self, channel: grpc.aio.Channel, address: Address) -> bool:
        """One stream, to its end. Whether the shard was taken on."""
        reached = Address("" if _is_any(address.host) else address.host, address.port)
        offer = shard_offer(str(reached), self._secret, self._tls_name)
        self._outbox.put(pb.HoldRequest(offer=offer))
        stub = shard_service_pb2_grpc.ShardServiceStub(channel)
        call = stub.Hold(self._outbox.messages(), metadata=self._server.metadata)
        heart: asyncio.Task[None] | None = None
        try:
            async for response in call:
                for command in response.commands:
                    if command.HasField("take_on"):
                        _log.info("holds shares for the server at %s", self._server.address)
                        self.host.attached = True
                        heart = asyncio.create_task(self._beat(command.take_on.heartbeat_seconds))
                    else:
                        self.host.do(command)
        finally:
            if heart:
                heart.cancel()
        return heart is not None

    async def _beat(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            self._outbox.put(pb.HoldRequest(heartbeat=parameter_service_pb2.Heartbeat()))


class ShardProcess(Hosted):
    """A shard in a thread of its own."""

    def __init__(self, config: ShardConfig) -> None:
        super().__init__(config.address, config.server.token, config.tls, config.metrics)
        self.config = config
        self._secret = secrets.token_bytes(32)
        self._attendance = Attendance(config.server, self._secret, config.invitation_seconds, config.tls_name)
        # Workers never show a shard the tokens that they have for the server.
        self._invitations = {METHOD: self._attendance.host.expects}

    def start(self) -> Address:
        """Starts the shard and gives the address at which it listens. Raises ServerStartError if it cannot.

        It does not wait for the server, which may be started later.
        """
        self._check_exposure(self.config.trust_network)
        self._begin()
        return self.address

    @property
    def kept(self) -> int:
        """The number of chunks from workers for which the server has not decided anything yet."""
        return self._attendance.host.kept

    def stop(self) -> None:
        """Stops the shard. What it holds is lost, and its server goes on without."""
        self._end()

    def _source(self) -> "ShardSource":
        from thalweg.server.sharding.observed import ShardSource  # noqa: PLC0415 - an extra, and takes a moment

        return ShardSource(self._attendance.host)

    async def _serve(self) -> None:
        server = await self._grpc_server([parameter_service_pb2.DESCRIPTOR.services_by_name["ParameterService"].full_name])
        ParameterService(self._attendance.host).add_to(server)
        shard_service_pb2_grpc.add_ShardConfirmationServiceServicer_to_server(Confirmation(self._secret), server)
        self.address = self._listen(server)
        await self._observe(self._source)
        await server.start()
        self._started.set()
        attending = asyncio.create_task(self._attendance.attend(self.address))
        await self._stop.wait()
        attending.cancel()
        with suppress(asyncio.CancelledError):
            await attending
        self._attendance.host.close()
        await server.stop(STOP_GRACE_SECONDS)


def _is_any(host: str) -> bool:
    """Whether a host stands for all of a machine's addresses, and so for none by which it is reached."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
