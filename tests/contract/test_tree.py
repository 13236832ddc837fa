"""The tree that fixes the order of additions."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from thalweg.contract import tree
from thalweg.contract.tree import Node


@given(st.integers(1, 300))
def test_root_covers_every_leaf(microbatches: int) -> None:
    assert tree.root(microbatches).leaves(microbatches) == range(microbatches)


@given(st.integers(1, 200), st.data())
def test_cover_tiles_a_run_with_whole_nodes(microbatches: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, microbatches))
    run = range(start, data.draw(st.integers(start, microbatches)))
    nodes = tree.cover(run, microbatches)
    assert [leaf for node in nodes for leaf in node.leaves(microbatches)] == list(run)
    assert all(node.exists(microbatches) for node in nodes)
    # Two neighbours that are siblings would have been one node.
    assert all(left.parent != right.parent for left, right in itertools.pairwise(nodes))


def test_cover_of_everything_is_the_root() -> None:
    assert tree.cover(range(6), 6) == [Node(3, 0)]
    assert tree.cover(range(0), 6) == []


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_any_division_among_workers_gives_the_same_bits(microbatches: int, workers: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(microbatches, 3)).astype(np.float32) * np.float32(1e3)
    whole = tree.fold(tree.root(microbatches), microbatches, lambda leaf: values[leaf], np.add)
    shares = [range(w * microbatches // workers, (w + 1) * microbatches // workers) for w in range(workers)]
    parts = {
        node: tree.fold(node, microbatches, lambda leaf: values[leaf], np.add)
        for share in shares
        for node in tree.cover(share, microbatches)
    }

    def collect(node: Node) -> NDArray[np.float32]:
        if node in parts:
            return np.asarray(parts[node])
        left, right = node.children
        return collect(left) + collect(right) if right.exists(microbatches) else collect(left)

    assert collect(tree.root(microbatches)).tobytes() == whole.tobytes()


def test_the_order_of_additions_is_told_apart() -> None:
    """The property above is worth something only if another order gives other bits."""
    values = np.array([1e8, 1.0, -1e8, 1.0], np.float32)
    folded = tree.fold(tree.root(4), 4, lambda leaf: values[leaf], lambda a, b: a + b)
    assert folded != values[0] + values[2] + values[1] + values[3]


@pytest.mark.parametrize(("node", "expected"), [(Node(0, 4), True), (Node(0, 5), False), (Node(3, 0), True), (Node(4, 0), False)])
def test_exists(node: Node, expected: bool) -> None:
    assert node.exists(5) is expected
