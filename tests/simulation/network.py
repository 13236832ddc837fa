"""An imaginary network: streams whose messages are delayed and keep their order, until the connection breaks."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any, TypeVar

import grpc

from tests.simulation.loop import ImaginaryLoop

M = TypeVar("M")


class Network:
    """Where messages travel, each about `latency` seconds long."""

    def __init__(self, loop: ImaginaryLoop, random: Random, latency: float) -> None:
        self.loop = loop
        self.random = random
        self._rate = 1 / latency

    def seconds(self) -> float:
        """How long a message is under way."""
        return self.random.expovariate(self._rate)


class Pipe:
    """One direction of a stream. `deliver` takes what arrives; before the time `busy()` the receiver takes nothing."""

    def __init__(self, network: Network, deliver: Callable[[Any], object], busy: Callable[[], float]) -> None:
        self._network = network
        self._loop = network.loop
        self._deliver = deliver
        self._busy = busy
        self._last = 0.0
        self._cut = False
        self._under_way = 0
        self._arrived: deque[Any] = deque()
        self._held_up = False
        # As many messages may be under way before who sends has to wait.
        self._window = network.random.choice([1, 4, 1 << 10])
        # On a narrow line little may be under way, and that takes long.
        self._width = 1.0 if self._window > 1 else network.random.choice([1.0, 0.1])
        self._waiter: asyncio.Future[None] | None = None

    def send(self, message: Any) -> None:
        """A message sets out. Those of a broken connection are lost."""
        self._last = max(self._last, self._loop.now + self._network.seconds() / self._width)
        self._under_way += 1
        self._loop.at_time(self._last, lambda: self._arrive(message))

    def _arrive(self, message: Any) -> None:
        self._arrived.append(message)
        if not self._held_up:
            self._hand_over()

    def _hand_over(self) -> None:
        """Lets the receiver take what has arrived, in order, when it does not stand still."""
        while self._arrived:
            until = self._busy()
            self._held_up = until > self._loop.now
            if self._held_up:
                self._loop.at_time(until, self._hand_over)
                return
            message = self._arrived.popleft()
            self._under_way -= 1
            if self._waiter and not self._waiter.done():
                self._waiter.set_result(None)
            if not self._cut:
                self._deliver(message)

    async def write(self, message: Any) -> None:
        """Sends a message, and waits until the next one may be sent."""
        self.send(message)
        while self._under_way >= self._window:
            self._waiter = self._loop.create_future()
            await self._waiter

    def cut(self) -> None:
        """The connection breaks: what is under way is lost, and all that is sent from now on."""
        self._cut = True


class Inbox(AsyncIterator[M]):
    """What has arrived, for whoever awaits it."""

    def __init__(self, loop: ImaginaryLoop) -> None:
        self._loop = loop
        self._come: deque[M] = deque()
        self._end: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, message: M) -> None:
        """A message has arrived."""
        self._come.append(message)
        self._wake()

    def end(self, error: BaseException) -> None:
        """Nothing arrives any more: after what has, the error is raised; StopAsyncIteration for an orderly end."""
        self._end = self._end or error
        self._wake()

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    async def __anext__(self) -> M:
        while not self._come:
            if self._end:
                raise self._end
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._come.popleft()


class Context:
    """The service's end of a call. `down` takes messages, and the error with which the call ends, as the client is to see it."""

    def __init__(self, down: Pipe, peer: str) -> None:
        self.write = down.write
        self._down = down
        self._peer = peer

    def peer(self) -> str:
        """The address of the client."""
        return self._peer

    async def abort_with_status(self, status: Any) -> None:
        """Ends the call with an error."""
        trailing = grpc.aio.Metadata(*status.trailing_metadata)
        self._down.send(grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailing, status.details))
        raise grpc.aio.AbortError


def unavailable(problem: str) -> grpc.aio.AioRpcError:
    """The error of a connection that is broken, or cannot be made."""
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), problem)
