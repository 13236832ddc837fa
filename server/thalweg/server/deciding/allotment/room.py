"""What the nodes of a fleet have room for: CPU slots and GPUs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from thalweg.contract.worker_size import Size

# The parts of a GPU, as Ray counts them.
_PARTS = 10_000


class Node(NamedTuple):
    """What a node has."""

    slots: int
    gpus: int = 0


@dataclass
class _Free:
    """What is free of a node: CPU slots, whole GPUs, and parts of GPUs that workers share."""

    slots: int
    gpus: int
    shared: list[int] = field(default_factory=list)

    def has(self, size: Size) -> bool:
        """Whether there is room for a worker."""
        if self.slots < size.slots:
            return False
        if size.gpus >= 1:
            return self.gpus >= size.gpus
        return not size.gpus or self.gpus > 0 or max(self.shared, default=0) >= _parts(size)

    def take(self, size: Size) -> None:
        """Takes the room of a worker; a part of a GPU of the one with the least room for it."""
        self.slots -= size.slots
        if size.gpus >= 1:
            self.gpus -= int(size.gpus)
        elif size.gpus:
            parts = _parts(size)
            left = min((each for each in self.shared if each >= parts), default=_PARTS)
            if left in self.shared:
                self.shared.remove(left)
            else:
                self.gpus -= 1
            self.shared.append(left - parts)


def _parts(size: Size) -> int:
    # However little a worker takes, it takes some.
    return max(1, round(size.gpus * _PARTS))


class Room:
    """What is free of a fleet's nodes. It only gets less."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = [_Free(*node) for node in nodes]
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
