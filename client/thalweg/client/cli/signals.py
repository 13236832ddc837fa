"""Ctrl-C and other signals as items of a queue: code is interrupted only where it waits, and everything is cleaned up."""

import queue
import signal
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Python calls a signal's handler between two of its instructions. A signal that arrives after the last of them and before the
# wait for the queue begins, or in another thread, is handled only when that wait ends.
_WAIT_SECONDS = 0.5


class Signal(NamedTuple):
    """A received signal, `order` counted from 1."""

    number: int
    order: int


class InterruptedBySignalError(Exception):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """The exit code that shells give a process that a signal ended."""
        return 128 + self.number


class Inbox:
    """A queue that also receives this process's signals, while it is used as a context manager in the main thread."""

    def __init__(self) -> None:
        # The only queue into which a signal handler may put.
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._before: dict[signal.Signals, Any] = {}
        self._received: list[int] = []
        # The number of signals that were raised before their turn in the queue.
        self._heeded = 0

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        self.listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Sets the handlers (again: Ray sets one for SIGTERM). A signal that was ignored, as under nohup, stays ignored."""
        for number, before in self._before.items():
            if before is not signal.SIG_IGN:
                signal.signal(number, self._receive)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self._received.append(number)
        self._items.put(Signal(number, len(self._received)))

    def put(self, item: Any) -> None:
        """Adds an item, from any thread."""
        self._items.put(item)

    def get(self) -> Any:
        """Waits for the next item. Raises InterruptedBySignalError in place of a signal, unless `check` has raised for it."""
        while True:
            try:
                item = self._items.get(timeout=_WAIT_SECONDS)
            except queue.Empty:
                continue
            if not isinstance(item, Signal):
                return item
            if item.order > self._heeded:
                raise InterruptedBySignalError(item.number)

    def check(self) -> None:
        """Raises InterruptedBySignalError if a signal came."""
        if self._received:
            self._heeded = len(self._received)
            raise InterruptedBySignalError(self._received[0])
