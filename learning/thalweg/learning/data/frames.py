"""Tables in memory: from mappings of names to cells, rows that are mappings, and data frames of pandas, Polars or Arrow."""

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.data.errors import DataError
from thalweg.learning.data.rows import Indices
from thalweg.learning.data.tables import Cells, Column, ColumnType

# Says where a row is.
Where = Callable[[int], str]
# The dtype of text's and times' cells.
WORDS = np.dtype(np.int32)
TIMES = np.dtype("datetime64[us]")


class _Frame(Protocol):
    """What data frames have in common: columns by their names."""

    def __getitem__(self, name: object, /) -> object: ...


def row_of(row: int) -> str:
    """Where a row is, for messages."""
    return f"row {row} (counted from 0)"


class MemoryTable:
    """A table whose cells are in memory, any row of which can be read by itself."""

    def __init__(self, name: str, cells: Mapping[str, Cells], types: Mapping[str, ColumnType], where: Where) -> None:
        self.name = name
        self.where = where
        self._cells = dict(cells)
        self._length = len(next(iter(self._cells.values())).values) if cells else 0
        self.columns = tuple(Column(each, types[each], found.values.dtype) for each, found in self._cells.items())

    @property
    def groups(self) -> Sequence[int]:
        """Empty: any row can be read by itself."""
        return ()

    def __len__(self) -> int:
        """The number of rows."""
        return self._length

    def take(self, indices: Indices, names: Sequence[str]) -> Mapping[str, Cells]:
        """The cells of some rows in some columns."""
        return {name: self._cells[name].at(indices) for name in names}


def is_frame(data: object) -> bool:
    """Whether an object is what `table_of` makes a table of: a mapping, rows that are mappings, or a data frame."""
    rows = isinstance(data, Sequence) and len(data) > 0 and all(isinstance(row, Mapping) for row in data)
    return rows or isinstance(data, Mapping) or _frame_columns(data) is not None


def table_of(data: object, name: str = "the table", field: str = "data", where: Where = row_of) -> MemoryTable:
    """A table of a mapping of column names to cells, of a sequence of rows that are mappings, or of a data frame.

    Cells are numbers, truth values, text, dates or times; None, NaN, NaT and pandas.NA are missing ones. Raises DataError,
    whose message begins with `field`, if it is something else.
    """
    if (names := _frame_columns(data)) is not None:
        frame = cast("_Frame", data)
        columns = {str(each): frame[each] for each in names}
        if len(columns) < len(names):
            raise DataError(f"{field}: {name} has two columns of one name; rename one of them")
    elif isinstance(data, Mapping):
        columns = {str(each): cells for each, cells in data.items()}
    elif is_frame(data) and isinstance(data, Sequence):
        named = dict.fromkeys(str(each) for row in data for each in row)
        columns = {each: [row.get(each) for row in data] for each in named}
    else:
        raise DataError(
            f"{field}: a {type(data).__name__} is not a table; give a data frame, or a dictionary of columns by their names"
        )
    found = {each: _column(f"{field}: column {each!r}", cells) for each, cells in columns.items()}
    lengths = {len(cells.values) for _, cells in found.values()}
    if len(lengths) > 1:
        counts = ", ".join(f"{each!r} has {len(cells.values):,}" for each, (_, cells) in list(found.items())[:6])
        raise DataError(f"{field}: the columns of {name} differ in their numbers of rows: {counts}")
    return MemoryTable(
        name, {each: cells for each, (_, cells) in found.items()}, {each: kind for each, (kind, _) in found.items()}, where
    )


def _frame_columns(data: object) -> list[object] | None:
    """The names of a data frame's columns; None of anything else."""
    if not (hasattr(data, "__dataframe__") or hasattr(data, "__arrow_c_stream__")) or not hasattr(data, "__getitem__"):
        return None
    # Arrow's tables call the cells "columns".
    names = getattr(data, "column_names", None)
    return list(getattr(data, "columns", ()) if names is None else names)


