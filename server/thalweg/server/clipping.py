"""Clipping by the global norm (Pascanu et al. 2013), as torch.nn.utils.clip_grad_norm_."""

import math

import numpy as np

from thalweg.contract.layout import Slab, ranges

# Sums of squares are taken over blocks of so many elements: a constant, so that the norm does not depend on how a slab is cut.
_BLOCK = 65_536
_EPS = 1e-6


def squared_norm(gradient: Slab) -> float:
    """The sum of squares of a whole slab, in double precision."""
    total = 0.0
    for block in ranges(gradient.size, _BLOCK):
        values = gradient[block].astype(np.float64)
        with np.errstate(over="ignore"):
            values *= values
            total += float(np.add.reduce(values))
    return total


def scale(norm: float, max_norm: float) -> float:
    """The factor, at most 1, that brings a gradient's norm down to `max_norm`. NaN for a norm that is not finite."""
    return min(1.0, max_norm / (norm + _EPS)) if math.isfinite(norm) else math.nan
