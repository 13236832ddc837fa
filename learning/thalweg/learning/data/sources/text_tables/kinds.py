"""What the columns of a CSV file hold, found by a pass over all of it.

A column is of a type if at least half of its cells that are not missing are numbers, or else truth values, or else dates in one
order; what looks like a number in another notation counts as one. Other cells in such a column are errors. All else is text.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from thalweg.learning.data.errors import DataError
from thalweg.learning.data.sources.text_tables.batches import Rows, batches
from thalweg.learning.data.sources.text_tables.cells import (
    MISSING_BESIDE_NUMBERS,
    WHOLE,
    Decimal,
    Order,
    is_like_a_number,
    missing_in,
    numbers_of,
    orders_of,
    truth_of,
)
from thalweg.learning.data.sources.text_tables.words import Told
from thalweg.learning.data.tables import ColumnType

# Digits of a whole number that fits in 64 bits, with its sign.
_MAX_DIGITS = 18


class Kind(NamedTuple):
    """What a column holds: its type; whether all numbers are whole and fit in int64; the order of its dates.

    `told` is whether the job gives the type.
    """

    type: ColumnType
    whole: bool = False
    order: Order = Order.YEAR
    told: bool = False


def kinds_of(rows: Rows, names: Sequence[str], told: Told) -> list[Kind]:
    """The kind of each column, which messages call by `names`. Raises DataError if rows are not right, and OSError."""
    types = [told.types.get(name, told.others) for name in names]
    known = [kind for kind in types if kind and kind is not ColumnType.TIME]
    if len(known) == len(types):
        return [Kind(kind, told=True) for kind in known]
    tallies = [_Tally(rows.decimal, told) for _ in names]
    for batch in batches(rows):
        for tally, column in zip(tallies, batch.columns, strict=True):
            tally.add(column)
    return [
        tally.kind(f"{rows.field}: column {name!r}", given, text=name in rows.texts)
        for name, tally, given in zip(names, tallies, types, strict=True)
    ]


class _Tally:
    """Counts of what the cells of a column are."""

    def __init__(self, decimal: Decimal, told: Told) -> None:
        self._decimal = decimal
        self._is_missing = missing_in(told.missing, MISSING_BESIDE_NUMBERS)
        self._present = 0
        self._numbers = 0
        self._whole = True
        self._truths = 0
        self._dates: Counter[Order] = Counter()

    def add(self, column: Sequence[str]) -> None:
        """Counts cells."""
        if numbers_of(column, self._decimal) is not None:
            self._present += len(column)
            self._numbers += len(column)
            self._whole = self._whole and _are_whole(column)
            return
        for cell, times in Counter(column).items():
            if self._is_missing(cell):
                continue
            self._present += times
            if self._decimal.number(cell) is not None:
                self._numbers += times
                self._whole = self._whole and _are_whole([cell])
            elif is_like_a_number(cell):
                self._numbers += times
            elif truth_of(cell) is not None:
                self._truths += times
            else:
                for order in orders_of(cell):
                    self._dates[order] += times

    def kind(self, subject: str, given: ColumnType | None, *, text: bool) -> Kind:
        """What the column holds, or what the job says that it does; of `text`, dates or text. Raises DataError if it cannot."""
        kind = given or self._type()
        if text and not given and kind is not ColumnType.TIME:
            kind = ColumnType.TEXT
        if kind is not ColumnType.TIME:
            whole = kind is ColumnType.NUMBER and self._whole and self._numbers > 0
            return Kind(kind, whole, told=given is not None)
        if self._is_ambiguous():
            raise DataError(f"{subject} holds dates that may be day, month, year or month, day, year; write them as 2026-12-31")
        return Kind(kind, order=max(Order, key=lambda order: self._dates[order]))

    def _type(self) -> ColumnType:
        if not self._present or 2 * self._numbers >= self._present:
            return ColumnType.NUMBER
        if 2 * self._truths >= self._present:
            return ColumnType.BOOLEAN
        if 2 * max(self._dates.values(), default=0) >= self._present and not self._is_ambiguous():
            return ColumnType.TIME
        return ColumnType.TEXT

    def _is_ambiguous(self) -> bool:
        day, month = self._dates[Order.DAY], self._dates[Order.MONTH]
        return day == month > self._dates[Order.YEAR]


def _are_whole(column: Iterable[str]) -> bool:
    text = "".join(column)
    # There is a negative zero among real numbers only.
    return not text.encode().translate(None, WHOLE) and "-0" not in text and max(map(len, column), default=0) <= _MAX_DIGITS
