"""Writes batches of rows to a Parquet file, in groups whose sizes do not depend on those of the batches. Imports pyarrow."""

from contextlib import ExitStack, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from thalweg.client.arrays import GROUP_ROWS, TABLE_NAME, arrow_table, as_parquet, wrong

# A group of rows that has as many bytes is written, though it has fewer rows than others.
_GROUP_BYTES = 32 << 20


class Rows:
    """Writes batches of rows."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._path = folder / TABLE_NAME
        self._stack = stack
        self._file: _File | None = None

    def write(self, batch: object, subject: str) -> None:
        """Writes the next batch. Raises ThalwegError if its columns are not those of the first one."""
        table = _plain(arrow_table(batch, f"{subject}: "), subject)
        with as_parquet(f"{subject}: "):
            if self._file is None:
                self._file = _File(self._path, table.schema)
                self._stack.callback(self._file.close)
            self._file.append(_alike(table, self._file.schema, subject))

    def finish(self) -> Path:
        """Completes the file. Raises ThalwegError if it has no rows."""
        if self._file is None or not self._file.finish():
            raise wrong("no batch has any samples")
        return self._path


class _File:
    """A Parquet file that grows."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self._writer = pq.ParquetWriter(path, schema)
        self._group = _Group(schema)
        self._rows = 0

    def append(self, table: pa.Table) -> None:
        """Adds rows."""
        self._rows += len(table)
        while len(table):
            part = table.slice(0, GROUP_ROWS - self._group.rows)
            # A copy: programs may write the next batch to the memory of this one.
            self._group.append(part)
            table = table.slice(len(part))
            if self._group.rows == GROUP_ROWS or self._group.size >= _GROUP_BYTES:
                self._write_group()

    def finish(self) -> int:
        """Completes the file, and returns its number of rows."""
        if self._group.rows:
            self._write_group()
        self._writer.close()
        return self._rows

    def close(self) -> None:
        """Closes the file, also if it cannot be completed."""
        with suppress(OSError):
            self._writer.close()
        # A writer that could not be closed tries it again when it is collected.
        self._writer.is_open = False

    def _write_group(self) -> None:
        self._writer.write_table(self._group.table(), row_group_size=GROUP_ROWS)
        self._group = _Group(self.schema)


class _Group:
    """Rows that are written together."""

    def __init__(self, schema: pa.Schema) -> None:
        self.rows = 0
        self._sink = pa.BufferOutputStream()
        self._stream = pa.ipc.new_stream(self._sink, schema)

    @property
    def size(self) -> int:
        """The bytes that they take."""
        return int(self._sink.tell())

    def append(self, table: pa.Table) -> None:
        """Adds a copy of some rows."""
        self._stream.write_table(table)
        self.rows += len(table)

    def table(self) -> pa.Table:
        """All rows, which are complete."""
        self._stream.close()
        # In one piece, so that the file does not depend on how they came.
        return pa.ipc.open_stream(self._sink.getvalue()).read_all().combine_chunks()


def _plain(table: pa.Table, subject: str) -> pa.Table:
    """A table without dictionaries, which may differ between batches, and without what programs say about its rows."""
    kinds = {each.name: each.type.value_type if pa.types.is_dictionary(each.type) else each.type for each in table.schema}
    if len(kinds) < table.num_columns:
        raise wrong(f"{subject} has two columns of one name; rename one of them")
    return table.cast(pa.schema(list(kinds.items()))).replace_schema_metadata(None)


def _alike(table: pa.Table, schema: pa.Schema, subject: str) -> pa.Table:
    """A table with the columns of the first batch. Raises ThalwegError if it has others."""
    for name in schema.names:
        if name not in table.column_names:
            raise wrong(f"{subject} has no column {name!r}, which batch 0 has")
    for name in table.column_names:
        if name not in schema.names:
            raise wrong(f"{subject} has the column {name!r}, which batch 0 has not")
    for ours in schema:
        kind = table.schema.field(ours.name).type
        # Where all cells are missing, there is no type.
        if kind not in (ours.type, pa.null()):
            problem = f"{subject}: column {ours.name!r} holds {kind}, but in batch 0 {ours.type}"
            raise wrong(f"{problem}; convert all batches to one type")
    return table.select(schema.names).cast(schema)
