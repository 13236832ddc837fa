"""How long a server waits for a client that neither takes nor sends anything."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import grpc

from thalweg.contract.errors import ThalwegError

M = TypeVar("M")

# A client that neither takes nor sends anything for so long has lost interest.
STALLED_SECONDS = 60.0
# Whoever calls a method has something to say: the first message comes with the call.
OPENING_SECONDS = 10.0
# A timer that fires so much too late was kept by something else.
_LATE_SECONDS = 0.1


@asynccontextmanager
async def unless_stalled() -> AsyncIterator[asyncio.Timeout]:
    """Raises ThalwegError if waiting for a client, within the context, takes too long. Gives the timeout, which can be moved."""
    begun = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(STALLED_SECONDS) as timeout:
            yield timeout
    except TimeoutError:
        waited = asyncio.get_running_loop().time() - begun
        raise ThalwegError("TOO_SLOW", {"seconds": f"{waited:.3g}"}) from None


async def write(context: grpc.aio.ServicerContext[Any, Any], message: object) -> None:
    """Sends a message of a stream. Raises ThalwegError if the client takes none for too long."""
    async with unless_stalled():
        await context.write(message)


async def opening(requests: AsyncIterator[M]) -> M | None:
    """The first message of a call; None if it ends without one. Raises ThalwegError if nothing comes for some seconds.

    While the server itself stands still, nothing that has come is read: that time does not count.
    """
    clock = asyncio.get_running_loop().time
    coming: asyncio.Future[M | None] = asyncio.ensure_future(anext(requests, None))
    try:
        while True:
            begun = clock()
            await asyncio.wait({coming}, timeout=OPENING_SECONDS)
            waited = clock() - begun
            if coming.done():
                return coming.result()
            if waited < OPENING_SECONDS + _LATE_SECONDS:
                raise ThalwegError("TOO_SLOW", {"seconds": f"{waited:.3g}"})
    finally:
        coming.cancel()
        # How a message ends that nobody waits for any more is not logged.
        coming.add_done_callback(lambda ended: ended.cancelled() or ended.exception())


class Opened(Generic[M]):
    """The messages of a call, the first of which has been read; None if there is none. The others take no detour."""

    def __init__(self, first: M | None, rest: AsyncIterator[M]) -> None:
        self._first = first
        self._rest = rest

    def __aiter__(self) -> AsyncIterator[M]:
        return self

    def __anext__(self) -> Awaitable[M]:
        first, self._first = self._first, None
        return self._rest.__anext__() if first is None else _ready(first)


async def _ready(message: M) -> M:
    return message
