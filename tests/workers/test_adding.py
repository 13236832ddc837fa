"""Gradients that are added up while they are computed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.test_local import OPTIMIZERS, make, prepare
from thalweg.contract import tree
from thalweg.contract.layout import Slab
from thalweg.contract.sums import Sums
from thalweg.contract.tree import Node
from thalweg.server import validation
from thalweg.workers.tree_sum import Finished, Slabs, tree_sum

SIZE = 70_000


@settings(deadline=None)
@given(st.integers(1, 13), st.data())
def test_what_is_finished_is_the_sum_along_the_tree(microbatches: int, data: st.DataObject) -> None:
    level = data.draw(st.integers(0, tree.root(microbatches).level))
    node = Node(level, data.draw(st.integers(0, (microbatches - 1) >> level)))
    cuts = sorted(data.draw(st.sets(st.integers(1, SIZE - 1), max_size=3)) | {SIZE})
    values = np.random.default_rng(microbatches).normal(size=(microbatches, SIZE)).astype(np.float32)
    expected = tree.fold(node, microbatches, lambda leaf: values[leaf], np.add)
    told: list[int] = []

    def leaf(microbatch: int, out: Slab, finished: Finished) -> Sums:
        out[...] = np.nan
        for start, end in zip([0, *cuts], cuts, strict=False):
            out[start:end] = values[microbatch, start:end]
            finished(end)
        return Sums(float(values[microbatch, 0]), 1, (microbatch,))

    def finished(elements: int) -> None:
        assert out[:elements].tobytes() == expected[:elements].tobytes()
        told.append(elements)

    out = np.full(SIZE, np.nan, np.float32)
    sums = tree_sum(node, microbatches, leaf, out, finished, Slabs(np.dtype(np.float32)))
    assert told == cuts
    assert sums == tree.fold(node, microbatches, lambda m: Sums(float(values[m, 0]), 1, (m,)), Sums.__add__)


@pytest.mark.parametrize("gradient", ["backpropagation", "numerical", "local"])
def test_a_node_tells_of_a_given_array(gradient: str) -> None:
    """As its layers are done, the last one first, where it is backpropagation."""
    spec = make(OPTIMIZERS["sgd"], "float32", microbatches=5)
    if gradient != "local":
        spec.training.synchrony.bulk.SetInParent()
        spec.training.gradient = gradient
        spec = validation.complete(spec)
    differentiator, start = prepare(spec)
    where = slice(0, 20) if gradient == "numerical" else slice(0, start.size)
    size = where.stop
    steps = 5 if gradient == "local" else 1
    for node in [Node(0, 4), Node(1, 0), tree.root(5)]:
        expected, sums = differentiator.gradient(start, 0, 0, node, where, steps)
        told: list[tuple[int, bytes]] = []
        out = np.full(size, np.nan, np.float32)

        def finished(array: Slab, elements: int, out: Slab = out, told: list[Any] = told) -> None:
            assert array is out
            told.append((elements, out[:elements].tobytes()))

        again = differentiator.gradient(start, 0, 0, node, where, steps, finished, out)
        assert again[0] is out
        assert again[1] == sums
        assert [elements for elements, _ in told] == ([6 * 10 + 10, size] if gradient == "backpropagation" else [size])
        assert all(expected.tobytes().startswith(prefix) for _, prefix in told)
        assert out.tobytes() == expected.tobytes()
        differentiator.release(expected)
