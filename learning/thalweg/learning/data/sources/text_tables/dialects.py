"""The dialect of a CSV file, found in its beginning: what separates cells, how decimals are written, where the table begins."""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from thalweg.learning.data.errors import DataError
from thalweg.learning.data.sources.text_tables.cells import MISSING_BESIDE_NUMBERS, Decimal, orders_of, truth_of
from thalweg.learning.data.sources.text_tables.words import DELIMITERS, Told, Words, shown

# Characters of a file in which its dialect is sought.
SAMPLE = 1 << 16
# Lines before a table that are recognized as such.
_MAX_BEFORE = 100
_WITH_COMMA = re.compile(r"\s*[+-]?\d*,\d+(?:[eE][+-]?\d+)?\s*")
_WITH_POINT = re.compile(r"\s*[+-]?\d*\.\d+(?:[eE][+-]?\d+)?\s*")
# What may be a number with a decimal comma, or a whole one with a separator of thousands.
_UNCLEAR = re.compile(r"\s*[+-]?[1-9]\d{0,2},\d{3}\s*")


class Dialect(NamedTuple):
    """How a file is written. `skipped` is the number of its lines before the table, all comments or empty.

    With `trailing`, each row ends with a delimiter, after which there is no cell.
    """

    delimiter: str = ","
    decimal: str = "."
    skipped: int = 0
    trailing: bool = False


class _Reading(NamedTuple):
    """The rows of a sample, with the lines on which they begin, if cells are separated by a delimiter."""

    delimiter: str
    rows: list[list[str]]
    lines: list[int]

    @property
    def usual(self) -> int:
        """The number of cells that most rows have."""
        return Counter(map(len, self.rows)).most_common(1)[0][0] if self.rows else 0

    @property
    def is_table(self) -> bool:
        """Whether there are several columns, and all rows have as many cells, or one empty one more than the names."""
        first, *others = self.rows or [[]]
        return self.usual >= 2 and all(
            len(row) == len(first) or (len(row) == len(first) + 1 and not row[-1].strip()) for row in others
        )

    @property
    def typed(self) -> float:
        """The part of the cells below the first row that are numbers, truth values, dates, or missing."""
        cells = [cell for row in self.rows[1:] for cell in row]
        return sum(map(self._is_typed, cells)) / len(cells) if cells else 0.0

    def _is_typed(self, cell: str) -> bool:
        marks = "." if self.delimiter == "," else ".,"
        return (
            any(Decimal(mark).number(cell) is not None for mark in marks)
            or cell.strip().lower() in MISSING_BESIDE_NUMBERS
            or truth_of(cell) is not None
            or bool(orders_of(cell))
        )


def find(sample: str, told: Told, words: Words, name: str, *, whole: bool) -> Dialect:
    """The dialect of a file that begins with a sample, which is all of it if it is `whole`, and of which some may be known.

    Raises DataError, which calls the file `name`, if lines before the table are no comments, or if the numbers are ambiguous.
    """
    lines = re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", sample)
    if not whole and len(lines) > 1:
        lines.pop()
    comments = 0
    skipped = 0
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith("#"):
            comments, skipped = comments + 1, number
        elif line.strip():
            break
    candidates = [told.delimiter] if told.delimiter else list(DELIMITERS.values())
    readings = [_read(lines[skipped:], delimiter, skipped, whole=whole) for delimiter in candidates]
    chosen = _chosen(readings)
    if comments and (line := _names_after_hash(lines[:skipped], chosen, told)):
        skipped = line - 1
        chosen = _read(lines[skipped:], chosen.delimiter, skipped, whole=whole)
    _check_beginning(chosen, told, words.field, name)
    decimal = told.decimal or _decimal(chosen, words, name)
    return Dialect(chosen.delimiter, decimal, skipped, _is_trailing(chosen))


def _read(lines: Sequence[str], delimiter: str, before: int, *, whole: bool) -> _Reading:
    reader = csv.reader(lines, delimiter=delimiter)
    rows, starts = [], []
    start = 1
    try:
        for row in reader:
            if row:
                rows.append(row)
                starts.append(before + start)
            start = reader.line_num + 1
    except csv.Error:
        # A damaged row is an error where the table is read.
        pass
    if not whole and len(rows) > 1:
        # The last row may be cut within quotes.
        rows.pop()
    return _Reading(delimiter, rows, starts)


