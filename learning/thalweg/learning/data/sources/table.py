"""Tables: CSV files of numbers. One strict reader, for training and for predicting."""

import csv
import math
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.encoding import UTF8, why_not_utf8
from thalweg.contract.resources import memory
from thalweg.learning.data.errors import DataError
from thalweg.learning.data.memory import check_memory
from thalweg.learning.data.preparation import MAX_FEATURES

# The most characters of a row, over all lines that it spans: enough for all columns.
_MAX_ROW = 1 << 22
# The most bytes of all names together: a message of 4 MiB holds them with the mean and the deviation of each column.
_MAX_NAMES = 1 << 20
# With these characters alone, float() accepts decimal numbers only: no nan, no inf, no underscores, no digits of other scripts.
_DECIMAL = b"0123456789+-.eE \t"
# Ways to write that a value is missing.
_HOLES = frozenset({"", "?", "-", ".", "na", "n/a", "nan", "null", "none", "missing"})
_INFINITE = frozenset({"inf", "infinity"})
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_MAX_SHOWN = 40
# Rows of text after which it is looked whether they fit in memory.
_CHECKED_EVERY = 10_000
# Other formats that are often called .csv, by their first bytes.
_FOREIGN = {
    b"\x1f\x8b": "is compressed; compressed tables are not supported; decompress it first, with gunzip",
    b"\xfd7zXZ\x00": "is compressed; compressed tables are not supported; decompress it first, with unxz",
    b"\x28\xb5\x2f\xfd": "is compressed; compressed tables are not supported; decompress it first, with unzstd",
    b"BZh91AY&SY": "is compressed; compressed tables are not supported; decompress it first, with bunzip2",
    b"PK\x03\x04": "is a zip archive or an Excel workbook; unpack it, or export the table as CSV",
    b"\xd0\xcf\x11\xe0": "is an Excel workbook; export the table as CSV",
    b"PAR1\x15": "is a Parquet file; export the table as CSV",
    b"\x93NUMPY": "is a NumPy array, not a table",
}


class Words(NamedTuple):
    """The words of messages: the field that they are about, and how a user says whether a file has a line of column names."""

    field: str
    named: str
    unnamed: str


TO_TRAIN = Words("data.csv", "data.header = true", "data.header = false")
TO_PREDICT = Words("INPUT", "--header", "--no-header")


class Table(NamedTuple):
    """A table: finite float64 values of shape (rows, columns), and the names of the columns, empty if they have none."""

    names: tuple[str, ...]
    values: NDArray[np.float64]


class Texts(NamedTuple):
    """The names of columns, empty if they have none, the cells of each row, and the line that it begins on."""

    names: tuple[str, ...]
    rows: list[list[str]]
    lines: Sequence[int]


def read(path: Path, words: Words, name: str, header: bool | None = None) -> Table:
    """The table in a CSV file in UTF-8: one line of column names, then rows of decimal numbers. Empty lines are skipped.

    `header` says whether there is a line of names; None, that there must be one, and that a first line which looks like data is
    a mistake. Raises DataError, which speaks in `words` and calls the file `name`, if the file is anything else.
    """
    with _opened(path, words, name) as text:
        return _Reading(words, name).table(_Rows(text, words.field), header)


def read_texts(path: Path, words: Words, name: str, header: bool | None = None) -> Texts:
    """The names of the columns of a CSV file, as of `read`, and its rows, whose cells may be any text."""
    with _opened(path, words, name) as text:
        return _Reading(words, name).texts(_Rows(text, words.field), header)


@contextmanager
def _opened(path: Path, words: Words, name: str) -> Iterator[TextIO]:
    field = words.field
    with path.open("rb") as file:
        start = file.read(16)
    for magic, problem in _FOREIGN.items():
        if start.startswith(magic):
            raise DataError(f"{field}: {name!r} {problem}")
    try:
        with path.open(newline="", encoding=UTF8) as text:
            yield text
    except UnicodeDecodeError:
        raise DataError(f"{field}: {name!r} {why_not_utf8(path)}") from None


