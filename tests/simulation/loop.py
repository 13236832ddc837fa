"""An event loop whose time is imaginary: it passes when there is nothing more to do, and the same calls give the same run."""

import asyncio
import contextvars
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

_Call: TypeAlias = tuple[Callable[..., object], tuple[Any, ...], contextvars.Context | None]


class Readable(Protocol):
    """A socket that calls when there is something to be read, or room to write, once it has been woken."""

    def wake(self) -> None:
        """Has it look whether there is."""
        ...

    on_readable: Callable[[], object] | None
    on_writable: Callable[[], object] | None


class ImaginaryLoop:
    """What asyncio's futures, tasks and timers and the server's sockets ask of a loop. Whatever a callback raises ends the run.

    `at` is for the simulation itself.
    """

    def __init__(self) -> None:
        self.now = 0.0
        # As asyncio knows it.
        self._self: Any = self
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._ready: deque[_Call] = deque()
        self._numbers = itertools.count()
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._error: Exception | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within this context it is the running loop. Tasks that are left then are cancelled."""
        asyncio._set_running_loop(self._self)
        try:
            yield
        finally:
            try:
                self._cancel_all()
            finally:
                asyncio._set_running_loop(None)

    def _cancel_all(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        self._ready_calls()

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        """Lets something happen later."""
        self.at_time(self.now + seconds, action)

    def at_time(self, when: float, action: Callable[[], object]) -> None:
        """Lets something happen at a time, after all else that was to happen then: a difference of times is rounded."""
        heapq.heappush(self._later, (when, next(self._numbers), action))

    def step(self) -> None:
        """Lets the next thing happen, and all that follows at once."""
        self.now, _, action = heapq.heappop(self._later)
        action()
        if self._ready:
            self._ready_calls()
        if self._error:
            raise self._error

    @contextmanager
    def held_against_the_run(self) -> Iterator[None]:
        """What is raised within this context ends the run, also if it is caught."""
        try:
            yield
        except Exception as error:
            self._error = self._error or error
            raise

    def _ready_calls(self) -> None:
        ready = self._ready
        while ready:
            callback, arguments, context = ready.popleft()
            if context is None:
                callback(*arguments)
            else:
                context.run(callback, *arguments)

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def call_soon(self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None) -> None:
        """What is called cannot be cancelled; nothing that runs here does that."""
        self._ready.append((callback, args, context))

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self._self, context)

        def ring() -> None:
            if not timer.cancelled():
                callback(*args)

        self.at_time(when, ring)
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Asked by asyncio: a timer that is cancelled does nothing when its time has come."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self._self)

    def create_task(
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: contextvars.Context | None = None
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self._self, name=name, context=context)
        self._tasks[task] = None
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        del self._tasks[task]

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Asked by asyncio where an error is nobody's: the run is at fault."""
        raise AssertionError(context.get("message")) from context.get("exception")

    def add_reader(self, socket: Readable, callback: Callable[..., object], *args: Any) -> None:
        socket.on_readable = lambda: callback(*args)
        socket.wake()

    def remove_reader(self, socket: Readable) -> bool:
        there, socket.on_readable = socket.on_readable is not None, None
        return there

    def add_writer(self, socket: Readable, callback: Callable[..., object], *args: Any) -> None:
        socket.on_writable = lambda: callback(*args)
        socket.wake()

    def remove_writer(self, socket: Readable) -> bool:
        there, socket.on_writable = socket.on_writable is not None, None
        return there
