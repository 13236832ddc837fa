"""The event loop of a whole server: asyncio's own, but no time passes on it, and its threads are imaginary.

A seed gives the same schedule again: the order in which callbacks run, how long threads take, and when they are done.
"""

import asyncio
import random
import selectors
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from google.protobuf.internal import well_known_types
from google.protobuf.timestamp_pb2 import Timestamp

from tests.simulation.disk import Crash

# How long a thread takes to begin with what it is given, and its result to come back: mostly no time, but another turn.
_THREAD_SECONDS = (0.0, 0.0, 0.0, 0.0005, 0.005)


class _Selector(selectors.BaseSelector):
    """Waits for nothing: the time until the next timer has passed at once."""

    def __init__(self) -> None:
        self.now = 0.0
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        # The loop's own: it hears that something was called from another thread.
        self._keys[fileobj] = selectors.SelectorKey(fileobj, fileobj, events, data)
        return self._keys[fileobj]

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits, and nothing is going to happen"
        self.now += max(0.0, timeout)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class _Work(NamedTuple):
    """What a thread is to do."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: asyncio.Future[Any]


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own. `crashed` is called when the machine goes down while a thread writes."""

    def __init__(self, random_: random.Random) -> None:
        self._imaginary = _Selector()
        super().__init__(self._imaginary)
        self._random = random_
        self._threads: dict[object, deque[_Work]] = {}
        self._dead: set[object] = set()
        self.crashed: Callable[[], object] = lambda: None

    def time(self) -> float:
        """The time in seconds, from 0."""
        return self._imaginary.now

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Dates in messages are those of this loop, from 1970, so that messages have the same bytes again."""

        def now(timestamp: Timestamp) -> None:
            timestamp.FromMicroseconds(int(self.time() * 1e6))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(well_known_types.Timestamp, "GetCurrentTime", now)
            yield

    def stall(self, seconds: float) -> None:
        """The loop stands still: time passes, and nothing happens."""
        self._imaginary.now += seconds

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Lets something happen later, if it is only after all else that is due now."""
        if seconds:
            self.call_later(seconds, action)
        else:
            self.call_soon(action)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Calls a function in the loop's own thread, later, as if the executor had one thread."""
        future = self.create_future()
        # Without an executor, each call has a thread of its own.
        thread = executor or future
        work = self._threads.setdefault(thread, deque())
        work.append(_Work(func, args, future))
        if len(work) == 1:
            self._begin(thread)
        return future

    def kill(self, *threads: object) -> None:
        """These threads do nothing any more, and nobody hears of what they did."""
        self._dead.update(threads)

    def _begin(self, thread: object) -> None:
        self.after(self._random.choice(_THREAD_SECONDS), lambda: self._perform(thread))

    def _perform(self, thread: object) -> None:
        if thread in self._dead:
            return
        work, result, problem = self._threads[thread][0], None, None
        if not work.future.cancelled():
            try:
                result = work.function(*work.arguments)
            except Crash:
                self.kill(*self._threads)
                self.crashed()
                return
            except Exception as error:  # noqa: BLE001 - whoever waits for it hears of it
                problem = error
        self.after(self._random.choice(_THREAD_SECONDS), lambda: self._answer(thread, work.future, result, problem))
        self._threads[thread].popleft()
        if self._threads[thread]:
            self._begin(thread)
        else:
            del self._threads[thread]

    def _answer(self, thread: object, future: asyncio.Future[Any], result: Any, problem: Exception | None) -> None:
        if thread in self._dead or future.done():
            return
        if problem:
            future.set_exception(problem)
        else:
            future.set_result(result)
