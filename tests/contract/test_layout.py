"""Slabs and their views."""

import numpy as np
import pytest

from thalweg.contract import layout as layouts
from thalweg.contract.segments import Kind, Segment, end_of
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


SEGMENTS = (
    Segment("0.weight", (2, 3)),
    Segment("1.mean", (3,), Kind.STATISTIC),
    Segment("1.variance", (3,), Kind.STATISTIC),
    Segment("mask", (2, 2), Kind.CONSTANT),
)


def test_a_layout_says_the_kinds_of_tensors() -> None:
    layout = layouts.layout_of(SEGMENTS, np.dtype(np.float32), [Segment("1.batches", ())])
    assert layouts.segments_of(job_pb2.Layout.FromString(layout.SerializeToString()).tensors) == SEGMENTS
    assert layouts.elements(layout) == 16
    assert layouts.segments_of(layout.counters) == (Segment("1.batches", ()),)


def test_parameters_are_described_as_by_earlier_releases() -> None:
    """Whose bytes are in files, and are compared with those of other workers."""
    assert layouts.layout_of(layouts.segments_of(LAYOUT.tensors), np.dtype(np.float32)) == LAYOUT
    assert layouts.segments_of(LAYOUT.tensors) == (Segment("2.weight", (2, 3)), Segment("2.bias", (2,)))


def test_a_layout_says_the_authors_order() -> None:
    def made(*order: str) -> job_pb2.Layout:
        counters, fixed = [Segment("1.batches", ())], {"table": np.zeros(2, np.int8)}
        return layouts.layout_of(SEGMENTS[:2], np.dtype(np.float32), counters, {"again": "0.weight"}, fixed, order)

    names = ["0.weight", "1.mean", "1.batches", "table", "again"]
    order = ("table", "0.weight", "again", "1.mean", "1.batches")
    plain, ordered = made(), made(*order)
    assert layouts.ordered_names(ordered) == list(order)
    assert layouts.ordered_names(plain) == names
    # Nothing more is said where nothing differs.
    assert made(*names) == plain
    for wrong in (names[1:], [*names, "table"], [*names[1:], "other"]):
        with pytest.raises(ValueError, match="the order does not have each name once"):
            made(*wrong)
    assert layouts.agree(plain, ordered)
    assert layouts.agree(ordered, plain)
    assert layouts.agree(ordered, made(*order))
    assert not layouts.agree(ordered, made(*reversed(order)))
    ordered.tensors[0].shape[0] += 1
    assert not layouts.agree(plain, ordered)
    for places in ([0, 1, 2, 3], [0, 1, 2, 3, 3], [1, 2, 3, 4, 5]):
        ordered.order[:] = places
        with pytest.raises(ValueError, match="order of a layout"):
            layouts.ordered_names(ordered)


def test_a_kind_of_a_later_release_is_refused() -> None:
    later = job_pb2.Tensor.FromString(job_pb2.Tensor(name="a").SerializeToString() + b"\x18\x4d")
    with pytest.raises(ValueError, match="a: there is no kind 77 of tensors"):
        layouts.segments_of([later])


def test_kinds_lie_in_their_order() -> None:
    assert [end_of(kind, SEGMENTS) for kind in Kind] == [6, 12, 16]
    assert [end_of(kind, SEGMENTS[:1]) for kind in Kind] == [6, 6, 6]
    assert [end_of(kind, SEGMENTS[3:]) for kind in Kind] == [0, 0, 4]
    for order, message in (
        ((1, 0), "0.weight: a parameter comes after a statistic"),
        ((3, 2), "1.variance: a statistic comes after"),
    ):
        with pytest.raises(ValueError, match=message):
            end_of(Kind.CONSTANT, [SEGMENTS[index] for index in order])
        with pytest.raises(ValueError, match=message):
            layouts.layout_of([SEGMENTS[index] for index in order], np.dtype(np.float32))
