"""Arrow's files, which are also Feather's: mapped, so that numbers that are not compressed are not copied. Imports pyarrow."""

import mmap
import struct
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import pyarrow as pa

from thalweg.learning.data.access import Access
from thalweg.learning.data.errors import DataError
from thalweg.learning.data.files import OpenFile
from thalweg.learning.data.sources.arrow_cells import column_of
from thalweg.learning.data.sources.arrow_files import checked, ends_of, grouped, reading
from thalweg.learning.data.sources.files import SourceFile, source_files
from thalweg.learning.data.sources.grouped import GroupedTable
from thalweg.learning.data.tables import ColumnType
from thalweg.v1 import job_pb2

_FIELD = "data.arrow"
_MAGIC = b"ARROW1"
# How other formats of Arrow's begin, and what to do.
_OTHERS = {
    b"FEA1": "is of version 1 of Feather; write version 2, with pyarrow.feather.write_feather",
    b"\xff\xff\xff\xff": "is a stream of Arrow, not a file; write it with pyarrow.ipc.new_file",
    b"PAR1": "is a Parquet file; give it as data.parquet",
}


def source(data: job_pb2.Data, access: Access) -> GroupedTable:
    """The table of a job. The columns of all files are compared first. Raises DataError if files are damaged, or they differ."""
    return table(source_files(access, _FIELD, data.arrow, data.sha256), data.arrow, _FIELD)


def table(files: Sequence[SourceFile], name: str, field: str) -> GroupedTable:
    """The table in Arrow files, one after another; `field` and `name` are for messages. Raises DataError as `source` does."""
    return grouped(field, name, files, lambda file: _File(file, field))


class _File:
    """An Arrow file. Its groups are its record batches."""

    def __init__(self, file: SourceFile, field: str) -> None:
        self.name = file.name
        self._subject = f"{field}: {file.name!r}"
        self._file = OpenFile.at(file.path, self._subject)
        self.rows: tuple[int, ...] = ()
        self._check_format()
        self._mapped = pa.py_buffer(mmap.mmap(self._file.descriptor, 0, access=mmap.ACCESS_READ))
        with self._reading("as an Arrow file"):
            self.schema = checked(pa.ipc.open_file(self._mapped).schema)
            batches = list(_batches(self._mapped))
        self.rows = tuple(batch.rows for batch in batches)
        self._compressed = any(batch.compressed for batch in batches)

    def needed(self, group: int, names: Sequence[str]) -> int:
        """About how many bytes some columns of a batch take in memory, besides the words of text."""
        columns = [column_of(name, self.schema.field(name).type) for name in names]
        taken = [column for column in columns if self._compressed or column.type is not ColumnType.NUMBER]
        return sum(self.rows[group] * (1 + column.dtype.itemsize) for column in taken)

    def smaller(self, rows: int) -> str:
        """How to write smaller batches."""
        return f"write smaller batches, as with pyarrow.feather.write_feather(table, path, chunksize={max(1, rows // 10)})"

    def read(self, group: int, names: Sequence[str]) -> pa.Table:
        """Some columns of a batch. Raises DataError if the file has changed or is damaged."""
        self._file.check()
        with self._reading(f"in record batch {group} (counted from 0)"):
            positions = sorted(self.schema.get_field_index(name) for name in names)
            # A choice of columns is copied from the file, but not all of them.
            wanted = pa.ipc.IpcReadOptions(included_fields=positions if self._compressed else [], use_threads=False)
            batch = pa.ipc.open_file(self._mapped, options=wanted).get_batch(group).select(list(names))
            # Offsets and positions of words that lead elsewhere would be read as they are.
            batch.validate(full=True)
        if batch.num_rows != self.rows[group]:
            raise DataError(f"{self._subject} is damaged: batch {group} has {batch.num_rows:,} rows, not {self.rows[group]:,}")
        return pa.Table.from_batches([batch])

    def check(self) -> None:
        """Raises DataError if the file has changed: cells that are not copied are part of it."""
        self._file.check()

    def _check_format(self) -> None:
        start, end = ends_of(self._file, len(_MAGIC))
        for magic, problem in _OTHERS.items():
            if start.startswith(magic):
                raise DataError(f"{self._subject} {problem}")
        if start != _MAGIC:
            raise DataError(f"{self._subject} is not an Arrow file; write one with pyarrow.feather.write_feather")
        if end != _MAGIC:
            raise DataError(f"{self._subject} is truncated: it does not end as an Arrow file; write or copy it again")

    def _reading(self, what: str) -> AbstractContextManager[None]:
        return reading(self._file, what, self.smaller(max(self.rows, default=0)))


class _Batch(NamedTuple):
    """What the header of a record batch says."""

    rows: int
    compressed: bool


def _batches(file: pa.Buffer) -> Iterator[_Batch]:
    """The headers of the record batches in a file. To read the batches would unpack those that are compressed.

    After its first 8 bytes, a file is a stream of messages, whose headers are FlatBuffers (Arrow's `Message.fbs`).
    """
    for message in pa.ipc.MessageReader.open_stream(pa.BufferReader(file.slice(len(_MAGIC) + 2))):
        if message.type == "record batch":
            header = bytes(message.metadata)
            batch = _table(header, _field(header, _table(header, 0), 2))
            length, compression = _field(header, batch, 0), _field(header, batch, 3)
            rows = int(*struct.unpack_from("<q", header, length)) if length else 0
            yield _Batch(rows, compressed=bool(compression))


def _table(header: bytes, at: int) -> int:
    """Where a table is that is referred to at a position."""
    return at + int(*struct.unpack_from("<I", header, at))


def _field(header: bytes, table: int, number: int) -> int:
    """Where a field of a table is, 0 if it is not given."""
    names = table - int(*struct.unpack_from("<i", header, table))
    entry = names + 4 + 2 * number
    offset = int(*struct.unpack_from("<H", header, entry)) if entry < names + int(*struct.unpack_from("<H", header, names)) else 0
    return table + offset if offset else 0