def _column(subject: str, cells: object) -> tuple[ColumnType, Cells]:
    try:
        array = np.asarray(cells if hasattr(cells, "__array__") else _objects(cells))
    except (TypeError, ValueError) as error:
        raise DataError(f"{subject} is not a column of cells: {error}") from error
    if array.ndim != 1:
        raise DataError(f"{subject} has the shape {array.shape}; a column has one axis, its rows")
    match array.dtype.kind:
        case "b":
            return ColumnType.BOOLEAN, Cells(array)
        case "i" | "u":
            return ColumnType.NUMBER, Cells(array)
        case "f":
            return ColumnType.NUMBER, Cells(array, _some(np.isnan(array)))
        case "M":
            return ColumnType.TIME, Cells(array.astype(TIMES), _some(np.isnat(array)))
        case "U":
            return text_cells(array.astype(object), np.zeros(len(array), bool))
        case "O":
            return _of_objects(subject, array)
        case _:
            raise DataError(f"{subject} holds elements of type {array.dtype}; it must hold numbers, text, truth values or times")


def _objects(cells: object) -> NDArray[Any]:
    if isinstance(cells, str | bytes) or not isinstance(cells, Iterable):
        raise TypeError(f"a {type(cells).__name__} is not a list")
    given = list(cells)
    array = np.empty(len(given), object)
    array[:] = given
    return array


def _of_objects(subject: str, array: NDArray[Any]) -> tuple[ColumnType, Cells]:
    missing = np.fromiter((_is_missing(cell) for cell in array), bool, len(array))
    present = array[~missing]
    kinds = {_type_of(subject, cell) for cell in present}
    if len(kinds) > 1:
        listed = " and ".join(sorted(kind.value for kind in kinds))
        raise DataError(f"{subject} holds cells of several types: {listed}; convert them to one")
    kind = next(iter(kinds), ColumnType.NUMBER)
    if kind is ColumnType.TEXT:
        return text_cells(array, missing)
    if kind is ColumnType.TIME:
        values: NDArray[Any] = np.zeros(len(array), TIMES)
        values[~missing] = [_in_utc(cell) for cell in present]
        return kind, Cells(values, _some(missing))
    if kind is ColumnType.BOOLEAN:
        values = np.zeros(len(array), bool)
    else:
        whole = len(present) > 0 and all(isinstance(cell, int | np.integer) and -(2**63) <= cell < 2**63 for cell in present)
        values = np.zeros(len(array), np.int64 if whole else np.float64)
    try:
        values[~missing] = present
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{subject} holds a number that float64 does not: {error}") from error
    return kind, Cells(values, _some(missing))


def text_cells(array: NDArray[Any], missing: NDArray[np.bool_]) -> tuple[ColumnType, Cells]:
    """The cells of texts, objects of shape (rows). Where one is missing, anything may stand."""
    words = sorted({str(text) for text in array[~missing]})
    position = {word: index for index, word in enumerate(words)}
    values = np.zeros(len(array), WORDS)
    values[~missing] = [position[str(text)] for text in array[~missing]]
    return ColumnType.TEXT, Cells(values, _some(missing), tuple(words) or ("",))


def _is_missing(cell: object) -> bool:
    if cell is None or type(cell).__name__ == "NAType":
        return True
    # NaN and NaT differ from themselves.
    return not isinstance(cell, str) and bool(np.all(cell != cell))  # noqa: PLR0124


def _type_of(subject: str, cell: object) -> ColumnType:
    if isinstance(cell, bool | np.bool_):
        return ColumnType.BOOLEAN
    if isinstance(cell, str):
        return ColumnType.TEXT
    if isinstance(cell, datetime.date | np.datetime64):
        return ColumnType.TIME
    if isinstance(cell, int | float | np.number) or hasattr(cell, "__float__"):
        return ColumnType.NUMBER
    kind = type(cell).__name__
    raise DataError(f"{subject} holds a {kind}; cells are numbers, text, truth values, dates or times")


def _in_utc(cell: datetime.date) -> np.datetime64:
    if isinstance(cell, datetime.datetime) and cell.tzinfo is not None:
        cell = cell.astimezone(datetime.UTC).replace(tzinfo=None)
    return np.datetime64(cell).astype(TIMES)


def _some(missing: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    return missing if missing.any() else None
