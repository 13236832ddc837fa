"""Adds microbatches' gradients along the tree while they are computed, so that the sum's first elements can be sent early."""

import itertools
from collections.abc import Callable

import numpy as np

from thalweg.contract import tree
from thalweg.contract.layout import Slab, ranges
from thalweg.contract.sums import Sums
from thalweg.contract.tree import Node

# Called with the number of a slab's first elements that are final, which grows until it is the slab's size.
Finished = Callable[[int], object]
# Writes a microbatch's gradient to a slab, and reports what is final.
Leaf = Callable[[int, Slab, Finished], Sums]

# Elements that are added along the whole tree at once: few enough to stay in the second-level cache.
_BLOCK = 32_768


class Slabs:
    """Slabs that are used again. Belongs to one thread."""

    def __init__(self, dtype: np.dtype[np.floating]) -> None:
        self._dtype = dtype
        self._free: dict[int, list[Slab]] = {}

    def take(self, size: int) -> Slab:
        """A slab of `size` elements, uninitialised."""
        free = self._free.setdefault(size, [])
        return free.pop() if free else np.empty(size, self._dtype)

    def release(self, slab: Slab) -> None:
        """Returns a slab that was taken."""
        self._free[slab.size].append(slab)


def tree_sum(node: Node, microbatches: int, leaf: Leaf, out: Slab, finished: Finished, slabs: Slabs) -> Sums:
    """Writes the sum of the gradients of a node's microbatches to a slab; returns the sum of their sums.

    `finished` is called while the slab becomes final. `slabs` are for the terms of the sum.
    """
    if node.level == 0:
        return leaf(node.index, out, finished)
    # Sums that wait for their right neighbours in the tree; after them, the microbatch that is being computed.
    path: list[Slab] = []
    last = node.leaves(microbatches).stop - 1

    def compute(microbatch: int) -> Sums:
        path.append(slabs.take(out.size) if path else out)
        first = len(path) - 1 - tree.additions(node, microbatches, microbatch)
        done = 0

        def add_prefix(elements: int) -> None:
            nonlocal done
            for block in ranges(elements - done, _BLOCK):
                where = slice(done + block.start, done + block.stop)
                for right, left in itertools.pairwise(reversed(path[first:])):
                    np.add(left[where], right[where], out=left[where])
            done = elements
            if microbatch == last:
                finished(elements)

        sums = leaf(microbatch, path[-1], add_prefix)
        while len(path) - 1 > first:
            slabs.release(path.pop())
        return sums

    return tree.fold(node, microbatches, compute, Sums.__add__)
