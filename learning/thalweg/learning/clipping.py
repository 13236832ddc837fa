"""Clipping by the global norm (Pascanu et al. 2013), as torch.nn.utils.clip_grad_norm_."""

import math
from collections.abc import Iterable

import numpy as np

from thalweg.contract.layout import Slab, ranges

# Sums of squares are taken over blocks of so many elements: a constant, so that the norm does not depend on how a slab is cut.
# A chunk, unless differentiation is numerical, is a whole number of blocks.
_BLOCK = 65_536
_EPS = 1e-6


def squares(gradient: Slab) -> list[float]:
    """The sums of squares of the blocks of a slab, or of a part of it that begins with a block, in double precision."""
    sums: list[float] = []
    for block in ranges(gradient.size, _BLOCK):
        values = gradient[block].astype(np.float64)
        with np.errstate(over="ignore"):
            values *= values
            sums.append(float(np.add.reduce(values)))
    return sums


def added(sums: Iterable[float]) -> float:
    """The sum of blocks' sums, added one by one, in order; Python's `sum` does more than that since 3.12."""
    total = 0.0
    for each in sums:
        total += each
    return total


def squared_norm(gradient: Slab) -> float:
    """The sum of squares of a whole slab, in double precision."""
    return added(squares(gradient))


def scale(norm: float, max_norm: float) -> float:
    """The factor, at most 1, that brings a gradient's norm down to `max_norm`. NaN for a norm that is not finite."""
    return min(1.0, max_norm / (norm + _EPS)) if math.isfinite(norm) else math.nan