class _Rows:
    """The rows of a file that are not empty, each with the number of the line that it begins on."""

    def __init__(self, file: TextIO, field: str) -> None:
        self._file = file
        self._field = field
        self._room = 0
        self._line = 0

    def _lines(self) -> Iterator[str]:
        while line := self._file.readline(self._room + 1):
            self._room -= len(line)
            if self._room < 0:
                problem = (
                    f"is longer than {_MAX_ROW:,} characters; a row has at most {MAX_FEATURES:,} columns; is a quote left open?"
                )
                raise DataError(f"{self._field}: line {self._line} {problem}")
            yield line

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        rows = csv.reader(self._lines(), strict=True)
        while True:
            self._room, self._line = _MAX_ROW, rows.line_num + 1
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(f"{self._field}: line {self._line} is not proper CSV: {_reason(error)}") from error
            if cells:
                yield self._line, cells


def _reason(error: csv.Error) -> str:
    match str(error):
        case "unexpected end of data":
            return "it opens a quote that is not closed"
        case "',' expected after '\"'":
            return "text follows a closing quote; write a quote within quotes twice"
        case other:
            return other


class _Reading:
    """The reading of one file."""

    def __init__(self, words: Words, name: str) -> None:
        self._field = words.field
        self._words = words
        self._name = name
        self._names: tuple[str, ...] = ()
        # Other separators in the first line, in place of commas.
        self._separators = ""

    def table(self, rows: _Rows, header: bool | None) -> Table:
        numbered = iter(rows)
        line, first = self._first(numbered)
        # Not a list, where a float takes four times the memory.
        values, limit = array("d"), memory().available // 8
        if header is False:
            values.extend(self._numbers(line, first))
        else:
            self._names = self._names_in(line, first, header)
        for line, cells in numbered:
            self._check_width(line, cells, len(first))
            values.extend(self._numbers(line, cells))
            if len(values) > limit:
                check_memory(f"{self._field}: {self._name!r}", 8 * len(values))
        return Table(self._names, np.frombuffer(values, np.float64).reshape(-1, len(first)))

    def texts(self, rows: _Rows, header: bool | None) -> Texts:
        numbered = iter(rows)
        line, first = self._first(numbered)
        found: list[list[str]] = []
        lines = array("q")
        if header is False:
            found.append(first)
            lines.append(line)
        else:
            self._names = self._names_in(line, first, header)
        size = 0
        for line, cells in numbered:
            self._check_width(line, cells, len(first))
            found.append(cells)
            lines.append(line)
            size += sum(map(sys.getsizeof, cells))
            if not len(found) % _CHECKED_EVERY:
                check_memory(f"{self._field}: {self._name!r}", size)
        return Texts(self._names, found, lines)

    def _first(self, rows: Iterator[tuple[int, list[str]]]) -> tuple[int, list[str]]:
        line, first = next(rows, (0, []))
        if not first:
            raise self._wrong(f"{self._name!r} is empty")
        self._check_columns(first)
        return line, first

    def _check_width(self, line: int, cells: list[str], columns: int) -> None:
        if len(cells) != columns:
            raise self._bad_row(f"line {line} has {_count(len(cells), 'cell')} but there are {_count(columns, 'column')}")

    def _wrong(self, problem: str) -> DataError:
        return DataError(f"{self._field}: {problem}")

    def _bad_row(self, problem: str) -> DataError:
        """The error of a row. In a table of one column whose name holds another separator, the separator is what is wrong."""
        if self._separators:
            problem = f"{self._name!r} has {self._separators} between its columns; write commas, and points in decimal numbers"
        return self._wrong(problem)

    def _check_columns(self, first: list[str]) -> None:
        if len(first) == 1:
            self._separators = next((words for separator, words in _SEPARATORS.items() if separator in first[0]), "")
        if len(first) > MAX_FEATURES:
            remedy = "save them as a NumPy archive, with numpy.savez"
            raise self._wrong(f"{self._name!r} has {len(first):,} columns; at most {MAX_FEATURES:,} are read; {remedy}")

    def _names_in(self, line: int, cells: list[str], header: bool | None) -> tuple[str, ...]:
        names = tuple(cell.strip() for cell in cells)
        if header is None:
            self._check_that_names(line, names)
        known = set()
        for position, name in enumerate(names, 1):
            if not name:
                hint = "; pandas writes no index with to_csv(..., index=False)" if position == 1 else ""
                raise self._wrong(f"line {line}, column {position} has no name{hint}")
            if "\0" in name:
                raise self._wrong(
                    f"line {line}, column {position} has a NUL in its name; if the file is UTF-16, save it as UTF-8"
                )
            if name in known:
                raise self._wrong(f"line {line}, two columns are called {_shown(name)}")
            known.add(name)
        if sum(len(name.encode()) for name in names) > _MAX_NAMES:
            raise self._wrong(f"the names of all columns together are longer than {_MAX_NAMES:,} bytes; shorten them")
        return names

    def _check_that_names(self, line: int, names: tuple[str, ...]) -> None:
        """Refuses a first line that may be the first row of a table without names, and so would be lost."""
        numbers = [name for name in names if _is_number(name)]
        words = [name for name in names if not _is_number(name)]
        if not numbers:
            return
        if not words:
            raise self._wrong(
                f"{self._name!r} begins with numbers, but must begin with a line of column names; add one, or give "
                f"{self._words.unnamed} if there is none, {self._words.named} if these are the names"
            )
        # Columns may be called by years or by their positions, beside others that have names.
        counted = all(number.isdecimal() for number in numbers) and [*map(int, numbers)] == sorted({*map(int, numbers)})
        if not counted or all(word.lower() in _HOLES for word in words):
            word = next((word for word in words if word.lower() in _HOLES), words[0])
            raise self._wrong(
                f"line {line} of {self._name!r} holds numbers, such as {_shown(numbers[0])}, beside {_shown(word)}, so it may be "
                f"a row with a missing value; if so, fill it in, and add a line of column names or give {self._words.unnamed}; "
                f"if these are the names, give {self._words.named}"
            )

    def _numbers(self, line: int, cells: list[str]) -> list[float]:
        text = "".join(cells)
        if text.isascii() and not text.encode().translate(None, _DECIMAL):
            try:
                numbers = list(map(float, cells))
            except ValueError:
                pass
            else:
                # Most rows are right, and a sum is faster than a check of each number.
                if math.isfinite(sum(numbers)) or all(map(math.isfinite, numbers)):
                    return numbers
        position = next(index for index, cell in enumerate(cells) if not _is_number(cell))
        column = _shown(self._names[position]) if self._names else position + 1
        raise self._bad_row(f"line {line}, column {column}: {_shown(cells[position])} {_why_no_number(cells[position])}")


def _is_number(cell: str) -> bool:
    """Whether a cell is a decimal number that fits in float64."""
    if not cell.isascii() or cell.encode().translate(None, _DECIMAL):
        return False
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _why_no_number(cell: str) -> str:
    word = cell.strip().lower()
    if "\0" in cell:
        return "is not a number: it holds a NUL; if the file is UTF-16, save it as UTF-8"
    if word in _HOLES or word.lstrip("+-") in _INFINITE:
        return "is not a number; fill in a value, or remove the line"
    if word.isascii() and not word.encode().translate(None, _DECIMAL):
        try:
            float(word)
        except ValueError:
            return "is not a number"
        return "is too large for float64"
    if any(character.isdecimal() for character in word):
        return "is not a number; write numbers as in -1234.5 or 1.5e-3"
    return "is not a number; replace classes by whole numbers from 0, or remove the column"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "...")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
