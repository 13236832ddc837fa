"""Statistics of the training samples: sums over blocks of rows, in their order."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import ranges
from thalweg.learning.data.errors import DataError
from thalweg.learning.data.rows import Rows, row_blocks
from thalweg.v1 import job_pb2

# The most features whose means, deviations and names are kept: they fit in a message of 4 MiB with room to spare.
MAX_FEATURES = 1 << 17
# Samples of a block of squares, whose sum is added to those of the other blocks. The sums' bits depend on it.
_SQUARED_AT_ONCE = 1024


def standardization(x: Rows, *, whole: bool = True) -> job_pb2.Preprocessing:
    """Mean and standard deviation of each feature over samples, in double precision; 1 for a deviation of 0.

    It takes memory for a few blocks of samples. With `whole`, which affects the result's last bits, a single feature is summed as
    one column, which is read to memory. Raises DataError if there are more features than a message holds.
    """
    shape = x.shape[1:]
    features = int(np.prod(shape))
    if features > MAX_FEATURES:
        raise DataError(f"data.standardize: a sample has {features:,} features; at most {MAX_FEATURES:,} are standardized")
    column = whole and features == 1
    mean = np.asarray(np.mean(x[:], axis=0, dtype=np.float64)) if column else _sum(x, row_blocks(x)) / len(x)
    squares = np.zeros(shape)
    for block in ranges(len(x), _SQUARED_AT_ONCE):
        squares += _sum(x, iter([block]) if features == 1 else row_blocks(x, block), mean)
    low, high = _extremes(x)
    # The mean of equal numbers may be off by a rounding, and dividing by it would turn that into a whole deviation.
    constant = low == high
    mean = np.where(constant, x[:1][0].astype(np.float64), mean)
    scale = np.sqrt(squares / len(x))
    return job_pb2.Preprocessing(mean=mean.ravel(), scale=np.where(constant | (scale == 0), 1.0, scale).ravel())


def _sum(x: Rows, blocks: Iterator[slice], mean: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """The sum of rows, or of the squares of their distances from a mean, one block at a time, shape (...).

    NumPy adds the rows of a C-ordered array one after another, if a row has more than one element. So the sum of the blocks
    before, as one more row above a block, gives the bits of a sum of all rows at once, whatever the blocks.
    """
    total: NDArray[np.float64] = np.empty((0, *x.shape[1:]))
    for block in blocks:
        rows = np.ascontiguousarray(x[block], np.float64)
        if mean is not None:
            rows = (rows - mean) ** 2
        total = np.add.reduce(np.concatenate([total, rows]), axis=0, keepdims=True)
    return total.reshape(x.shape[1:])


def _extremes(x: Rows) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """The smallest and the largest of each feature."""
    low = high = x[:1][0]
    for block in row_blocks(x):
        rows = x[block]
        low, high = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
    return low, high
