"""What every call passes: who makes it, whether the role table allows it, and the translation of errors into statuses."""

import asyncio
import hmac
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status

from thalweg.contract.errors import ThalwegError, protocol_violation, to_status
from thalweg.server.access import table
from thalweg.server.access.principal import ADMIN, Act, Caller, Principal, Role, Scope, answer_to, note_failure
from thalweg.server.services.guarding.auditing import Auditor, Unaudited
from thalweg.server.services.guarding.doorkeeper import Doorkeeper
from thalweg.server.services.guarding.limits import Calls
from thalweg.server.services.guarding.open_calls import OpenCalls
from thalweg.server.services.guarding.stalling import Opened, opening, write

_log = logging.getLogger(__name__)
# A method that those who may see what all do may use on all.
_WATCHING = "/thalweg.v1.TrainingService/ListJobs"
_GONE = "the caller ended the call"
_UNAUDITED = Unaudited()

# Whose a token is; it is empty if a call carries none. Raises ThalwegError if it is nobody's.
Authenticate: TypeAlias = Callable[[str], Principal]
# Raises ThalwegError if the caller may not make a request.
Permit: TypeAlias = Callable[[Message], Awaitable[None]]
# Whether a method may be called by a worker with a token that is valid for that method alone.
Admits: TypeAlias = Callable[[str], Awaitable[bool]]


def sole_token(token: str | None) -> Authenticate:
    """Knows one token, whose bearers are administrators. So are all callers if there is none."""

    def authenticate(given: str) -> Principal:
        if token is None or hmac.compare_digest(given.encode(), token.encode()):
            return ADMIN
        raise ThalwegError("UNAUTHENTICATED")

    return authenticate


async def permit_all(_: Message) -> None:
    """Permits all requests."""


class Guard(grpc.aio.ServerInterceptor):
    """Finds out who makes a call, and refuses what the role table does not allow, before anything that the call says is read.

    Services read the caller by `access.principal.caller`. `permit` is asked about the request of each method that takes one.
    `invitations` are methods that workers call with tokens of their own. `open_calls` end with their tokens. `count` is told of
    each principal's calls, and raises ThalwegError if there are too many.

    Requests that are no messages are refused, and nothing is logged of them.
    """

    def __init__(
        self,
        authenticate: Authenticate,
        doorkeeper: Doorkeeper,
        permit: Permit = permit_all,
        invitations: Mapping[str, Admits] = MappingProxyType({}),
        open_calls: OpenCalls | None = None,
        audit: Auditor = _UNAUDITED,
        count: Callable[[Principal], None] = lambda _: None,
    ) -> None:
        self._count = count
        self._audit = audit
        self._open = open_calls or OpenCalls()
        self._authenticate = authenticate
        self._permit = permit
        self._doorkeeper = doorkeeper
        self._invitations = invitations
        self._calls = Calls()

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        try:
            caller = await self._admit(details.method, _bearer(details))
        except ThalwegError as error:
            # Whatever the method takes: it is not read.
            return grpc.stream_stream_rpc_method_handler(partial(self._refuse, details.method, error))
        return _served(handler, self._permit, partial(self._call, caller))

    def may_watch(self, bearer: str) -> bool:
        """Whether the bearer of a token may see what all do."""
        try:
            return table.row(_WATCHING).scope(self._authenticate(bearer).role) is Scope.ALL
        except ThalwegError:
            return False

    async def _admit(self, method: str, bearer: str) -> Caller | None:
        """Says who makes the call; None for a stranger who may. Raises ThalwegError if it is refused."""
        if method in self._invitations:
            if not await self._invitations[method](bearer):
                raise ThalwegError("UNAUTHENTICATED")
            return _answering(Caller(Principal("worker", Role.WORKER), method, Scope.OWN, Act()))
        row = table.row(method)
        if row.stranger:
            return None
        principal = self._authenticate(bearer)
        self._count(principal)
        return _answering(Caller(principal, method, check_role(principal, method), Act()))

    async def _refuse(self, method: str, error: ThalwegError, _: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._audit.refused(method, context.peer(), error)
        await _abort(context, error)

    @contextmanager
    def _call(self, caller: Caller | None, peer: str) -> Iterator[None]:
        """A call from a peer, within the context. Raises ThalwegError if its principal has too many."""
        if caller is None:
            with self._calls.one_more(None):
                yield
            return
        self._doorkeeper.admit(peer)
        principal = caller.principal
        with self._audit.call(caller, peer), self._calls.one_more(principal), self._open.one_more(principal):
            yield


def _answering(caller: Caller) -> Caller:
    answer_to(caller)
    return caller


def check_role(principal: Principal, method: str) -> Scope:
    """What a principal may use a method on. Raises ThalwegError if it is nothing."""
    row = table.row(method)
    scope = row.scope(principal.role)
    if scope is Scope.NONE:
        roles = " or ".join(row.admitted) or "nobody"
        problem = f"its role is {principal.role}, and the role must be {roles}"
        raise ThalwegError("PERMISSION_DENIED", {"name": principal.name, "method": method.rpartition("/")[2], "problem": problem})
    return scope


def _bearer(details: grpc.HandlerCallDetails) -> str:
    """The token that a call carries; empty if it carries none."""
    given = dict(details.invocation_metadata or ()).get("authorization", "")
    header = given if isinstance(given, str) else given.decode(errors="replace")
    scheme, _, bearer = header.partition(" ")
    return bearer if scheme == "Bearer" else ""


# What a call from a peer, as gRPC names it, is made within.
_Within: TypeAlias = Callable[[str], AbstractContextManager[None]]


def _served(handler: Any, permit: Permit, within: _Within) -> Any:
    """A handler that lets no caller keep it waiting: the first message comes soon, and a stream's answers are taken.

    What gRPC cannot read it would log with a traceback, if it read the request of a method that takes one; so all methods take
    streams here. On the wire there is no difference.
    """
    method = _Method(handler, permit, within)
    if handler.response_streaming:
        answer: Any = method.stream if inspect.isasyncgenfunction(method.behaviour) else method.answer
        return grpc.stream_stream_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)
    return grpc.stream_unary_rpc_method_handler(method.answer, handler.request_deserializer, handler.response_serializer)


