"""Clipping by the global norm (Pascanu et al. 2013), as torch.nn.utils.clip_grad_norm_."""

import math

from thalweg.learning.reductions import Quantity, Reduction, Scaled

_EPS = 1e-6


def scale(norm: float, max_norm: float) -> float:
    """The factor, at most 1, that brings a gradient's norm down to `max_norm`. NaN for a norm that is not finite."""
    return min(1.0, max_norm / (norm + _EPS)) if math.isfinite(norm) else math.nan


def reduction(max_norm: float) -> Reduction:
    """Scales a gradient whose norm over the whole slab exceeds `max_norm` down to it."""
    return Reduction((Quantity.GRADIENT,), False, Scaled.GRADIENT, lambda sums: scale(sums[0] ** 0.5, max_norm))
