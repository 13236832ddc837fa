"""Fleets and nodes at which no workers are started, because an operator cordons or drains them. Pure."""

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from thalweg.contract.errors import ThalwegError
from thalweg.contract.text import visible

# How many places an error names.
_MAX_NAMED = 5
_MAX_TARGET = 100


class Closure(IntEnum):
    """Whether workers are started somewhere, and whether those that are there stay. Where several hold, the highest does."""

    OPEN = 0
    CORDONED = 1
    DRAINED = 2


class Closed(NamedTuple):
    """A fleet, or a node of one, that is closed. By names: the ids of fleets and nodes are others each time that they start.

    `node` is empty for a whole fleet; `since` is in seconds since 1970.
    """

    fleet: str
    node: str
    closure: Closure
    since: float

    @property
    def place(self) -> tuple[str, str]:
        """Its fleet and its node."""
        return self.fleet, self.node


class Closures:
    """What is closed."""

    def __init__(self, closed: Iterable[Closed] = ()) -> None:
        self._closed = {each.place: each for each in closed}

    def __bool__(self) -> bool:
        return bool(self._closed)

    @property
    def all(self) -> list[Closed]:
        """Everything that is closed, by name."""
        return [self._closed[place] for place in sorted(self._closed)]

    def put(self, closed: Closed) -> None:
        """Something is closed now, or otherwise than before."""
        self._closed[closed.place] = closed

    def remove(self, place: tuple[str, str]) -> Closed | None:
        """Something is open now. Gives what was closed; None if it was not."""
        return self._closed.pop(place, None)

    def of(self, fleet: str, node: str = "") -> Closure:
        """Whether a fleet is closed, or one of its nodes, as far as the node itself is concerned."""
        closed = self._closed.get((fleet, node))
        return closed.closure if closed else Closure.OPEN


def find(target: str, places: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """The fleet and the node that an operator names: a fleet, `FLEET/NODE`, or a node whose name no other node has.

    `places` are those there are, with an empty node for each fleet. Raises ThalwegError if the name fits none, or several.
    """
    there = list(dict.fromkeys(places))
    if (target, "") in there:
        return target, ""
    named = [(fleet, node) for fleet, node in there if node and target in (f"{fleet}/{node}", node)]
    if not named:
        raise ThalwegError("NO_SUCH_NODE", {"target": visible(target, _MAX_TARGET)})
    if len(named) > 1:
        names = ", ".join(f"{fleet}/{node}" for fleet, node in named[:_MAX_NAMED])
        raise ThalwegError("AMBIGUOUS_NODE", {"target": visible(target, _MAX_TARGET), "places": names})
    return named[0]
