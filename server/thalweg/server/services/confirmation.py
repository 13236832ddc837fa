"""Both ends of the call by which a server verifies that it reaches a shard at the address that it offers. No secret is sent."""

import hmac
import secrets
from typing import Any

import grpc

from thalweg.contract.endpoint import Endpoint
from thalweg.contract.errors import ThalwegError, protocol_violation
from thalweg.v1 import shard_service_pb2 as pb
from thalweg.v1 import shard_service_pb2_grpc

_MIN_SECRET_BYTES = 16
_CHALLENGE_BYTES = 32
# A shard that is reached answers at once; but its machine may be busy.
_SECONDS = 10.0


class Confirmation(shard_service_pb2_grpc.ShardConfirmationServiceServicer):
    """The shard's end. `secret` is that of its offer."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    async def Confirm(self, request: pb.ConfirmRequest, _: grpc.aio.ServicerContext[Any, Any]) -> pb.ConfirmResponse:
        return pb.ConfirmResponse(proof=_proof(self._secret, request.challenge))


async def confirm(shard: Endpoint, secret: bytes) -> None:
    """The server's end. Raises ThalwegError if the shard that offered an address and a secret is not reached there."""
    address = str(shard.address)
    if len(secret) < _MIN_SECRET_BYTES:
        raise protocol_violation("the shard's offer has no secret; install the same release on the shard and the server")
    challenge = secrets.token_bytes(_CHALLENGE_BYTES)
    try:
        async with shard.open_aio() as channel:
            stub: Any = shard_service_pb2_grpc.ShardConfirmationServiceStub(channel)
            answer = await stub.Confirm(pb.ConfirmRequest(challenge=challenge), timeout=_SECONDS)
    except grpc.aio.AioRpcError as error:
        problem = shard.translated(error).metadata["problem"]
        raise ThalwegError("SHARD_UNREACHABLE", {"address": address, "problem": problem}) from error
    if not hmac.compare_digest(answer.proof, _proof(secret, challenge)):
        raise ThalwegError("SHARD_UNREACHABLE", {"address": address, "problem": "another process answers there"})


def _proof(secret: bytes, challenge: bytes) -> bytes:
    return hmac.digest(secret, challenge, "sha256")
