"""A worker's chunks in order, though they come on several ways."""

from thalweg.contract.tree import Node
from thalweg.server.deciding.chunks import bits
from thalweg.server.deciding.events import ContributionReceived, Event
from thalweg.server.deciding.values import WorkerId


class InOrder:
    """A worker sends a gradient's chunks in order; but they come on several ways. The last one, with the sums, is to come last:
    by that it is known that the worker is free again, and that nothing of the gradient is lost any more if the worker is.
    """

    def __init__(self, chunks: int) -> None:
        """`chunks` are those of a gradient, as a set."""
        self._all = chunks
        self._come: dict[WorkerId, dict[tuple[int, int, Node], int]] = {}
        self._last: dict[WorkerId, dict[tuple[int, int, Node], ContributionReceived]] = {}

    def __call__(self, event: Event) -> list[Event]:
        """The events whose turn it is, with another one."""
        if not isinstance(event, ContributionReceived):
            return [event]
        key = (event.version, event.step, event.node)
        come, last = self._come.setdefault(event.worker, {}), self._last.setdefault(event.worker, {})
        come[key] = come.get(key, 0) | bits(event.chunks)
        if event.sums is not None:
            last[key] = event
        in_turn: list[Event] = [] if event.sums is not None else [event]
        if come[key] == self._all and key in last:
            del come[key]
            in_turn.append(last.pop(key))
        return in_turn

    def leave(self, worker: WorkerId) -> list[Event]:
        """A worker is gone. The events that were held back of it, whose turn does not come any more."""
        self._come.pop(worker, None)
        return list(self._last.pop(worker, {}).values())

    def end(self) -> list[Event]:
        """No turn comes any more. The events that were held back."""
        return [event for worker in list(self._last) for event in self.leave(worker)]
