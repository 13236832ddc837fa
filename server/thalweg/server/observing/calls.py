"""Counts calls, by method and by the status with which they ended, and gives each an id for the log."""

import asyncio
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from thalweg.contract.logs import begin_request

# In place of the name of a method that is not offered: strangers can make up any number of them.
UNKNOWN_METHOD = "unknown"
# With this a caller gives its call an id, by which its lines in the log are found.
_REQUEST_ID = "x-request-id"
_BEHAVIOURS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class Calls(grpc.aio.ServerInterceptor):
    """Counts the calls that have ended, and begins a request of the log with each.

    It is the first of a server's interceptors, so that refused calls count as well. `ended` has the numbers by method, as in
    `TrainingService/GetJob`, and status.
    """

    def __init__(self) -> None:
        self.ended: Counter[tuple[str, str]] = Counter()

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        given = dict(details.invocation_metadata or ()).get(_REQUEST_ID, "")
        begin_request(given if isinstance(given, str) else "")
        handler = await continuation(details)
        if handler is None:
            self.ended[UNKNOWN_METHOD, grpc.StatusCode.UNIMPLEMENTED.name] += 1
            return None
        method = str(details.method).rpartition(".")[2]
        offered = {name: behaviour for name in _BEHAVIOURS if (behaviour := getattr(handler, name))}
        return handler._replace(**{name: self._counted(method, behaviour) for name, behaviour in offered.items()})

    def _counted(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        """A handler's behaviour, with a count at its end. A coroutine's messages, such as those of workers, cost nothing more."""

        async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            with self._count(method, context):
                return await behaviour(request, context)

        async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            with self._count(method, context):
                async for response in behaviour(request, context):
                    yield response

        return stream if inspect.isasyncgenfunction(behaviour) else answer

    @contextmanager
    def _count(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[None]:
        otherwise = grpc.StatusCode.UNKNOWN
        try:
            yield
            otherwise = grpc.StatusCode.OK
        except (asyncio.CancelledError, GeneratorExit):
            otherwise = grpc.StatusCode.CANCELLED
            raise
        finally:
            # An error has set the code; the end of the call by the client has not.
            # gRPC's stubs say that there always is one.
            code: grpc.StatusCode | None = context.code()
            self.ended[method, (code or otherwise).name] += 1
