"""One event after the other, and what was decided about it: where that needs an answer from elsewhere, all that follows waits."""

from collections import deque
from collections.abc import Callable

from thalweg.server.deciding.decisions import Decision
from thalweg.server.deciding.events import Event, Tick


class DecisionQueue:
    """Lets `decide` give the decisions that follow from an event, and `carry_out` carry them out, one by one.

    A decision that is not yet to be carried out, by `ready`, keeps those behind it and all later events waiting, until
    `go_on` is called. `carry_out` may answer with an event that is to be decided about instead of what else was decided; `failed`
    says what event an exception is.
    """

    def __init__(
        self,
        decide: Callable[[Event], list[Decision]],
        carry_out: Callable[[Decision], Event | None],
        ready: Callable[[Decision], bool],
        failed: Callable[[Exception], Event],
    ) -> None:
        self._decide = decide
        self._carry_out = carry_out
        self._ready = ready
        self._failed = failed
        self._decisions: deque[Decision] = deque()
        self._events: deque[Event] = deque()
        self._closed = False

    def handle(self, event: Event) -> None:
        """Takes an event, now or in its turn."""
        if self._decisions or self._events:
            # Time passes again. What was heard of workers meanwhile has to be known before that.
            if not isinstance(event, Tick):
                self._events.append(event)
        elif not self._closed:
            self._events.append(event)
            self.go_on()

    def interrupt(self, event: Event) -> None:
        """What was decided and still waits takes for granted what did not happen: takes an event instead of that."""
        if not self._closed:
            self._decisions.clear()
            self._events.appendleft(event)
            self.go_on()

    def fail(self, error: Exception) -> None:
        """Something that was decided has failed."""
        self.interrupt(self._failed(error))

    def go_on(self) -> None:
        """Goes on as far as that is possible."""
        while True:
            try:
                return self._go_on()
            except Exception as error:  # noqa: BLE001 - half carried out, whatever it was
                self._decisions = deque(self._decide(self._failed(error)))

    def _go_on(self) -> None:
        while self._decisions or self._events:
            if not self._decisions:
                self._decisions.extend(self._decide(self._events.popleft()))
                continue
            if not self._ready(self._decisions[0]):
                return
            event = self._carry_out(self._decisions.popleft())
            if event:
                self._decisions = deque(self._decide(event))

    def close(self) -> None:
        """Nothing more is decided or carried out."""
        self._closed = True
        self._decisions.clear()
        self._events.clear()