class _Method:
    """A method as a service has it, and what is done before and after."""

    def __init__(self, handler: Any, permit: Permit, within: _Within) -> None:
        self._permit = permit
        self._within = within
        behaviours = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
        (self.behaviour,) = (behaviour for behaviour in behaviours if behaviour)
        self._takes_stream = handler.request_streaming

    async def _request(self, requests: AsyncIterator[Any]) -> Any:
        requests = aiter(requests)
        first = await opening(requests)
        if self._takes_stream:
            return Opened(first, requests)
        if first is None:
            raise protocol_violation("a call without a message")
        await self._permit(first)
        return first

    async def answer(self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Has the service answer, which writes messages itself if there are several."""
        async with errors(context):
            with self._within(context.peer()):
                return await self.behaviour(await self._request(requests), context)

    async def stream(self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Writes what the service yields."""
        async with errors(context):
            with self._within(context.peer()):
                async with aclosing(self.behaviour(await self._request(requests), context)) as responses:
                    async for response in responses:
                        await write(context, response)


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
        await _abort(context, protocol_violation("bytes that are not a message"))
    except (grpc.aio.AbortError, grpc.aio.UsageError):
        raise
    except grpc.aio.InternalError as gone:
        raise asyncio.CancelledError(_GONE) from gone
    except NotImplementedError:
        # Of a method of gRPC's own services.
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this server does not have the method")
    except Exception as error:  # noqa: BLE001 - the call ends with it, the server goes on
        _log.exception("a call failed")
        await _abort(context, ThalwegError("INTERNAL", {"problem": f"{type(error).__name__}: {error}"}))


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: ThalwegError) -> None:
    """Ends a call with an error. Raises CancelledError if the caller has ended it meanwhile, so that nobody hears of it."""
    note_failure(error.reason)
    try:
        await context.abort_with_status(rpc_status.to_status(to_status(error)))
    except grpc.aio.InternalError as gone:
        raise asyncio.CancelledError(_GONE) from gone


async def end(*tasks: asyncio.Task[None]) -> list[BaseException | None]:
    """Cancels the tasks of a call, waits until all of them have ended, and gives the error with which each did."""
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)
