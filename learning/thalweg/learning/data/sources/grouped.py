"""Tables that are read by groups of rows: those of one file, or of several one after another. Imports pyarrow."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from thalweg.learning.data.errors import DataError
from thalweg.learning.data.memory import MAX_DECODED, check_memory
from thalweg.learning.data.recent import Recent
from thalweg.learning.data.rows import Indices, positions
from thalweg.learning.data.sources.arrow_cells import UNREADABLE, cells_bytes, cells_of, column_of, index_of
from thalweg.learning.data.sources.partitions import Partitions
from thalweg.learning.data.tables import Cells, Column, ColumnType


class Part(Protocol):
    """A file of a table. Threads may read it at once."""

    @property
    def name(self) -> str:
        """Its path relative to the folder."""

    @property
    def schema(self) -> pa.Schema:
        """The columns that are in it."""

    @property
    def rows(self) -> Sequence[int]:
        """The number of rows of each group."""

    def smaller(self, rows: int) -> str:
        """How to write groups that are smaller than those of a number of rows."""

    def needed(self, group: int, names: Sequence[str]) -> int:
        """About how many bytes some columns of a group take in memory."""

    def read(self, group: int, names: Sequence[str]) -> pa.Table:
        """Some columns of a group. Raises DataError, and OSError."""

    def check(self) -> None:
        """Raises DataError if what was read, and is part of the file, has changed with it."""


class GroupedTable:
    """A table of which some groups of rows are held, decoded: MAX_DECODED bytes of those that were used last, or one group.

    `field` is the field of the job that messages begin with, `name` what they call the table. The columns of `partitions`, whose
    cells are the same for all rows of a file, come first. Raises DataError if the files' columns differ.
    """

    def __init__(self, field: str, name: str, parts: Sequence[Part], partitions: Partitions, held: int = MAX_DECODED) -> None:
        self.name = name
        self._field = field
        self._parts = parts
        self._partitions = {
            column.name: (column, [cells[position] for cells in partitions.cells])
            for position, column in enumerate(partitions.columns)
        }
        self._in_files, self._types = _columns(field, parts)
        # A column that is also in the files is that of the files.
        outside = [column for column in partitions.columns if column.name not in self._in_files]
        self.columns: tuple[Column, ...] = (*outside, *self._in_files.values())
        # Empty groups have no rows to be found.
        found = [(part, group, rows) for part, each in enumerate(parts) for group, rows in enumerate(each.rows) if rows]
        self._places = [(part, group) for part, group, _ in found]
        self._ends = np.cumsum([rows for *_, rows in found], dtype=np.int64)
        # The number of rows up to the end of each group.
        self.groups: Sequence[int] = tuple(self._ends.tolist())
        self._firsts = np.concatenate([[0], np.cumsum([sum(part.rows) for part in parts], dtype=np.int64)])
        self._recent: Recent[tuple[int, tuple[str, ...]], Mapping[str, Cells]] = Recent(
            held, lambda cells: sum(map(cells_bytes, cells.values()))
        )

    @property
    def held(self) -> int:
        """The bytes of decoded groups that are held."""
        return self._recent.bytes

    def __len__(self) -> int:
        """The number of rows."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def where(self, row: int) -> str:
        """Where a row is, for messages."""
        part = int(np.searchsorted(self._firsts, row, side="right")) - 1
        return f"row {row - int(self._firsts[part]):,} (counted from 0) of {self._parts[part].name}"

    def take(self, indices: Indices, names: Sequence[str]) -> Mapping[str, Cells]:
        """The cells of some rows in some columns. Each group that has some of the rows is read, unless it is held."""
        indices = positions(indices, len(self))
        for name in names:
            self._check(name)
        groups = np.searchsorted(self._ends, indices, side="right")
        distinct = np.unique(groups)
        merged = {name: _Merged(len(indices), self._column(name)) for name in names}
        for group in distinct.tolist():
            chosen = slice(None) if len(distinct) == 1 else np.flatnonzero(groups == group)
            start = int(self._ends[group - 1]) if group else 0
            rows = indices[chosen] - start
            held = self._cells(group, tuple(name for name in names if name in self._in_files))
            part, _ = self._places[group]
            self._parts[part].check()
            for name in names:
                if name in held:
                    merged[name].add(chosen, held[name], rows)
                else:
                    merged[name].add(chosen, self._partitions[name][1][part], np.zeros(len(rows), np.intp))
            # What was copied is what was in the file when it was opened.
            self._parts[part].check()
        return {name: each.cells() for name, each in merged.items()}

    def _column(self, name: str) -> Column:
        return self._in_files[name] if name in self._in_files else self._partitions[name][0]

    def _check(self, name: str) -> None:
        if self._column(name).dtype == UNREADABLE:
            problem = f"column {name!r} of {self.name!r} holds {self._types[name]}, which cannot be a feature or a target"
            raise DataError(f"{self._field}: {problem}; name it in data.ignore, or write its cells as columns of their own")

    def _cells(self, group: int, names: tuple[str, ...]) -> Mapping[str, Cells]:
        if not names:
            return {}
        position, inside = self._places[group]
        part = self._parts[position]
        needed = part.needed(inside, names)
        return self._recent.get((group, names), needed, lambda: self._decoded(part, inside, names, needed))

    def _decoded(self, part: Part, group: int, names: tuple[str, ...], needed: int) -> Mapping[str, Cells]:
        subject = f"{self._field}: {part.name!r}: group {group} of {part.rows[group]:,} rows (counted from 0)"
        # While it is decoded, there is a second copy.
        check_memory(subject, 2 * needed, part.smaller(part.rows[group]))
        found = part.read(group, names)
        decoded = {}
        for name in names:
            try:
                decoded[name] = cells_of(found.column(name), self._in_files[name])
            except (pa.ArrowException, UnicodeDecodeError) as error:
                reason = str(error).splitlines()[0]
                raise DataError(f"{subject}, column {name!r} cannot be read: {reason}; write the file again") from error
        return decoded


