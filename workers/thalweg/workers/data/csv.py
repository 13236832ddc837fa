"""One's own table, from a CSV file: one line of column names, then numbers."""

import csv
import difflib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.workers.data.errors import DataError


def load(path: Path, name: str, target: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """The target's column as `y`, the last one if `target` is empty, and all others as `x`, float64.

    Raises DataError, which calls the file `name`, if it is not such a table.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(lines, [])]
            column = _column(header, name, target)
            rows = [_numbers(cells, header, name, lines.line_num) for cells in lines if cells]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"data.csv: {name} is no CSV file in UTF-8: {error}") from error
    if not rows:
        raise DataError(f"data.csv: {name} has no lines below its column names")
    table = np.array(rows, np.float64)
    return np.delete(table, column, axis=1), table[:, column]


def _column(header: list[str], name: str, target: str) -> int:
    if len(header) < 2:
        raise DataError(f"data.csv: {name} must begin with a line of at least two column names, separated by commas")
    if all(_is_number(cell) for cell in header):
        raise DataError(f"data.csv: {name} must begin with a line of column names, and begins with numbers")
    if not target:
        return len(header) - 1
    if target not in header:
        close = difflib.get_close_matches(target, header, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise DataError(f"data.target: {name} has no column {target!r}; it has {', '.join(header)}{hint}")
    return header.index(target)


def _numbers(cells: list[str], header: list[str], name: str, line: int) -> list[float]:
    if len(cells) != len(header):
        raise DataError(f"data.csv: {name}, line {line}: has {len(cells)} cells, and there are {len(header)} columns")
    numbers = []
    for column, cell in zip(header, cells, strict=True):
        if not _is_number(cell):
            raise DataError(f"data.csv: {name}, line {line}, column {column!r}: {cell!r} is not a number")
        numbers.append(float(cell))
    return numbers


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
