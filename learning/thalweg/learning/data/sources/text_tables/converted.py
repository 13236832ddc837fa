"""A table of a text file as a file of Arrow, which is mapped to memory. Imports pyarrow."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from thalweg.learning.data.rows import Indices
from thalweg.learning.data.sources.arrow_cells import cells_of, column_of
from thalweg.learning.data.sources.text_tables.conversion import Block, Values
from thalweg.learning.data.sources.text_tables.lines import Lines
from thalweg.learning.data.tables import Cells, Column, ColumnType

_TABLE, _LINES = "table.arrow", "lines.npy"
_TYPES = {ColumnType.TEXT: pa.large_string(), ColumnType.BOOLEAN: pa.bool_(), ColumnType.TIME: pa.timestamp("us")}
# Whether the file has names for its columns.
_NAMED = b"thalweg.named"


def write(folder: Path, columns: Sequence[Column], made: Iterable[Block], *, named: bool) -> None:
    """Writes a table to a new folder: its cells, one batch for each block, and the lines of its rows. Raises OSError."""
    schema = pa.schema([(column.name, _type(column)) for column in columns], {_NAMED: str(int(named))})
    folder.mkdir()
    lines = Lines()
    with pa.OSFile(str(folder / _TABLE), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for block in made:
            lines.add(block.lines)
            arrays = [_array(values, kind) for values, kind in zip(block.columns, schema.types, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    np.save(folder / _LINES, lines.changes)


def _type(column: Column) -> pa.DataType:
    return _TYPES.get(column.type) or pa.from_numpy_dtype(column.dtype)


def _array(made: Values, kind: pa.DataType) -> pa.Array:
    return pa.array(made.values, kind, mask=made.missing)


class ConvertedTable:
    """A table that `write` wrote to a folder, of `files`, if it was made of several. Raises OSError if it cannot be read."""

    def __init__(self, folder: Path, name: str, files: Sequence[str] = ()) -> None:
        self.name = name
        self._table = pa.ipc.open_file(pa.memory_map(str(folder / _TABLE))).read_all()
        self.columns = tuple(column_of(field.name, field.type) for field in self._table.schema)
        self.named = self._table.schema.metadata[_NAMED] == b"1"
        self.missing = {name: self._table.column(name).null_count for name in self._table.column_names}
        self._by_name = {column.name: column for column in self.columns}
        self._batches = self._table.to_batches()
        self._ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)
        self._lines = Lines(np.load(folder / _LINES), files)

    @property
    def groups(self) -> Sequence[int]:
        """Empty: any row can be read by itself."""
        return ()

    def __len__(self) -> int:
        """The number of rows."""
        return int(self._table.num_rows)

    def take(self, indices: Indices, names: Sequence[str]) -> Mapping[str, Cells]:
        """The cells of some rows in some columns."""
        if isinstance(indices, slice):
            start, stop, step = indices.indices(len(self))
            if step == 1:
                found = self._table.select(names).slice(start, max(0, stop - start))
                return {name: cells_of(found.column(name), self._by_name[name]) for name in names}
            indices = np.arange(start, stop, step, dtype=np.intp)
        # Arrow would first join all batches of a column of text.
        batch = np.searchsorted(self._ends, indices, side="right")
        order = np.argsort(batch, kind="stable")
        found = self._table.schema.empty_table().select(names)
        if len(indices):
            parts = []
            for number in np.unique(batch).tolist():
                rows = indices[order[batch[order] == number]] - (self._ends[number - 1] if number else 0)
                parts.append(self._batches[number].select(names).take(pa.array(rows)))
            found = pa.Table.from_batches(parts)
        back = np.empty(len(order), np.intp)
        back[order] = np.arange(len(order))
        taken = {}
        for name in names:
            values, missing, words = cells_of(found.column(name), self._by_name[name])
            taken[name] = Cells(values[back], None if missing is None else missing[back], words)
        return taken

    def where(self, row: int) -> str:
        """Where a row is in the file, for messages."""
        return self._lines.where(row)
