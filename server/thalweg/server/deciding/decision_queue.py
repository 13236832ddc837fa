"""Events and the decisions about them, in order: a decision that needs an answer from elsewhere holds up all that follow."""

from collections import deque
from typing import Protocol

from thalweg.server.deciding.decisions import Decision
from thalweg.server.deciding.events import Event, Tick


class Executor(Protocol):
    """What decides about events, and carries the decisions out."""

    def decide(self, event: Event) -> list[Decision]:
        """The decisions that follow from an event."""
        ...

    def ready(self, decision: Decision) -> bool:
        """Whether a decision may be carried out now. If not, the queue goes on when its `go_on` is called."""
        ...

    def carry_out(self, decision: Decision) -> Event | None:
        """Carries a decision out. Gives an event if the decisions after it assume something that did not happen."""
        ...

    def failed(self, error: Exception) -> Event:
        """The event that an exception is."""
        ...


class DecisionQueue:
    """Has events decided about and the decisions carried out, one by one.

    A decision that is not ready keeps those after it and all later events waiting.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._decisions: deque[Decision] = deque()
        self._events: deque[Event] = deque()
        self._closed = False

    def handle(self, event: Event) -> None:
        """Takes an event, now or in its turn."""
        if self._decisions or self._events:
            # Another tick will come. Messages of workers that wait here must be handled before time passes.
            if not isinstance(event, Tick):
                self._events.append(event)
        elif not self._closed:
            self._events.append(event)
            self.go_on()

    def interrupt(self, event: Event) -> None:
        """Replaces the decisions that wait by an event: they assume something that did not happen."""
        if not self._closed:
            self._decisions.clear()
            self._events.appendleft(event)
            self.go_on()

    def fail(self, error: Exception) -> None:
        """Something that was decided has failed."""
        self.interrupt(self._executor.failed(error))

    def go_on(self) -> None:
        """Goes on as far as that is possible."""
        while True:
            try:
                return self._go_on()
            except Exception as error:  # noqa: BLE001 - half carried out, whatever it was
                self._decisions = deque(self._executor.decide(self._executor.failed(error)))

    def _go_on(self) -> None:
        while self._decisions or self._events:
            if not self._decisions:
                self._decisions.extend(self._executor.decide(self._events.popleft()))
                continue
            if not self._executor.ready(self._decisions[0]):
                return
            event = self._executor.carry_out(self._decisions.popleft())
            if event:
                self._decisions = deque(self._executor.decide(event))

    def close(self) -> None:
        """Nothing more is decided or carried out."""
        self._closed = True
        self._decisions.clear()
        self._events.clear()
