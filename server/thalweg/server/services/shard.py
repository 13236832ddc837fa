"""ShardService: shards offer themselves and receive commands."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote

import grpc

from thalweg.contract.endpoint import Address, Endpoint, parse_address
from thalweg.contract.errors import ThalwegError, protocol_violation
from thalweg.contract.release import check_protocol
from thalweg.contract.text import MAX_ADDRESS, visible
from thalweg.contract.tls import ServerTls
from thalweg.server.arrays.sharded.registry import ShardLink
from thalweg.server.driving.jobs import Jobs
from thalweg.server.services.confirmation import confirm
from thalweg.server.services.guarding.guard import end, errors
from thalweg.v1 import shard_service_pb2 as pb
from thalweg.v1 import shard_service_pb2_grpc

_log = logging.getLogger(__name__)


class ShardService(shard_service_pb2_grpc.ShardServiceServicer):
    """Translates shards' streams. A server with TLS has shards with TLS alone."""

    def __init__(self, jobs: Jobs, tls: ServerTls | None = None) -> None:
        self._jobs = jobs
        self._tls = tls

    async def Hold(
        self, request_iterator: AsyncIterator[pb.HoldRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.HoldResponse]:
        async with errors(context):
            requests = aiter(request_iterator)
            opening = await anext(requests, None)
            if opening is None or not opening.HasField("offer"):
                raise protocol_violation("a stream begins with an offer")
            check_protocol("shard", opening.offer.protocol, opening.offer.release)
            address = _reached_at(visible(opening.offer.address, MAX_ADDRESS), context.peer())
            name = visible(opening.offer.tls_name, MAX_ADDRESS)
            await confirm(self._endpoint(address, name), opening.offer.secret)
            shard = ShardLink(str(address), self._jobs.shards.clock, name)
            take_on = pb.TakeOn(heartbeat_seconds=self._jobs.settings.heartbeat_seconds)
            shard.send(pb.ShareCommand(take_on=take_on))
            listener = asyncio.create_task(_listen(requests, shard))
            listener.add_done_callback(lambda _: shard.give_up())
            self._jobs.shards.attending.append(shard)
            _log.info("shard %s is connected", shard.address)
            try:
                async for response in shard.messages():
                    yield response
                if not listener.done():
                    raise ThalwegError("EVICTED")
                await listener
            finally:
                _log.info("shard %s is lost", shard.address)
                self._jobs.shard_lost(shard)
                await end(listener)

    def _endpoint(self, address: Address, name: str) -> Endpoint:
        """How a shard is reached whose certificate has a name. Raises ThalwegError if it could not be verified."""
        if self._tls is None:
            return Endpoint(address)
        tls = self._tls.as_client(name)
        if tls is None:
            problem = "the server has no authority to verify it by; start the server with --tls-ca"
            raise ThalwegError("SHARD_UNREACHABLE", {"address": str(address), "problem": problem})
        return Endpoint(address, tls=tls)


async def _listen(requests: AsyncIterator[pb.HoldRequest], shard: ShardLink) -> None:
    async for request in requests:
        shard.hear(request)


def _reached_at(address: str, peer: str) -> Address:
    """Where a shard is reached that says an address, perhaps without a host, and comes from gRPC's name for a peer."""
    try:
        host, port = parse_address(address)
        if address.startswith(":"):
            host = parse_address(unquote(peer).partition(":")[2]).host
    except ValueError as error:
        raise protocol_violation(f"{address} is not an address") from error
    return Address(host, port)
