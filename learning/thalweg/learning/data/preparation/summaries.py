"""Summaries of a table's columns over some of its rows: one pass, in blocks of a fixed number of rows.

They depend on the rows and their order alone, neither on who reads them nor on how the table lies in files.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.data.errors import DataError
from thalweg.learning.data.preparation.cells import ROWS_AT_ONCE, categories, numbers, read, time_of
from thalweg.learning.data.preparation.plans import MEDIAN, MOST_FREQUENT, Planned
from thalweg.learning.data.rows import Positions
from thalweg.learning.data.tables import Cells, ColumnType, Table

# Categories of a column that are counted.
MAX_CATEGORIES = 10_000
# Categories that are looked at to see whether they are dates.
_MAX_LOOKED_AT = 20
# The bits of a number that a pass over a column decides, of those of its median.
_BITS = 16


class Summary:
    """What is known of the cells of one column: how many are missing, and where the first of them is.

    Of numbers, `mean`, `deviation`, `low` and `high`, over those that are present; of categories, and where the most frequent
    value is asked for, `counts` by text, of at most MAX_CATEGORIES: `overflow` says whether there are more.
    """

    def __init__(self, column: Planned) -> None:
        self.column = column
        self.present = 0
        self.missing = 0
        self.first_missing = -1
        self.mean = self._squares = 0.0
        self.low, self.high = np.inf, -np.inf
        self.counts: dict[str, int] = {}
        self.overflow = False
        self._some: list[str] = []
        self.median = 0.0
        text = column.type is ColumnType.TEXT
        self._numeric = not text and not column.categorical
        self._counted = text or column.categorical or column.missing == MOST_FREQUENT
        # A hash needs no list of categories.
        if column.prepare == "hash" and column.missing != MOST_FREQUENT:
            self._counted = False

    @property
    def deviation(self) -> float:
        """The standard deviation, 1 where it would be 0."""
        if self.low == self.high or not self.present:
            return 1.0
        return float(np.sqrt(self._squares / self.present)) or 1.0

    @property
    def most_frequent(self) -> str:
        """The most frequent category, of several equally frequent ones the first. Raises DataError if it is not known."""
        if self.overflow:
            raise DataError(
                f"{self.column.field}: the column {self.column.name!r} has more than {MAX_CATEGORIES:,} distinct values; "
                "give the value that replaces missing ones"
            )
        return min(self.counts, key=lambda text: (-self.counts[text], text))

    def add(self, rows: NDArray[np.intp], cells: Cells) -> None:
        """Counts the cells of a block of rows."""
        missing = cells.missing
        if missing is not None and missing.any():
            if not self.missing:
                self.first_missing = int(rows[np.argmax(missing)])
            self.missing += int(np.count_nonzero(missing))
        if self._numeric:
            values = numbers(cells)
            self._add_numbers(values if missing is None else values[~missing])
        else:
            self.present += len(rows) - (0 if missing is None else int(np.count_nonzero(missing)))
        if self._counted and not self.overflow:
            self._count(cells)

    def _add_numbers(self, values: NDArray[np.float64]) -> None:
        """Combines means and sums of squares as Chan, Golub and LeVeque (1979) do."""
        if not len(values):
            return
        with np.errstate(over="ignore", invalid="ignore"):
            mean = np.mean(values)
            squares = np.sum((values - mean) ** 2)
            total = self.present + len(values)
            distance = mean - self.mean
            self.mean = float(self.mean + distance * (len(values) / total))
            self._squares = float(self._squares + squares + distance**2 * (self.present * len(values) / total))
        self.present = total
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        if self.low == self.high:
            # The mean of equal numbers may be off by a rounding, and dividing by it would turn that into a whole deviation.
            self.mean = self.low

    def _count(self, cells: Cells) -> None:
        positions, missing, words = categories(cells)
        found = np.bincount(positions if missing is None else positions[~missing], minlength=len(words))
        for index in np.flatnonzero(found).tolist():
            self.counts[words[index]] = self.counts.get(words[index], 0) + int(found[index])
        if len(self.counts) > MAX_CATEGORIES:
            self.overflow = True
            self._some = [*islice(self.counts, _MAX_LOOKED_AT)]
            self.counts.clear()

    def are_dates(self) -> bool:
        """Whether categories, as far as they are looked at, are text that can be read as dates or times."""
        texts = self._some or [*islice(self.counts, _MAX_LOOKED_AT)]
        return self.column.type is ColumnType.TEXT and bool(texts) and all(map(_is_date, texts))


def _is_date(text: str) -> bool:
    try:
        time_of(text.strip())
    except ValueError:
        return False
    # Digits alone may be numbers of anything.
    return "-" in text


def summaries(table: Table, rows: Positions, columns: Sequence[Planned], *, medians: bool) -> dict[str, Summary]:
    """A summary of each column over some rows, in their order, with medians where the plan needs them and if they are asked for.

    Raises DataError if cells cannot be read as planned.
    """
    found = {column.name: Summary(column) for column in columns}
    for chosen in row_blocks(rows):
        for column, cells in zip(columns, read(table, chosen, columns), strict=True):
            found[column.name].add(chosen, cells)
    for summary in found.values() if medians else ():
        if summary.column.missing == MEDIAN and summary.present:
            summary.median = _median(table, rows, summary)
    return found


def row_blocks(rows: Positions) -> Iterator[NDArray[np.intp]]:
    """Rows in blocks of a fixed number."""
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield rows[slice(start, min(start + ROWS_AT_ONCE, len(rows)))]


def _median(table: Table, rows: Positions, summary: Summary) -> float:
    """The lower of the two values in the middle, or the one there: exactly, in four passes over the column.

    Each pass counts 16 further bits of the numbers that begin as the median does, in an order of bits that is that of numbers.
    """
    rank, prefix = (summary.present - 1) // 2, np.uint64(0)
    for shift in range(64 - _BITS, -1, -_BITS):
        counts = np.zeros(1 << _BITS, np.int64)
        for chosen in row_blocks(rows):
            (cells,) = read(table, chosen, [summary.column])
            values = numbers(cells)
            keys = _ordered(values if cells.missing is None else values[~cells.missing])
            if shift < 64 - _BITS:
                keys = keys[keys >> np.uint64(shift + _BITS) == prefix]
            parts = (keys >> np.uint64(shift)) & np.uint64((1 << _BITS) - 1)
            counts += np.bincount(parts.astype(np.intp), minlength=1 << _BITS)
        ends = np.cumsum(counts)
        chosen_part = int(np.searchsorted(ends, rank, "right"))
        rank -= int(ends[chosen_part] - counts[chosen_part])
        prefix = (prefix << np.uint64(_BITS)) | np.uint64(chosen_part)
    return _number_of(prefix)


_SIGN = np.uint64(1 << 63)


def _ordered(values: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Integers in the order of the numbers: the bits of one above 0 with the sign's set, those of one below 0 inverted."""
    # There is one zero only.
    bits = np.ascontiguousarray(values + 0.0).view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _number_of(key: np.uint64) -> float:
    bits = key & ~_SIGN if key & _SIGN else ~key
    return float(np.array([bits], np.uint64).view(np.float64)[0])
