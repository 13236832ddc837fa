"""The rows of a file, some at a time, as columns."""

from collections.abc import Iterator, Sequence, Set
from typing import NamedTuple, Protocol, TypeAlias

from thalweg.learning.data.errors import DataError
from thalweg.learning.data.sources.text_tables.cells import Decimal
from thalweg.learning.data.sources.text_tables.words import Words

# The most characters of a row, over all lines that it spans: enough for all columns.
MAX_ROW = 1 << 22
# The characters of rows that are read at once, and the most cells of them that are converted at once.
RUN = 1 << 20
MAX_CELLS = 1 << 19


# The line that a row begins on, and its cells.
Row: TypeAlias = tuple[int, list[str]]


class Run(NamedTuple):
    """Rows that follow one another, at least one, each with the line that it begins on."""

    lines: Sequence[int]
    rows: list[list[str]]


class Rows(Protocol):
    """The rows of a file, which can be read several times."""

    @property
    def field(self) -> str:
        """The field of the job, or the argument, that messages begin with."""

    @property
    def words(self) -> Words:
        """The words of messages."""

    @property
    def decimal(self) -> Decimal:
        """How numbers are written."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns, empty if they have none."""

    @property
    def texts(self) -> Set[str]:
        """The columns that are text, or dates and times, whatever their cells look like."""

    def column(self, position: int) -> str:
        """What messages call a column."""

    def where(self, line: int) -> str:
        """What messages call a line."""

    def runs(self) -> Iterator[Run]:
        """The rows that are not empty, those of about RUN characters at a time, each with a cell for each column.

        Raises DataError after the rows before one that is not right, and OSError.
        """


class Batch(NamedTuple):
    """Rows that follow one another: the cells of each column, and the line of each row."""

    columns: Sequence[Sequence[str]]
    lines: Sequence[int]


def runs_of(rows: Iterator[Row], characters: int = RUN) -> Iterator[Run]:
    """Rows in runs. Those before a damaged one come before its error."""
    lines: list[int] = []
    cells: list[list[str]] = []
    size = 0
    damaged: DataError | None = None
    try:
        for line, row in rows:
            lines.append(line)
            cells.append(row)
            size += sum(map(len, row))
            if size >= characters:
                yield Run(lines, cells)
                lines, cells, size = [], [], 0
    except DataError as error:
        damaged = error
    if cells:
        yield Run(lines, cells)
    if damaged:
        raise damaged


def batches(given: Rows) -> Iterator[Batch]:
    """All rows, in batches of bounded size."""
    for lines, rows in given.runs():
        step = max(1, MAX_CELLS // len(rows[0]))
        for start in range(0, len(rows), step):
            yield Batch([*zip(*rows[start : start + step], strict=True)], lines[start : start + step])
