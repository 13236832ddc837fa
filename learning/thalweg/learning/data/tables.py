"""Tables: rows of named columns, of numbers, text, booleans and times, which are read when they are taken."""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.data.rows import Indices


class ColumnType(Enum):
    """What the cells of a column hold."""

    NUMBER = "number"
    TEXT = "text"
    BOOLEAN = "boolean"
    TIME = "time"


class Column(NamedTuple):
    """A column of a table.

    `dtype` is that of the cells' values: integers or real numbers; int32 of text, whose values are positions in a list of words;
    bool; or datetime64 in microseconds, of dates and times. The index of a data frame is used only if it is named.
    """

    name: str
    type: ColumnType
    dtype: np.dtype[Any]
    is_index: bool = False


class Cells(NamedTuple):
    """Cells of a column, shape (rows): their values, where they are missing, and, of text, the words.

    `missing` is None if none is missing. The value of a missing cell is of no significance, but valid: a position in `words` is
    in range if there are words.
    """

    values: NDArray[Any]
    missing: NDArray[np.bool_] | None = None
    words: tuple[str, ...] = ()

    def at(self, indices: Indices) -> "Cells":
        """The cells of some rows."""
        return Cells(self.values[indices], None if self.missing is None else self.missing[indices], self.words)


@runtime_checkable
class Table(Protocol):
    """A table. Taking cells raises DataError if the file has changed or is damaged, and OSError if it cannot be read."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Its columns, in order."""

    @property
    def groups(self) -> Sequence[int]:
        """Of a table that is read by groups of rows that follow one another, the number of rows up to the end of each group.

        Empty if any row can be read by itself.
        """

    def __len__(self) -> int: ...

    def take(self, indices: Indices, names: Sequence[str]) -> Mapping[str, Cells]:
        """The cells of some rows in some columns."""

    def where(self, row: int) -> str:
        """Where a row, counted from 0, is in the file, for messages: `line 7`, or `row 3 (counted from 0) of part-2.parquet`."""
