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
_GONE = "the caller ended the call"


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
        return _guarded(handler) if handler.request_streaming else _reading(handler)

    async def _admits(self, method: str, bearer: str) -> bool:
        if method in self._exceptions:
            return await self._exceptions[method](bearer)
        if self._token is None or method == _OPEN:
            return True
        return hmac.compare_digest(bearer.encode(), self._token.encode())


async def _refuse(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await _abort(context, ThalwegError("UNAUTHENTICATED"))


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


def _guarded(handler: Any) -> Any:
    """A handler of a stream of requests, also of gRPC's own services, which logs nothing of what is no message."""
    behaviour = handler.stream_stream if handler.response_streaming else handler.stream_unary
    make: Any = grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler

    async def answer(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        async with errors(context):
            return await behaviour(requests, context)

    async def stream(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        async with errors(context):
            async for response in behaviour(requests, context):
                yield response

    wrapped = stream if inspect.isasyncgenfunction(behaviour) else answer
    return make(wrapped, handler.request_deserializer, handler.response_serializer)


@asynccontextmanager
async def errors(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Ends the call with the status of whatever error is raised within.

    Raises CancelledError if a message cannot be sent, because the caller has ended the call.
    """
    try:
        yield
    except ThalwegError as error:
        await _abort(context, error)
    except DecodeError:
        await _abort(context, ThalwegError("PROTOCOL_VIOLATION", {"problem": "bytes that are not a message"}))
    except (grpc.aio.AbortError, grpc.aio.UsageError):
        raise
    except grpc.aio.InternalError as gone:
        raise asyncio.CancelledError(_GONE) from gone
    except Exception as error:  # noqa: BLE001 - the call ends with it, the server goes on
        _log.exception("a call failed")
        await _abort(context, ThalwegError("INTERNAL", {"problem": f"{type(error).__name__}: {error}"}))


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: ThalwegError) -> None:
    """Ends a call with an error. Raises CancelledError if the caller has ended it meanwhile, so that nobody hears of it."""
    try:
        await context.abort_with_status(rpc_status.to_status(to_status(error)))
    except grpc.aio.InternalError as gone:
        raise asyncio.CancelledError(_GONE) from gone


async def end(*tasks: asyncio.Task[None]) -> list[BaseException | None]:
    """Cancels the tasks of a call, waits until all of them have ended, and gives the error with which each did."""
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)
