"""The rows of a file, some at a time, as columns."""

from collections.abc import Iterator, Sequence, Set
from typing import NamedTuple, Protocol, TypeAlias

from thalweg.learning.data.errors import DataError
from thalweg.learning.data.sources.text_tables.cells import Decimal
from thalweg.learning.data.sources.text_tables.words import Words

# The most characters of a row, over all lines that it spans: enough for all columns.
MAX_ROW = 1 << 22
# Cells of a batch, and characters of them.
MAX_CELLS = 1 << 19
_MAX_ROWS = 1 << 16
_MAX_CHARACTERS = 1 << 25


# The line that a row begins on, and its cells.
Row: TypeAlias = tuple[int, list[str]]


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

    def __iter__(self) -> Iterator[Row]:
        """The rows that are not empty. Raises DataError if one is not right, and OSError."""


class Batch(NamedTuple):
    """Rows that follow one another: the cells of each column, and the line of each row."""

    columns: Sequence[Sequence[str]]
    lines: Sequence[int]


def batches(given: Rows) -> Iterator[Batch]:
    """All rows, in batches of bounded size. Rows before a damaged one come before its error."""
    rows: list[list[str]] = []
    lines: list[int] = []
    characters = 0
    damaged: DataError | None = None
    try:
        for line, cells in given:
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
