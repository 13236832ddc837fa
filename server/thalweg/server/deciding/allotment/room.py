"""What the nodes of a fleet have room for: CPU slots and GPUs."""

from collections.abc import Sequence
from typing import NamedTuple

from thalweg.contract.worker_size import Free, Size


class Node(NamedTuple):
    """What a node has."""

    slots: int
    gpus: int = 0


class Room:
    """What is free of a fleet's nodes. It only gets less."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = [Free(*node) for node in nodes]
        # The first node that may have room for a worker of a size: those before it have none.
        self._first: dict[Size, int] = {}

    def has(self, size: Size) -> bool:
        """Whether a node has room for one more worker."""
        first = self._first.get(size, 0)
        while first < len(self._nodes) and not self._nodes[first].has(size):
            first += 1
        self._first[size] = first
        return first < len(self._nodes)

    def take(self, size: Size, most: int = 1) -> int:
        """Takes the room of up to `most` workers, on the first nodes that have it; for how many there was room."""
        taken = 0
        while taken < most and self.has(size):
            self._nodes[self._first[size]].take(size)
            taken += 1
        return taken
