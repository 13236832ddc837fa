"""Slabs and their views."""

import numpy as np
import pytest

from thalweg.contract import layout as layouts
from thalweg.v1 import job_pb2

LAYOUT = job_pb2.Layout(
    tensors=[job_pb2.Tensor(name="2.weight", shape=[2, 3]), job_pb2.Tensor(name="2.bias", shape=[2])], dtype="float32"
)


def test_views_share_the_slab() -> None:
    slab = np.arange(8, dtype=np.float32)
    tensors = layouts.views(LAYOUT, slab)
    assert list(tensors) == ["2.weight", "2.bias"]
    assert tensors["2.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    tensors["2.bias"][1] = 99
    assert slab[7] == 99


def test_a_slab_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="8 elements"):
        layouts.views(LAYOUT, np.zeros(7, np.float32))


def test_locate() -> None:
    assert layouts.locate(LAYOUT, "2.weight", (1, 2)) == 5
    assert layouts.locate(LAYOUT, "2.bias", (0,)) == 6
    with pytest.raises(KeyError):
        layouts.locate(LAYOUT, "0.weight", (0, 0))
    with pytest.raises(IndexError):
        layouts.locate(LAYOUT, "2.weight", (2, 0))
    with pytest.raises(IndexError):
        layouts.locate(LAYOUT, "2.weight", (0,))


def test_an_element_is_known_by_its_position() -> None:
    for position in range(8):
        assert layouts.locate(LAYOUT, *layouts.element_at(LAYOUT, position)) == position
    for position in (-1, 8):
        with pytest.raises(IndexError):
            layouts.element_at(LAYOUT, position)


def test_ranges_tile() -> None:
    assert list(layouts.ranges(5, 2)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
