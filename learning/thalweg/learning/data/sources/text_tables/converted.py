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
    """A table that `write` wrote to a folder. Raises OSError if it cannot be read."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._table = pa.ipc.open_file(pa.memory_map(str(folder / _TABLE))).read_all()
        self.columns = tuple(column_of(field.name, field.type) for field in self._table.schema)
        self.named = self._table.schema.metadata[_NAMED] == b"1"
        self.missing = {name: self._table.column(name).null_count for name in self._table.column_names}
        self._positions = {column.name: position for position, column in enumerate(self.columns)}
        self._lines = Lines(np.load(folder / _LINES))

    @property
    def groups(self) -> Sequence[int]:
        """Empty: any row can be read by itself."""
        return ()

    def __len__(self) -> int:
        """The number of rows."""
        return int(self._table.num_rows)

    def take(self, indices: Indices, names: Sequence[str]) -> Mapping[str, Cells]:
        """The cells of some rows in some columns."""
        chosen = self._table.select([self._positions[name] for name in names])
        if isinstance(indices, slice):
            start, stop, step = indices.indices(len(self))
            taken = chosen.slice(start, max(0, stop - start)) if step == 1 else chosen.take(np.arange(start, stop, step))
        else:
            taken = chosen.take(pa.array(np.asarray(indices, np.int64)))
        return {name: cells_of(taken.column(name), self.columns[self._positions[name]]) for name in names}

    def where(self, row: int) -> str:
        """Where a row is in the file, for messages."""
        return self._lines.where(row)
