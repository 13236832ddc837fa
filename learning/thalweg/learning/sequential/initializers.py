"""Initial weights. Each initializer is one line of the registry."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import Slab, ranges

_BLOCK = 131_072

Initializer = Callable[[np.random.Generator, Slab], None]


def _fans(weight: Slab) -> tuple[int, int]:
    outputs, inputs = weight.shape
    return inputs, outputs


def _fill(weight: Slab, draw: Callable[[int], NDArray[np.float64]]) -> None:
    """Fills a weight, which is contiguous, with numbers that are drawn in order, block by block, to take little memory."""
    flat = weight.reshape(-1)
    for where in ranges(flat.size, _BLOCK):
        flat[where] = draw(where.stop - where.start)


def _normal(variance: Callable[[int, int], float]) -> Initializer:
    def initialize(generator: np.random.Generator, weight: Slab) -> None:
        deviation = math.sqrt(variance(*_fans(weight)))
        _fill(weight, lambda size: generator.normal(0.0, deviation, size))

    return initialize


def _uniform(variance: Callable[[int, int], float]) -> Initializer:
    def initialize(generator: np.random.Generator, weight: Slab) -> None:
        bound = math.sqrt(3 * variance(*_fans(weight)))
        _fill(weight, lambda size: generator.uniform(-bound, bound, size))

    return initialize


def _he(inputs: int, outputs: int) -> float:  # noqa: ARG001
    """He et al. 2015: 2 / inputs, which keeps the variance through a layer followed by a relu."""
    return 2 / inputs


def _xavier(inputs: int, outputs: int) -> float:
    """Glorot and Bengio 2010: 2 / (inputs + outputs)."""
    return 2 / (inputs + outputs)


# From a generator and a weight of shape (outputs, inputs), which is filled.
INITIALIZERS: dict[str, Initializer] = {
    "he_normal": _normal(_he),
    "he_uniform": _uniform(_he),
    "xavier_normal": _normal(_xavier),
    "xavier_uniform": _uniform(_xavier),
}
