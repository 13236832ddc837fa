"""Columns of Arrow as columns of a table. Imports pyarrow."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from thalweg.learning.data.tables import Cells, Column, ColumnType

_TIMES = np.dtype("datetime64[us]")
_CODES = np.dtype(np.int32)
# The dtype of columns whose cells cannot be features or targets.
UNREADABLE = np.dtype(object)


def index_of(schema: pa.Schema) -> set[str]:
    """The columns that are the index of a data frame, by what pandas writes about itself into files."""
    try:
        told = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
        # A range is no column.
        return {name for name in told.get("index_columns", ()) if isinstance(name, str)}
    except (ValueError, AttributeError, TypeError):
        # Anyone may write there.
        return set()


def column_of(name: str, kind: pa.DataType) -> Column:
    """The column of a table that a column of Arrow is. Of nested and binary ones the dtype is UNREADABLE."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if is_text(kind):
        return Column(name, ColumnType.TEXT, _CODES)
    if pa.types.is_boolean(kind):
        return Column(name, ColumnType.BOOLEAN, np.dtype(bool))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return Column(name, ColumnType.NUMBER, np.dtype(kind.to_pandas_dtype()))
    if pa.types.is_decimal(kind) or pa.types.is_null(kind):
        return Column(name, ColumnType.NUMBER, np.dtype(np.float64))
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return Column(name, ColumnType.TIME, _TIMES)
    return Column(name, ColumnType.TEXT, UNREADABLE)


def is_text(kind: pa.DataType) -> bool:
    """Whether cells of a type are text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def cells_of(chunks: pa.ChunkedArray, column: Column) -> Cells:
    """The cells of a column, read-only: without a copy if they are numbers that lie together, and none is missing.

    Times are in UTC, also those without a time zone. Raises what pyarrow raises for times and numbers out of range.
    """
    if column.type is ColumnType.TEXT:
        return _text(chunks)
    array = _whole(chunks)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    missing = np.asarray(array.is_null().to_numpy(zero_copy_only=False)) if array.null_count else None
    if pa.types.is_null(array.type):
        return Cells(np.zeros(len(array), column.dtype), missing)
    if column.type is ColumnType.TIME:
        array = _microseconds(array)
    elif pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    if missing is not None:
        array = array.fill_null(False if column.type is ColumnType.BOOLEAN else 0)
    values = array.to_numpy(zero_copy_only=False)
    return Cells(values.view(_TIMES) if column.type is ColumnType.TIME else values, missing)


def cells_bytes(cells: Cells) -> int:
    """The bytes of cells."""
    words = sum(56 + 4 * len(word) for word in cells.words)
    return cells.values.nbytes + (0 if cells.missing is None else cells.missing.nbytes) + words


def _whole(chunks: pa.ChunkedArray) -> pa.Array:
    """One array of all chunks."""
    return chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()


def _microseconds(array: pa.Array) -> pa.Array:
    """Dates and times as microseconds since 1970."""
    if pa.types.is_date(array.type):
        return array.cast(pa.timestamp("us")).cast(pa.int64())
    # What is finer is cut; what is coarser must fit.
    exact = array.type.unit != "ns"
    return array.cast(pa.timestamp("us", array.type.tz), safe=exact).cast(pa.int64())


def _text(chunks: pa.ChunkedArray) -> Cells:
    if pa.types.is_null(chunks.type):
        return Cells(np.zeros(len(chunks), _CODES), np.ones(len(chunks), bool), ("",))
    if pa.types.is_string_view(chunks.type):
        chunks = chunks.cast(pa.string())
    array = _whole(chunks.unify_dictionaries()) if pa.types.is_dictionary(chunks.type) else _whole(pc.dictionary_encode(chunks))
    words = tuple(array.dictionary.to_pylist())
    if array.dictionary.null_count or len({*words}) < len(words):
        # A dictionary that a program made: a word twice would be two categories.
        array = pc.dictionary_encode(array.dictionary_decode())
        words = tuple(array.dictionary.to_pylist())
    missing = np.asarray(array.is_null().to_numpy(zero_copy_only=False)) if array.null_count else None
    codes = array.indices if missing is None else array.indices.fill_null(0)
    return Cells(codes.to_numpy(zero_copy_only=False).astype(_CODES, copy=False), missing, words or ("",))
