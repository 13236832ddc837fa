"""Parquet: a file, or the files of a folder, of which only what is needed is read. Imports pyarrow."""

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager

import pyarrow as pa
import pyarrow.parquet as pq

from thalweg.learning.data.access import Access
from thalweg.learning.data.errors import DataError
from thalweg.learning.data.files import OpenFile
from thalweg.learning.data.recent import Recent
from thalweg.learning.data.sources.arrow_cells import column_of, is_text
from thalweg.learning.data.sources.arrow_files import checked, ends_of, grouped, reading
from thalweg.learning.data.sources.files import SourceFile, source_files
from thalweg.learning.data.sources.grouped import GroupedTable
from thalweg.learning.data.tables import ColumnType
from thalweg.v1 import job_pb2

_FIELD = "data.parquet"
_MAGIC, _ENCRYPTED = b"PAR1", b"PARE"
# Bytes of footers, as they are in the files, that are kept parsed.
_FOOTERS = 16 << 20
# The index that pandas writes as a column.
_INDEX = "__index_level_"


def source(data: job_pb2.Data, access: Access) -> GroupedTable:
    """The table of a job. All footers are read first. Raises DataError if files are damaged, or their columns differ."""
    files = source_files(access, _FIELD, data.parquet, data.sha256)
    return table(files, data.parquet, _FIELD)


def table(files: Sequence[SourceFile], name: str, field: str) -> GroupedTable:
    """The table in Parquet files, one after another. `field` and `name` are for messages. Raises DataError as `source` does."""
    footers: Recent[str, pq.FileMetaData] = Recent(_FOOTERS, lambda footer: int(footer.serialized_size))
    return grouped(field, name, files, lambda file: _File(file, field, footers))


class _File:
    """A Parquet file."""

    def __init__(self, file: SourceFile, field: str, footers: Recent[str, pq.FileMetaData]) -> None:
        self.name = file.name
        self.rows: tuple[int, ...] = ()
        self._subject = f"{field}: {file.name!r}"
        self._file = OpenFile.at(file.path, self._subject)
        self._footers = footers
        self._check_format()
        footer = self._footer()
        with self._reading("as Parquet"):
            schema = checked(pq.ParquetFile(self._bytes(), metadata=footer).schema_arrow)
        self.schema = pa.schema([each for each in schema if not each.name.startswith(_INDEX)], schema.metadata)
        self.rows = tuple(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
        # Text is read as codes and words, as it is stored.
        self._texts = frozenset(each.name for each in schema if is_text(each.type))
        # Positions of the columns that are not nested, among the stored ones.
        self._stored = {footer.schema.column(index).path: index for index in range(footer.num_columns)}

    def smaller(self, rows: int) -> str:
        """How to write smaller row groups."""
        return f"write smaller row groups, with pyarrow.parquet.write_table(table, path, row_group_size={max(1, rows // 10)})"

    def needed(self, group: int, names: Sequence[str]) -> int:
        """About how many bytes some columns of a row group take in memory."""
        stored = self._footer().row_group(group)
        needed = 0
        for name in names:
            column = column_of(name, self.schema.field(name).type)
            needed += stored.num_rows * (1 + column.dtype.itemsize)
            if column.type is ColumnType.TEXT and name in self._stored:
                needed += stored.column(self._stored[name]).total_uncompressed_size
        return needed

    def read(self, group: int, names: Sequence[str]) -> pa.Table:
        """Some columns of a row group. Raises DataError if the file has changed or is damaged."""
        with self._reading(f"in row group {group} (counted from 0)"):
            texts = [name for name in names if name in self._texts]
            file = pq.ParquetFile(self._bytes(), metadata=self._footer(), read_dictionary=texts, page_checksum_verification=True)
            found = file.read_row_group(group, columns=list(names), use_threads=False)
            for name in texts:
                # Positions of words that lead elsewhere would be read as they are.
                found.column(name).validate(full=True)
        if found.num_rows != self.rows[group]:
            raise DataError(
                f"{self._subject} is damaged: row group {group} has {found.num_rows:,} rows, not {self.rows[group]:,}"
            )
        return found

    def check(self) -> None:
        """What has been read does not change with the file."""

    def _check_format(self) -> None:
        start, end = ends_of(self._file, len(_MAGIC))
        if _ENCRYPTED in (start, end):
            raise DataError(f"{self._subject} is encrypted, which is not supported; write it without encryption")
        if start != _MAGIC:
            raise DataError(f"{self._subject} is not a Parquet file; write one with pyarrow.parquet.write_table")
        if end != _MAGIC or self._file.size < 3 * len(_MAGIC):
            raise DataError(f"{self._subject} is truncated: it does not end as a Parquet file; write or copy it again")

    def _footer(self) -> pq.FileMetaData:
        def read() -> pq.FileMetaData:
            with self._reading("as Parquet"):
                return pq.read_metadata(self._bytes())

        return self._footers.get(self.name, 0, read)

    def _bytes(self) -> pa.PythonFile:
        return pa.PythonFile(_Bytes(self._file), mode="r")

    def _reading(self, what: str) -> AbstractContextManager[None]:
        return reading(self._file, what, self.smaller(max(self.rows, default=0)))


class _Bytes(io.RawIOBase):
    """A reader of an open file, with a position of its own."""

    def __init__(self, file: OpenFile) -> None:
        super().__init__()
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Changes the position."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        """The next bytes: fewer than `size` only at the end."""
        left = max(0, self._file.size - self._at)
        room = bytearray(left if size < 0 else min(size, left))
        self._file.read(self._at, memoryview(room))
        self._at += len(room)
        return bytes(room)
