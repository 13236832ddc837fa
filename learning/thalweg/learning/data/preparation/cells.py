"""Cells of a table as they are read: of the type that the job says, NaN taken for missing, and as categories."""

import datetime
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.data.errors import DataError
from thalweg.learning.data.preparation.plans import Planned
from thalweg.learning.data.rows import Indices
from thalweg.learning.data.tables import Cells, ColumnType, Table

# Rows that are read at once, and columns: together, in double precision, 16 MiB. Statistics' bits depend on the rows.
ROWS_AT_ONCE = 8192
COLUMNS_AT_ONCE = 256
_TRUE, _FALSE = ("true", "yes", "1", "t", "y"), ("false", "no", "0", "f", "n")
_TRUTH = dict.fromkeys(_TRUE, True) | dict.fromkeys(_FALSE, False)


def read(table: Table, rows: NDArray[np.intp], planned: Sequence[Planned]) -> Iterator[Cells]:
    """The cells of some rows in each planned column, of the planned type. Raises DataError if one cannot be read as that."""
    for first in range(0, len(planned), COLUMNS_AT_ONCE):
        some = planned[first : first + COLUMNS_AT_ONCE]
        taken = table.take(_as_range(rows), [column.name for column in some])
        for column in some:
            yield _as_planned(table, rows, column, taken[column.name])


def _as_range(rows: NDArray[np.intp]) -> Indices:
    """Rows that follow one another as a range, which tables read faster."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and np.all(np.diff(rows) == 1):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def _as_planned(table: Table, rows: NDArray[np.intp], column: Planned, cells: Cells) -> Cells:
    values, missing, words = cells
    if values.dtype.kind == "f":
        gone = np.isnan(values)
        if gone.any():
            missing = gone if missing is None else missing | gone
    if column.given is not column.type and not (missing is not None and missing.all()):
        values, missing, words = _converted(table, rows, column, Cells(values, missing, words))
    if column.type is ColumnType.NUMBER and values.dtype.kind == "f":
        wrong = np.isinf(values) if missing is None else np.isinf(values) & ~missing
        if wrong.any():
            where = table.where(int(rows[np.argmax(wrong)]))
            raise DataError(
                f"data: {table.name!r}: {where}, column {column.name!r} holds an infinite number; replace or remove it"
            )
    return Cells(values, missing, words)


def _converted(table: Table, rows: NDArray[np.intp], column: Planned, cells: Cells) -> Cells:
    match column.given, column.type:
        case ColumnType.TEXT, ColumnType.NUMBER:
            return _parsed(table, rows, column, cells, number_of, np.dtype(np.float64))
        case ColumnType.TEXT, ColumnType.BOOLEAN:
            return _parsed(table, rows, column, cells, truth_of, np.dtype(bool))
        case ColumnType.TEXT, ColumnType.TIME:
            return _parsed(table, rows, column, cells, time_of, np.dtype("datetime64[us]"))
        case _, ColumnType.TEXT:
            return Cells(*categories(cells))
        case ColumnType.BOOLEAN, ColumnType.NUMBER:
            return Cells(cells.values.astype(np.int64), cells.missing)
        case ColumnType.NUMBER, ColumnType.BOOLEAN:
            known = (cells.values == 0) | (cells.values == 1)
            wrong = ~known if cells.missing is None else ~known & ~cells.missing
            if wrong.any():
                raise _unreadable(table, rows, column, int(np.argmax(wrong)), str(cells.values[np.argmax(wrong)]))
            return Cells(cells.values == 1, cells.missing)
        case _:
            holds, wanted = column.given.value, column.type.value
            raise DataError(f"{column.setting}.type: a column of the type {holds} cannot be read as {wanted}; leave type out")


def _parsed(
    table: Table,
    rows: NDArray[np.intp],
    column: Planned,
    cells: Cells,
    parse: Callable[[str], float | np.datetime64],
    dtype: np.dtype[Any],
) -> Cells:
    """Text as values of another type: each word is parsed once. Empty text is a missing value."""
    positions, missing, words = categories(cells)
    made = np.zeros(len(words), dtype)
    blank, wrong = np.zeros(len(words), bool), np.zeros(len(words), bool)
    for index, word in enumerate(words):
        text = word.strip()
        if not text:
            blank[index] = True
            continue
        try:
            made[index] = parse(text)
        except (ValueError, OverflowError, KeyError):
            wrong[index] = True
    gone = blank[positions] if missing is None else blank[positions] | missing
    bad = wrong[positions] & ~gone
    if bad.any():
        first = int(np.argmax(bad))
        raise _unreadable(table, rows, column, first, words[positions[first]])
    return Cells(made[positions], gone if gone.any() else None)


def _unreadable(table: Table, rows: NDArray[np.intp], column: Planned, position: int, cell: str) -> DataError:
    shown = repr(cell if len(cell) <= 40 else cell[:37] + "...")
    where, wanted = table.where(int(rows[position])), column.type.value
    problem = f"{table.name!r}: {where}, column {column.name!r}: {shown} cannot be read as {wanted}"
    return DataError(f"{column.setting}.type: {problem}; correct the cell, or give another type")


def number_of(text: str) -> float:
    """The decimal number that a text is. Raises ValueError."""
    number = float(text) if text.isascii() and "_" not in text else math.nan
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def truth_of(text: str) -> bool:
    """The truth value that a text names. Raises KeyError."""
    return _TRUTH[text.casefold()]


def time_of(text: str) -> np.datetime64:
    """The date or time in UTC that a text in the format ISO 8601 is; one without a zone is in UTC. Raises ValueError."""
    moment = datetime.datetime.fromisoformat(text)
    if moment.tzinfo is not None:
        moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    return np.datetime64(moment, "us")


def numbers(cells: Cells) -> NDArray[np.float64]:
    """Numbers, truth values as 0 and 1, and times as seconds since 1970, shape (rows)."""
    values = cells.values
    if values.dtype.kind == "M":
        return values.astype("datetime64[us]").astype(np.int64) / 1e6
    return values.astype(np.float64)


def categories(cells: Cells) -> tuple[NDArray[np.intp], NDArray[np.bool_] | None, tuple[str, ...]]:
    """The positions of cells in a list of categories, shape (rows), where cells are missing, and the list, of those in use.

    A number's text is the shortest that gives it back, without a fraction if it is whole.
    """
    values, missing, words = cells
    distinct, positions = np.unique(values, return_inverse=True)
    texts = [words[position] for position in distinct.tolist()] if words else map(_text_of, distinct.tolist())
    return positions.reshape(-1), missing, tuple(texts) or ("",)


def _text_of(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case float() if value.is_integer() and abs(value) < 1 << 53:
            return str(int(value))
        case datetime.datetime():
            return value.isoformat()
        case _:
            return str(value)


def texts(cells: Cells) -> list[str]:
    """The text of each cell."""
    positions, _, words = categories(cells)
    return [words[position] for position in positions.tolist()]
