"""One's own table, from a CSV file: one line of column names, then numbers."""

import csv
import difflib
import math
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.workers.data.errors import DataError


def load(path: Path, name: str, target: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """The target's column as `y`, the last one if `target` is empty, and all others as `x`, float64.

    Empty lines are passed over. Raises DataError, which calls the file `name`, if it is not such a table.
    """
    # Not a list: a float there takes four times the room.
    values = array("d")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(lines, [])]
            column = _column(header, name, target)
            for cells in lines:
                if cells:
                    values.extend(_numbers(cells, header, lines.line_num))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"data.csv: {name!r} is no CSV file in UTF-8: {error}") from error
    if not values:
        raise DataError(f"data.csv: {name!r} has no lines below its column names")
    table = np.frombuffer(values, np.float64).reshape(-1, len(header))
    return np.delete(table, column, axis=1), table[:, column].copy()


def _column(header: list[str], name: str, target: str) -> int:
    """The target's position. Raises DataError if there is none, or if the line is none of column names."""
    if not header:
        raise DataError(f"data.csv: {name!r} is empty, or its first line is; it must begin with a line of column names")
    if len(header) < 2:
        raise DataError(
            f"data.csv: {name!r} has one column; it must begin with a line of at least two column names, separated by commas"
        )
    if all(_is_number(cell) for cell in header):
        raise DataError(f"data.csv: {name!r} begins with numbers; it must begin with a line of column names")
    for position, column in enumerate(header):
        if not column:
            raise DataError(f"data.csv: line 1, column {position + 1} has no name")
        if column in header[:position]:
            raise DataError(f"data.csv: line 1, two columns are called {column!r}")
    if not target:
        return len(header) - 1
    if target not in header:
        close = difflib.get_close_matches(target, header, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise DataError(f"data.target: {name!r} has no column {target!r}; it has {', '.join(header)}{hint}")
    return header.index(target)


def _numbers(cells: list[str], header: list[str], line: int) -> list[float]:
    if len(cells) != len(header):
        raise DataError(
            f"data.csv: line {line} has {len(cells)} cell{'' if len(cells) == 1 else 's'}, and there are {len(header)} columns"
        )
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError:
        cell, column = next(pair for pair in zip(cells, header, strict=True) if not _is_number(pair[0]))
        raise DataError(f"data.csv: line {line}, column {column!r}: {cell!r} is not a number") from None
    if not all(map(math.isfinite, numbers)):
        number, column = next(pair for pair in zip(numbers, header, strict=True) if not math.isfinite(pair[0]))
        raise DataError(f"data.csv: line {line}, column {column!r}: {number} is no finite number")
    return numbers


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
