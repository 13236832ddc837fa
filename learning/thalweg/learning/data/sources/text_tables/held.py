"""A table of a text file in memory."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.resources import memory
from thalweg.learning.data.memory import check_memory
from thalweg.learning.data.rows import Indices
from thalweg.learning.data.sources.text_tables.conversion import Block
from thalweg.learning.data.sources.text_tables.kinds import Kind
from thalweg.learning.data.sources.text_tables.lines import Lines
from thalweg.learning.data.tables import Cells, Column, ColumnType

_DTYPES = {
    ColumnType.TEXT: np.dtype(np.int32),
    ColumnType.BOOLEAN: np.dtype(bool),
    ColumnType.TIME: np.dtype("datetime64[us]"),
}


def column_of(name: str, kind: Kind) -> Column:
    """A column of a table."""
    number = np.dtype(np.int64 if kind.whole else np.float64)
    return Column(name, kind.type, _DTYPES.get(kind.type, number))


class HeldTable:
    """A table whose cells are in memory; `files` are the names of its files, if there are several.

    Raises MemoryLackError, whose message begins with `subject`, if there is no room.
    """

    def __init__(
        self, name: str, columns: Sequence[Column], made: Iterable[Block], subject: str, files: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.columns = tuple(columns)
        self._lines = Lines(files=files)
        words: list[dict[str, int]] = [{} for _ in columns]
        parts: list[list[Cells]] = [[] for _ in columns]
        limit, size = memory().available, 0
        for block in made:
            self._lines.add(block.lines)
            for (made_of, missing), known, part in zip(block.columns, words, parts, strict=True):
                values = made_of
                if isinstance(values, list):
                    before = len(known)
                    values = np.array([known.setdefault(word, len(known)) for word in values], np.int32)
                    size += sum(map(sys.getsizeof, islice(reversed(known), len(known) - before)))
                part.append(Cells(values, missing))
                size += values.nbytes
            # At the end there is a second copy of one column at a time.
            if size > limit:
                check_memory(subject, size)
        self._cells = {}
        for column, part, known in zip(columns, parts, words, strict=True):
            text = column.type is ColumnType.TEXT
            self._cells[column.name] = _joined(part, column, (tuple(known) or ("",)) if text else ())
            part.clear()
        self.missing = {
            name: 0 if cells.missing is None else int(np.count_nonzero(cells.missing)) for name, cells in self._cells.items()
        }
        self._rows = len(next(iter(self._cells.values())).values)

    @property
    def groups(self) -> Sequence[int]:
        """Empty: any row can be read by itself."""
        return ()

    def __len__(self) -> int:
        """The number of rows."""
        return self._rows

    def take(self, indices: Indices, names: Sequence[str]) -> Mapping[str, Cells]:
        """The cells of some rows in some columns."""
        return {name: self._cells[name].at(indices) for name in names}

    def where(self, row: int) -> str:
        """Where a row is in the file, for messages."""
        return self._lines.where(row)


def _joined(parts: Sequence[Cells], column: Column, words: tuple[str, ...]) -> Cells:
    values: NDArray[Any] = np.concatenate([np.empty(0, column.dtype), *(part.values for part in parts)])
    if all(part.missing is None for part in parts):
        return Cells(values, None, words)
    missing = [np.zeros(len(part.values), bool) if part.missing is None else part.missing for part in parts]
    return Cells(values, np.concatenate(missing), words)
