"""Segments: the tensors of a model, as far as those need to know them who know no model."""

import math
from collections.abc import Iterable
from typing import NamedTuple


class Segment(NamedTuple):
    """A tensor: a range of the slab, its values in row-major order."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def elements(segments: Iterable[Segment]) -> int:
    """The number of elements of a slab of these segments."""
    return sum(segment.size for segment in segments)
