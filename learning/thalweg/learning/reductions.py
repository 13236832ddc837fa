"""Quantities of a whole step that are needed before any of it can be applied: sums of squares, of the slab or of each segment.

They are taken over blocks of the slab, and added in its order: so they do not depend on how a slab is cut into chunks and shards.
"""

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import NamedTuple

# Elements of a block: a constant, as the sums depend on it. Unless differentiation is numerical, a chunk is a number of blocks.
BLOCK = 65_536


class Quantity(Enum):
    """The quantity whose squares are summed."""

    # The step's gradient, scaled by the reductions before.
    GRADIENT = auto()
    # The parameters before the update.
    PARAMETERS = auto()
    # By how much the parameters would fall at a learning rate of 1, weight decay included.
    UPDATE = auto()


class Scaled(Enum):
    """The quantity that a reduction's factor multiplies."""

    GRADIENT = auto()
    LEARNING_RATE = auto()


class Reduction(NamedTuple):
    """One of the reductions of a step. `factor` gets the sums of squares of `quantities`, of the slab or of a segment.

    Frozen tensors and statistics count as 0.
    """

    quantities: tuple[Quantity, ...]
    per_segment: bool
    scaled: Scaled
    factor: Callable[[Sequence[float]], float]
