"""The rows of a file, some at a time, as columns."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from thalweg.learning.data.errors import DataError
from thalweg.learning.data.sources.text_tables.records import Record

# Cells of a batch, and characters of them.
MAX_CELLS = 1 << 19
_MAX_ROWS = 1 << 16
_MAX_CHARACTERS = 1 << 25


class Batch(NamedTuple):
    """Rows that follow one another: the cells of each column, and the line of each row."""

    columns: Sequence[Sequence[str]]
    lines: Sequence[int]


def batches(records: Iterable[Record]) -> Iterator[Batch]:
    """All rows, in batches of bounded size. Rows before a damaged one come before its error."""
    rows: list[list[str]] = []
    lines: list[int] = []
    characters = 0
    damaged: DataError | None = None
    try:
        for line, cells in records:
            rows.append(cells)
            lines.append(line)
            characters += sum(map(len, cells))
            if len(rows) >= _MAX_ROWS or len(rows) * len(cells) >= MAX_CELLS or characters >= _MAX_CHARACTERS:
                yield Batch([*zip(*rows, strict=True)], lines)
                rows, lines, characters = [], [], 0
    except DataError as error:
        damaged = error
    if rows:
        yield Batch([*zip(*rows, strict=True)], lines)
    if damaged:
        raise damaged