class _Merged:
    """Cells of one column that come from several groups."""

    def __init__(self, rows: int, column: Column) -> None:
        self._values: NDArray[Any] = np.zeros(rows, column.dtype)
        self._missing: NDArray[np.bool_] | None = None
        self._text = column.type is ColumnType.TEXT
        self._words: dict[str, int] = {}
        self._whole: tuple[str, ...] | None = None

    def add(self, where: NDArray[np.intp] | slice, cells: Cells, rows: NDArray[np.intp]) -> None:
        """Puts some rows of a group's cells at positions."""
        values = cells.values[rows]
        if isinstance(where, slice):
            # All are of one group, whose words are kept as they are.
            self._values, self._whole = values, cells.words
        else:
            self._values[where] = self._codes(values, cells.words) if self._text else values
        if cells.missing is not None and (missing := cells.missing[rows]).any():
            if self._missing is None:
                self._missing = np.zeros(len(self._values), bool)
            self._missing[where] = missing

    def _codes(self, codes: NDArray[Any], words: Sequence[str]) -> NDArray[Any]:
        used, inverse = np.unique(codes, return_inverse=True)
        return np.array([self._words.setdefault(words[code], len(self._words)) for code in used], np.int32)[inverse]

    def cells(self) -> Cells:
        """What was put together."""
        return Cells(self._values, self._missing, tuple(self._words) if self._whole is None else self._whole)


def _columns(field: str, parts: Sequence[Part]) -> tuple[dict[str, Column], dict[str, str]]:
    """The columns of all files by name, in the order of the first one, and Arrow's names of their types.

    Raises DataError if files have others, or a name twice."""
    first = parts[0]
    columns: dict[str, Column] = {}
    # Of columns that have been seen without any cells only, whose type says nothing.
    empty: set[str] = set()
    types: dict[str, tuple[str, str]] = {}
    for part in parts:
        names = part.schema.names
        if len({*names}) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{field}: {part.name!r} has two columns called {twice!r}; rename one of them")
        if part is not first:
            lacks, more = [name for name in columns if name not in {*names}], [name for name in names if name not in columns]
            if lacks or more:
                problem = f"lacks the column {lacks[0]!r}" if lacks else f"has the column {more[0]!r}"
                contrast = "has" if lacks else "lacks"
                raise DataError(
                    f"{field}: {part.name!r} {problem}, which {first.name!r} {contrast}; write all files with the same columns"
                )
        for each in part.schema:
            column, null = column_of(each.name, each.type), pa.types.is_null(each.type)
            known = columns.get(each.name)
            if known is None or (each.name in empty and not null):
                columns[each.name], types[each.name] = column, (str(each.type), part.name)
                empty.discard(each.name)
                if null:
                    empty.add(each.name)
            elif not null and (column != known or (column.dtype == UNREADABLE and str(each.type) != types[each.name][0])):
                other, where = types[each.name]
                raise DataError(
                    f"{field}: column {each.name!r} is {each.type} in {part.name!r} and {other} in {where!r}; "
                    "write all files with the same types"
                )
    index = index_of(first.schema)
    found = {name: column._replace(is_index=name in index) for name, column in columns.items()}
    return found, {name: kind for name, (kind, _) in types.items()}
