"""What every call passes: the check of its token, and the translation of errors into statuses."""

import asyncio
import hmac
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from thalweg.contract.errors import ThalwegError, to_status

_log = logging.getLogger(__name__)
# Health checks tell nothing but "serving", and those who make them hold no token. To watch, which keeps a connection in use for
# ever, takes one.
_OPEN = "/grpc.health.v1.Health/Check"


# Who may call a method, by the token that the call carries, empty if there is none.
Admits: TypeAlias = Callable[[str], Awaitable[bool]]


async def everyone(_: str) -> bool:
    """Admits all."""
    return True


class Guard(grpc.aio.ServerInterceptor):
    """Refuses calls without the server's token, if it has one, before anything that they say is read.

    `exceptions` are methods that admit otherwise. Requests that are no messages are refused, and nothing is logged of them.
    """

    def __init__(self, token: str | None, exceptions: Mapping[str, Admits] = MappingProxyType({})) -> None:
        self._token = token
        self._exceptions = exceptions

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        given = dict(details.invocation_metadata or ()).get("authorization", "")
        header = given if isinstance(given, str) else given.decode(errors="replace")
        scheme, _, bearer = header.partition(" ")
        if not await self._admits(details.method, bearer if scheme == "Bearer" else ""):
            # Whatever the method takes: it is not read.
            return grpc.stream_stream_rpc_method_handler(_refuse)
        return handler if handler.request_streaming else _reading(handler)

    async def _admits(self, method: str, bearer: str) -> bool:
        if method in self._exceptions:
            return await self._exceptions[method](bearer)
        if self._token is None or method == _OPEN:
            return True
        return hmac.compare_digest(bearer.encode(), self._token.encode())


async def _refuse(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.abort_with_status(rpc_status.to_status(to_status(ThalwegError("UNAUTHENTICATED"))))


def _reading(handler: Any) -> Any:
    """A handler of one request, which reads it itself: what gRPC cannot read it logs with a traceback."""
    read = handler.request_deserializer
    behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
    make: Any = grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler

    async def answer(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        async with errors(context):
            message = read(request)
        return await behaviour(message, context)

    async def stream(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        async with errors(context):
            message = read(request)
        async for response in behaviour(message, context):
            yield response

    return make(stream if inspect.isasyncgenfunction(behaviour) else answer, None, handler.response_serializer)


@asynccontextmanager
async def errors(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Ends the call with the status of whatever error is raised within."""
    try:
        yield
    except ThalwegError as error:
        await context.abort_with_status(rpc_status.to_status(to_status(error)))
    except DecodeError:
        garbage = ThalwegError("PROTOCOL_VIOLATION", {"problem": "bytes that are not a message"})
        await context.abort_with_status(rpc_status.to_status(to_status(garbage)))
    except (grpc.aio.AbortError, grpc.aio.UsageError):
        raise
    except Exception as error:  # noqa: BLE001 - the call ends with it, the server goes on
        _log.exception("a call failed")
        internal = ThalwegError("INTERNAL", {"problem": f"{type(error).__name__}: {error}"})
        await context.abort_with_status(rpc_status.to_status(to_status(internal)))


async def end(*tasks: asyncio.Task[None]) -> list[BaseException | None]:
    """Cancels the tasks of a call, waits until all of them have ended, and gives the error with which each did."""
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)
