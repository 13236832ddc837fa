"""Rows: arrays that need not lie in memory, because only some of their rows are needed at a time."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import ranges
from thalweg.learning.data.files import OpenFile

# Which rows: their positions, or a range of positions.
Indices: TypeAlias = NDArray[np.intp] | slice
# Bytes of a block of rows or samples, where all of them are read.
BLOCK_BYTES = 1 << 20


class Rows(Protocol):
    """An array whose rows are taken by their indices on its first axis. Each NumPy array is one."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of rows, and the shape of each."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Indices, /) -> NDArray[Any]:
        """The rows at indices, or of a range: C-ordered, unless the array itself has another order."""


class Positions(Protocol):
    """A sequence of indices that need not lie in memory. Each NumPy array of one axis is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Indices, /) -> NDArray[np.intp]: ...


class Selected:
    """The rows at some positions of an array."""

    def __init__(self, rows: Rows, chosen: Positions) -> None:
        self._rows = rows
        self._chosen = chosen
        self.dtype = rows.dtype
        self.shape = (len(chosen), *rows.shape[1:])

    def __len__(self) -> int:
        """The number of rows."""
        return self.shape[0]

    def __getitem__(self, indices: Indices) -> NDArray[Any]:
        """The rows at indices."""
        return self._rows[self._chosen[indices]]


class Mapped:
    """Rows that a function makes from the rows of an array, a block at a time.

    `sample` is the shape of a row that the function makes, `dtype` the dtype of its elements.
    """

    def __init__(
        self, rows: Rows, function: Callable[[NDArray[Any]], NDArray[Any]], sample: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._rows = rows
        self._function = function
        self.dtype = dtype
        self.shape = (len(rows), *sample)

    def __len__(self) -> int:
        """The number of rows."""
        return self.shape[0]

    def __getitem__(self, indices: Indices) -> NDArray[Any]:
        """The rows at indices."""
        return self._function(self._rows[indices])


class Late:
    """Rows that are checked when they are taken: to read all of them first would take long."""


def is_late(rows: object) -> bool:
    """Whether rows are checked when they are taken, or are made of such rows."""
    while isinstance(rows, Selected | Mapped):
        rows = rows._rows
    return isinstance(rows, Late)


class FileRows:
    """A C-ordered array in a file, whose rows are read when they are taken.

    `descriptor` is that of the open file, and may be closed afterwards; the bytes from `offset` on are the elements. Taking rows
    raises DataError, whose message begins with `subject`, if the file has changed since, and OSError if it cannot be read.
    """

    def __init__(self, descriptor: int, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], subject: str) -> None:
        self.shape = shape
        self.dtype = dtype
        self._file = OpenFile(descriptor, subject)
        self._offset = offset
        self._row_bytes = math.prod(shape[1:]) * dtype.itemsize

    def __len__(self) -> int:
        """The number of rows."""
        return self.shape[0]

    def __getitem__(self, indices: Indices) -> NDArray[Any]:
        """The rows at indices, in an array of their own."""
        indices = positions(indices, len(self))
        return self.read(indices, np.empty((len(indices), *self.shape[1:]), self.dtype))

    def read(self, indices: Indices, out: NDArray[Any]) -> NDArray[Any]:
        """The rows at indices, in the C-ordered array `out`, which has room for exactly as many, and this dtype."""
        indices = positions(indices, len(self))
        if not out.nbytes:
            return out
        room = out.reshape(-1).view(np.uint8).data
        # Rows that follow one another in the file are read at once.
        ends = [*(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)]
        start = 0
        for end in ends:
            at = self._offset + int(indices[start]) * self._row_bytes
            self._file.read(at, room[start * self._row_bytes : end * self._row_bytes])
            start = end
        self._file.check()
        return out


def positions(indices: Indices, length: int) -> NDArray[np.intp]:
    """Indices, or those of a range, among a number of rows."""
    return np.arange(*indices.indices(length), dtype=np.intp) if isinstance(indices, slice) else indices


def row_blocks(rows: Rows, within: slice | None = None) -> Iterator[slice]:
    """Cuts all rows, or those of a range, into ranges of at most BLOCK_BYTES in double precision, or of one row."""
    start, stop = (within.start, within.stop) if within else (0, len(rows))
    row_bytes = math.prod(rows.shape[1:]) * max(8, rows.dtype.itemsize)
    for block in ranges(stop - start, max(1, BLOCK_BYTES // max(1, row_bytes))):
        yield slice(start + block.start, start + block.stop)
