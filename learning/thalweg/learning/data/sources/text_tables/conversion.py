"""The cells of a CSV file as values: of each column, by its kind."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.data.errors import DataError
from thalweg.learning.data.preparation import cells
from thalweg.learning.data.sources.text_tables.batches import Rows, batches
from thalweg.learning.data.sources.text_tables.cells import (
    MISSING,
    MISSING_BESIDE_NUMBERS,
    missing_in,
    numbers_of,
    time_of,
    truth_of,
    why_no_number,
)
from thalweg.learning.data.sources.text_tables.kinds import Kind
from thalweg.learning.data.sources.text_tables.words import Told, shown
from thalweg.learning.data.tables import ColumnType

TIMES = np.dtype("datetime64[us]")


class Values(NamedTuple):
    """Cells of a column: an array, or of text a list of strings; and where they are missing, None if none is."""

    values: NDArray[Any] | list[str]
    missing: NDArray[np.bool_] | None


class Block(NamedTuple):
    """Rows that follow one another: the values of each column, and the line of each row."""

    columns: list[Values]
    lines: Sequence[int]


def blocks(rows: Rows, kinds: Sequence[Kind], told: Told) -> Iterator[Block]:
    """All rows, in blocks of bounded size. Raises DataError at the first cell that is not of its column's kind, and OSError.

    If the table is `complete`, so is a missing number.
    """
    makers = [_Maker(rows, kind, told) for kind in kinds]
    for batch in batches(rows):
        made = [maker.values(column) for maker, column in zip(makers, batch.columns, strict=True)]
        wrong = [(maker.wrong, position) for position, maker in enumerate(makers) if maker.wrong >= 0]
        if wrong:
            row, position = min(wrong)
            cell = batch.columns[position][row]
            problem = makers[position].problem(cell)
            if not kinds[position].told and rows.names:
                problem += rows.words.setting(f'data.columns.{rows.names[position]}.type = "text"')
            where = f"{rows.where(batch.lines[row])}, column {rows.column(position)}"
            raise DataError(f"{rows.field}: {where}: {shown(cell)} {problem}")
        yield Block(made, batch.lines)


def _told_truth(cell: str) -> bool | None:
    try:
        return cells.truth_of(cell.strip())
    except KeyError:
        return None


class _Maker:
    """Makes values of the cells of one column. `wrong` is the position of the first cell of which it made none, or -1."""

    def __init__(self, rows: Rows, kind: Kind, told: Told) -> None:
        self._decimal = rows.decimal
        self._words = rows.words
        # Where the job says so, there are more words for truth values than are recognized as such.
        self._truth_of = _told_truth if kind.told else truth_of
        self._kind = kind
        self._complete = told.complete
        self._told = told
        self._is_missing = missing_in(told.missing, MISSING if kind.type is ColumnType.TEXT else MISSING_BESIDE_NUMBERS)
        self.wrong = -1

    def values(self, column: Sequence[str]) -> Values:
        """The values of some cells."""
        self.wrong = -1
        match self._kind.type:
            case ColumnType.NUMBER:
                return self._numbers(column)
            case ColumnType.TEXT:
                return self._texts(column)
            case ColumnType.BOOLEAN:
                return self._each(column, self._truth_of, np.dtype(bool))
            case ColumnType.TIME:
                order = self._kind.order
                values, missing = self._each(column, lambda cell: time_of(cell, order), np.dtype(np.int64))
                return Values(np.asarray(values).view(TIMES), missing)

    def problem(self, cell: str) -> str:
        """What is wrong with a cell, and what to do."""
        match self._kind.type:
            case ColumnType.NUMBER:
                return why_no_number(cell, self._decimal, self._words, self._told)
            case ColumnType.TEXT:
                return "holds a NUL; if the file is UTF-16, save it as UTF-8"
            case ColumnType.BOOLEAN:
                return "is not true or false, as other cells of the column are; correct it, or empty the cell"
            case ColumnType.TIME:
                order = self._kind.order.value
                return f"is not a date in the order {order}, with or without a time, as others of the column are; correct it"

    def _numbers(self, column: Sequence[str]) -> Values:
        numbers = numbers_of(column, self._decimal)
        if numbers is not None:
            return Values(self._array(numbers, column), None)
        if self._complete:
            self.wrong = next(index for index, cell in enumerate(column) if self._decimal.number(cell) is None)
            return Values(np.zeros(0), None)
        missing = np.fromiter(map(self._is_missing, column), bool, len(column))
        present = ["0" if gone else cell for cell, gone in zip(column, missing, strict=True)]
        numbers = numbers_of(present, self._decimal)
        if numbers is None:
            self.wrong = next(index for index, cell in enumerate(present) if self._decimal.number(cell) is None)
            return Values(np.zeros(0), None)
        return Values(self._array(numbers, present), missing)

    def _array(self, numbers: list[float], column: Sequence[str]) -> NDArray[Any]:
        return np.array(list(map(int, column)), np.int64) if self._kind.whole else np.array(numbers)

    def _texts(self, column: Sequence[str]) -> Values:
        if "\0" in "".join(column):
            self.wrong = next(index for index, cell in enumerate(column) if "\0" in cell)
        values = [cell.strip() for cell in column]
        missing = np.fromiter(map(self._is_missing, values), bool, len(column))
        return Values(values, missing if missing.any() else None)

    def _each(self, column: Sequence[str], of: Callable[[str], int | bool | None], dtype: np.dtype[Any]) -> Values:
        made = np.zeros(len(column), dtype)
        missing = np.zeros(len(column), bool)
        known: dict[str, int | bool | None] = {}
        for index, cell in enumerate(column):
            if cell not in known:
                known[cell] = None if self._is_missing(cell) else of(cell)
            value = known[cell]
            if value is not None:
                made[index] = value
            elif self._is_missing(cell):
                missing[index] = True
            elif self.wrong < 0:
                self.wrong = index
        return Values(made, missing if missing.any() else None)