def _chosen(readings: Sequence[_Reading]) -> _Reading:
    """The reading as a table in which most cells are of a type; if there is none, one in which most rows have as many cells."""
    if tables := [reading for reading in readings if reading.is_table]:
        return max(tables, key=lambda reading: reading.typed)
    for reading in readings:
        usual = sum(len(row) == reading.usual for row in reading.rows)
        if reading.usual >= 2 and 2 * usual > len(reading.rows):
            return reading
    return readings[0]


def _names_after_hash(comments: Sequence[str], chosen: _Reading, told: Told) -> int:
    """The line of comments that holds the names of columns, as NumPy writes it; 0 if there is none.

    It is the last one, if it has as many cells as there are columns, more than one, and numbers follow.
    """
    if told.header is False or not chosen.rows:
        return 0
    line = max(number for number, line in enumerate(comments, 1) if line.strip())
    first = chosen.rows[0]
    (names,) = csv.reader([comments[line - 1]], delimiter=chosen.delimiter)
    numbers = any(Decimal(mark).number(cell) is not None for cell in first for mark in ".,")
    return line if len(names) == len(first) > 1 and numbers else 0


def _check_beginning(reading: _Reading, told: Told, field: str, name: str) -> None:
    """Refuses lines before the table: they have other numbers of cells than all others, of which the first has no numbers."""
    counts = [len(row) for row in reading.rows]
    before = next((index for index, number in enumerate(counts) if number == reading.usual), 0)
    if not before or before > _MAX_BEFORE or reading.usual < 2 or max(counts[:before]) > reading.usual:
        return
    if counts[0] == reading.usual - 1 > 1:
        # Names that lack one, for the names of rows: an error of the first of those.
        return
    rest = reading.rows[before:]
    is_header = told.header is False or not any(Decimal(mark).number(cell) is not None for cell in rest[0] for mark in ".,")
    if len(rest) >= 2 and is_header and all(len(row) == reading.usual for row in rest[1:]):
        first = reading.rows[0]
        lines = f"line {reading.lines[0]}" if before == 1 else f"lines {reading.lines[0]} to {reading.lines[before] - 1}"
        verb = "comes" if before == 1 else "come"
        example = shown(reading.delimiter.join(first))
        raise DataError(
            f"{field}: {lines} of {name!r}, such as {example}, {verb} before the table, which begins on line "
            f"{reading.lines[before]}; remove them, or begin them with #"
        )


def _decimal(reading: _Reading, words: Words, name: str) -> str:
    """How numbers are written. Where cells are separated by commas, always with points."""
    if reading.delimiter == ",":
        return "."
    commas: list[tuple[int, str]] = []
    points: list[tuple[int, str]] = []
    for line, row in zip(reading.lines, reading.rows, strict=False):
        commas += [(line, cell) for cell in row if _WITH_COMMA.fullmatch(cell)]
        points += [(line, cell) for cell in row if _WITH_POINT.fullmatch(cell)]
    if not commas:
        return "."
    setting, field = words.setting('data.decimal = "comma" or "point"'), words.field
    if points:
        (line, cell), (other_line, other) = commas[0], points[0]
        raise DataError(
            f"{field}: {name!r} has {shown(cell)} on line {line} and {shown(other)} on line {other_line}, so it is not clear how "
            f"decimal numbers are written; write all in one way{setting}"
        )
    if all(_UNCLEAR.fullmatch(cell) for _, cell in commas):
        line, cell = commas[0]
        digits = cell.strip()
        raise DataError(
            f"{field}: line {line} of {name!r}: {shown(cell)} may be {digits.replace(',', '.')} or {digits.replace(',', '')}; "
            f"remove separators of thousands{setting}"
        )
    return ","


def _is_trailing(reading: _Reading) -> bool:
    first, *others = reading.rows or [[]]
    return (
        len(others) > 0
        and len(others[0]) > 1
        and (len(others[0]) == len(first) + 1 or not first[-1].strip())
        and all(len(row) in (len(first), len(first) + 1) and not row[-1].strip() for row in others)
    )
