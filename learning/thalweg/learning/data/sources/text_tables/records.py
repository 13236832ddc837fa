"""The rows of a CSV file, with their lines, and the names of its columns."""

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TextIO

from thalweg.learning.data.errors import DataError
from thalweg.learning.data.preparation import MAX_FEATURES
from thalweg.learning.data.sources.text_tables.batches import MAX_ROW, RUN, Row, Run, runs_of
from thalweg.learning.data.sources.text_tables.cells import MISSING_BESIDE_NUMBERS, Decimal
from thalweg.learning.data.sources.text_tables.dialects import SAMPLE, Dialect, find
from thalweg.learning.data.sources.text_tables.encodings import TextFile
from thalweg.learning.data.sources.text_tables.words import Told, Words, count, shown

# The most bytes of all names together: a message of 4 MiB holds them with the mean and the deviation of each column.
_MAX_NAMES = 1 << 20


class Records:
    """A CSV file: its dialect, the names of its columns, which are empty if it has none, and its rows, which can be read twice.

    Raises DataError, which speaks in `words`, if the beginning of the file is not right, and OSError.
    """

    def __init__(self, file: TextFile, words: Words, told: Told) -> None:
        self._file = file
        self.field = words.field
        self.words = words
        with file.opened() as text:
            sample = text.read(SAMPLE)
            whole = not text.read(1)
        self.dialect: Dialect = find(sample, told, words, file.name, whole=whole)
        self.decimal = Decimal(self.dialect.decimal)
        with file.opened() as text:
            first = next(_Tokens(text, self.field, self.dialect).rows([]), None)
        if first is None:
            raise self._wrong(f"{file.name!r} is empty")
        self.names: tuple[str, ...] = ()
        self.texts: frozenset[str] = frozenset()
        # Without the cell that a delimiter at the end of a row seems to begin.
        line, cells = first
        if self.dialect.trailing and len(cells) > 1 and not cells[-1].strip():
            cells = cells[:-1]
        self.width = len(cells)
        if self.width > MAX_FEATURES:
            remedy = "save them as a NumPy archive, with numpy.savez"
            raise self._wrong(f"{file.name!r} has {self.width:,} columns; at most {MAX_FEATURES:,} are read; {remedy}")
        if told.header is not False:
            self.names = _Names(words, file.name, self.decimal).of(line, cells, told.header)

    def column(self, position: int) -> str:
        """What messages call a column."""
        return shown(self.names[position]) if self.names else str(position + 1)

    def where(self, line: int) -> str:
        """What messages call a line."""
        return f"line {line}"

    def runs(self) -> Iterator[Run]:
        """The rows after the names. Raises DataError if one has another number of cells."""
        with self._file.opened() as text:
            tokens = _Tokens(text, self.field, self.dialect)
            if self.names:
                next(tokens.rows([]))
            while lines := tokens.ahead():
                if run := tokens.plain(lines, self.width):
                    yield run
                else:
                    yield from runs_of(self._checked(tokens.rows(lines)))

    def _checked(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            yield row if len(row[1]) == self.width else self._repaired(*row)

    def _repaired(self, line: int, cells: list[str]) -> Row:
        width, found = self.width, len(cells)
        if self.dialect.trailing and found == width + 1 and not cells[-1].strip():
            return line, cells[:-1]
        columns = f"there {'is' if width == 1 else 'are'} {count(width, 'column')}"
        problem = f"line {line} has {count(found, 'cell')} but {columns}"
        if self.names and found == width + 1:
            problem += "; if the first cell is the name of a row, as R writes it, write the table with row.names = FALSE"
        elif cells[0].lstrip().startswith("#"):
            problem += "; comments may stand before the table only"
        raise self._wrong(problem)

    def _wrong(self, problem: str) -> DataError:
        return DataError(f"{self.field}: {problem}")


class _Tokens:
    """The rows of an open file: many at once, where each is on a line of its own, or one by one."""

    def __init__(self, text: TextIO, field: str, dialect: Dialect) -> None:
        self._text = text
        self._field = field
        self._delimiter = dialect.delimiter
        # The next line that is not part of a row yet, and what a row may still have.
        self._line = dialect.skipped + 1
        self._room = MAX_ROW
        for _ in range(dialect.skipped):
            text.readline()

    def ahead(self) -> list[str]:
        """The next lines; none at the end."""
        start = self._text.read(RUN)
        return io.StringIO(start + self._text.readline(MAX_ROW + 1), newline="").readlines() if start else []

    def plain(self, lines: list[str], width: int) -> Run | None:
        """The rows on lines, if each is on one of its own and has a number of cells, or is empty; otherwise none is read."""
        if len(lines[-1]) > MAX_ROW:
            return None
        try:
            rows = list(csv.reader(lines, delimiter=self._delimiter, strict=True))
        except csv.Error:
            return None
        if len(rows) != len(lines) or not {*map(len, rows)} <= {0, width} or not any(rows):
            return None
        numbers: Sequence[int] = range(self._line, self._line + len(lines))
        self._line += len(lines)
        if not all(rows):
            numbers = [number for number, row in zip(numbers, rows, strict=True) if row]
            rows = [row for row in rows if row]
        return Run(numbers, rows)

    def rows(self, lines: list[str]) -> Iterator[Row]:
        """The rows on some lines, and on further ones if the last row spans those; without lines, all. Raises DataError."""
        reader = csv.reader(self._limited(lines), delimiter=self._delimiter, strict=True)
        while not lines or reader.line_num < len(lines):
            start, read = self._line, reader.line_num
            self._room = MAX_ROW
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(f"{self._field}: line {start} is not proper CSV: {_reason(error)}") from error
            self._line += reader.line_num - read
            if cells:
                yield start, cells

    def _limited(self, lines: list[str]) -> Iterator[str]:
        for line in chain(lines, iter(lambda: self._text.readline(self._room + 1), "")):
            self._room -= len(line)
            if self._room < 0:
                problem = (
                    f"is longer than {MAX_ROW:,} characters; a row has at most {MAX_FEATURES:,} columns; is a quote left open?"
                )
                raise DataError(f"{self._field}: line {self._line} {problem}")
            yield line


def _reason(error: csv.Error) -> str:
    text = str(error)
    if text == "unexpected end of data":
        return "it opens a quote that is not closed"
    if text.endswith("expected after '\"'"):
        return "text follows a closing quote; write a quote within quotes twice"
    return text


class _Names:
    """The check of a line of column names."""

    def __init__(self, words: Words, name: str, decimal: Decimal) -> None:
        self._words = words
        self._name = name
        self._decimal = decimal

    def of(self, line: int, cells: list[str], header: bool | None) -> tuple[str, ...]:
        """The names on the first line of a table. If `header` is None, they must not look like data."""
        names = tuple(cell.strip() for cell in cells)
        if header is None:
            self._check_that_names(line, names)
        known = set()
        for position, name in enumerate(names, 1):
            if not name:
                hint = ""
                if position == 1:
                    hint = "; pandas writes no index with to_csv(..., index=False), and R no names of rows with row.names = FALSE"
                raise self._wrong(f"line {line}, column {position} has no name{hint}")
            if "\0" in name:
                raise self._wrong(
                    f"line {line}, column {position} has a NUL in its name; if the file is UTF-16, save it as UTF-8"
                )
            if name in known:
                raise self._wrong(f"line {line}, two columns are called {shown(name)}")
            known.add(name)
        if sum(len(name.encode()) for name in names) > _MAX_NAMES:
            raise self._wrong(f"the names of all columns together are longer than {_MAX_NAMES:,} bytes; shorten them")
        return names

    def _check_that_names(self, line: int, names: tuple[str, ...]) -> None:
        """Refuses a first line that may be the first row of a table without names, and so would be lost."""
        numbers = [name for name in names if self._is_number(name)]
        words = [name for name in names if not self._is_number(name)]
        if not numbers:
            return
        if not words:
            raise self._wrong(
                f"{self._name!r} begins with numbers, but must begin with a line of column names; add one, or give "
                f"{self._words.unnamed} if there is none, {self._words.named} if these are the names"
            )
        # Columns may be called by years or by their positions, beside others that have names.
        counted = all(number.isdecimal() for number in numbers) and [*map(int, numbers)] == sorted({*map(int, numbers)})
        if not counted or all(word.lower() in MISSING_BESIDE_NUMBERS for word in words):
            word = next((word for word in words if word.lower() in MISSING_BESIDE_NUMBERS), words[0])
            raise self._wrong(
                f"line {line} of {self._name!r} holds numbers, such as {shown(numbers[0])}, beside {shown(word)}, so it may be "
                f"a row with a missing value; if so, fill it in, and add a line of column names or give {self._words.unnamed}; "
                f"if these are the names, give {self._words.named}"
            )

    def _is_number(self, name: str) -> bool:
        return self._decimal.number(name) is not None

    def _wrong(self, problem: str) -> DataError:
        return DataError(f"{self._words.field}: {problem}")
