"""Which rows of a table are used, where those with missing values are dropped."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.data.rows import Indices, positions

# Rows whose bits are one element of the bitmap.
_WORD = 64
# The number of bits of each byte.
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)
# Positions that are looked up at once.
_AT_ONCE = 8192


class Kept:
    """The rows that a bitmap keeps, in rising order: two bits of memory for each row of the table.

    `bits` has a bit for each row, uint8 of shape (ceil(rows / 64), 8), the first row's the highest.
    """

    def __init__(self, bits: NDArray[np.uint8]) -> None:
        self._bits = bits
        ends = np.cumsum(_ONES[bits].sum(axis=1, dtype=np.int64))
        self._before = np.concatenate([np.zeros(1, np.int64), ends])
        self.dtype = np.dtype(np.intp)
        self.shape = (int(self._before[-1]),)

    def __len__(self) -> int:
        """The number of rows that are kept."""
        return self.shape[0]

    def __getitem__(self, indices: Indices) -> NDArray[np.intp]:
        """The rows at some positions among those that are kept."""
        wanted = positions(indices, len(self))
        rows = np.empty(len(wanted), np.intp)
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            word = np.searchsorted(self._before, some, "right") - 1
            counts = np.cumsum(np.unpackbits(self._bits[word], axis=1), axis=1, dtype=np.uint8)
            within = (some - self._before[word]).astype(np.uint8)
            rows[start : start + _AT_ONCE] = word * _WORD + np.sum(counts <= within[:, None], axis=1)
        return rows


def bitmap(rows: int, keeps: Callable[[slice], NDArray[np.bool_]], at_once: int) -> NDArray[np.uint8]:
    """The bits of rows, from a function that says which rows of a range are kept. `at_once` is a multiple of 64."""
    bits = np.zeros((-(-rows // _WORD), _WORD // 8), np.uint8)
    flat = bits.reshape(-1)
    for start in range(0, rows, at_once):
        packed = np.packbits(keeps(slice(start, min(start + at_once, rows))))
        flat[start // 8 : start // 8 + len(packed)] = packed
    return bits
