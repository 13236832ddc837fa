"""What every call passes: the check of its token, and the translation of errors into statuses."""

import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_status import rpc_status

from thalweg.contract.errors import ThalwegError, to_status

_log = logging.getLogger(__name__)
# Health checks tell nothing but "serving", and those who make them hold no token.
_OPEN = "/grpc.health.v1.Health/"


class TokenCheck(grpc.aio.ServerInterceptor):
    """Refuses calls without the server's token."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        given = dict(details.invocation_metadata or ()).get("authorization", "")
        given_bytes = given if isinstance(given, bytes) else given.encode()
        if details.method.startswith(_OPEN) or hmac.compare_digest(given_bytes, self._expected):
            return await continuation(details)
        handler = await continuation(details)
        return _refusal(handler)


def _refusal(handler: Any) -> Any:
    """A handler of the same kind as another that refuses every call."""

    async def refuse(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort_with_status(rpc_status.to_status(to_status(ThalwegError("UNAUTHENTICATED"))))

    if handler is None:
        return None
    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make: Any = kinds[handler.request_streaming, handler.response_streaming]
    return make(refuse, handler.request_deserializer, handler.response_serializer)


@asynccontextmanager
async def errors(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Ends the call with the status of whatever error is raised within."""
    try:
        yield
    except ThalwegError as error:
        await context.abort_with_status(rpc_status.to_status(to_status(error)))
    except (grpc.aio.AbortError, grpc.aio.UsageError):
        raise
    except Exception as error:  # noqa: BLE001 - the call ends with it, the server goes on
        _log.exception("a call failed")
        internal = ThalwegError("INTERNAL", {"problem": f"{type(error).__name__}: {error}"})
        await context.abort_with_status(rpc_status.to_status(to_status(internal)))
