"""Segments: all that a server, which knows no model, needs to know of a model's tensors."""

import math
from collections.abc import Iterable, Sequence
from enum import IntEnum, auto
from typing import NamedTuple


class Kind(IntEnum):
    """How training changes a tensor. In a slab, the tensors lie in the order of their kinds."""

    # It is descended: an optimizer takes steps along its gradient.
    PARAMETER = auto()
    # It follows what the samples show, as batch norm's running means. In its range of a gradient is its change, negative and
    # weighted by samples, which is subtracted as it is.
    STATISTIC = auto()
    # It never changes.
    CONSTANT = auto()


class Segment(NamedTuple):
    """A tensor: a range of the slab, its values in row-major order."""

    name: str
    shape: tuple[int, ...]
    kind: Kind = Kind.PARAMETER

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def elements(segments: Iterable[Segment]) -> int:
    """The number of elements of a slab of these segments."""
    return sum(segment.size for segment in segments)


def end_of(kind: Kind, segments: Sequence[Segment]) -> int:
    """Where the elements of a kind end in a slab, and those of the kinds after it begin.

    Raises ValueError if the segments are not in the order of their kinds.
    """
    last = Kind.PARAMETER
    for segment in segments:
        if segment.kind < last:
            raise ValueError(f"{segment.name}: a {segment.kind.name.lower()} comes after a {last.name.lower()} in the slab")
        last = segment.kind
    return elements(segment for segment in segments if segment.kind <= kind)
