"""The fixed binary tree along which gradients and metrics are added.

The leaves are the microbatches of a step. Node (level, index) joins (level - 1, 2 * index) and (level - 1, 2 * index + 1),
the latter where it exists. Floating-point addition is not associative; adding along one tree makes the sum a
property of the job alone, wherever it is added.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Node(NamedTuple):
    """One node: `level` 0 is a single microbatch."""

    level: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used

    @property
    def parent(self) -> "Node":
        return Node(self.level + 1, self.index // 2)

    @property
    def children(self) -> tuple["Node", "Node"]:
        """The left and the right child. The right one may not exist: see `exists`."""
        return Node(self.level - 1, 2 * self.index), Node(self.level - 1, 2 * self.index + 1)

    def leaves(self, microbatches: int) -> range:
        """The microbatches that the node covers."""
        return range(self.index << self.level, min((self.index + 1) << self.level, microbatches))

    def exists(self, microbatches: int) -> bool:
        return 0 <= self.level <= root(microbatches).level and 0 <= self.index << self.level < microbatches


def root(microbatches: int) -> Node:
    """The node that covers all of `microbatches` >= 1 leaves."""
    return Node((microbatches - 1).bit_length(), 0)


def cover(run: range, microbatches: int) -> list[Node]:
    """The fewest nodes that together cover each microbatch of `run` once and no others, from left to right."""
    nodes: list[Node] = []
    first = run.start
    while first < run.stop:
        node = Node(0, first)
        while node.level < root(microbatches).level and node.parent.leaves(microbatches).start == first:
            if node.parent.leaves(microbatches).stop > run.stop:
                break
            node = node.parent
        nodes.append(node)
        first = node.leaves(microbatches).stop
    return nodes


def additions(node: Node, microbatches: int, microbatch: int) -> int:
    """The number of additions that `fold` does after a leaf, before the next one: each adds to the last sum on the left."""
    count, child = 0, Node(0, microbatch)
    while child != node and child.parent.leaves(microbatches).stop == microbatch + 1:
        count += child.index % 2
        child = child.parent
    return count


def fold(node: Node, microbatches: int, leaf: Callable[[int], T], add: Callable[[T, T], T]) -> T:
    """The sum of `leaf(microbatch)` over the node's microbatches, added along the tree, left before right."""
    if node.level == 0:
        return leaf(node.index)
    left, right = node.children
    total = fold(left, microbatches, leaf, add)
    return add(total, fold(right, microbatches, leaf, add)) if right.exists(microbatches) else total
