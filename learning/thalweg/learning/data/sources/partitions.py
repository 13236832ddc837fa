"""Columns that are folders' names: `year=2026/month=1/part-0.parquet`, as Hive, Spark and pyarrow write them."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np

from thalweg.learning.data.errors import DataError
from thalweg.learning.data.tables import Cells, Column, ColumnType

# The name of a folder whose rows have no value.
_MISSING = "__HIVE_DEFAULT_PARTITION__"


class Partitions(NamedTuple):
    """Columns, and of each file the cells of its rows: one cell for each column."""

    columns: tuple[Column, ...]
    cells: tuple[tuple[Cells, ...], ...]


def partitions(names: Sequence[str], field: str) -> Partitions:
    """The columns that the folders of files name. Values are whole numbers, else decimal numbers, else text, for all files alike.

    Raises DataError if the folders of files name different columns.
    """
    found = [_pairs(name) for name in names]
    keys = tuple(found[0])
    for name, pairs in zip(names, found, strict=True):
        if tuple(pairs) != keys:
            have, others = ", ".join(pairs) or "none", ", ".join(keys) or "none"
            raise DataError(
                f"{field}: the folders of {name!r} name the columns {have}, and those of {names[0]!r} {others}; "
                "put all files into folders of the same kind"
            )
    columns, cells = [], []
    for key in keys:
        texts = [pairs[key] for pairs in found]
        column, ones = _typed(key, texts)
        columns.append(column)
        cells.append(ones)
    return Partitions(tuple(columns), tuple(zip(*cells, strict=True)) if keys else ((),) * len(names))


def _pairs(name: str) -> dict[str, str | None]:
    pairs: dict[str, str | None] = {}
    for folder in name.split("/")[:-1]:
        key, equals, value = folder.partition("=")
        if equals and key:
            text = unquote(value)
            pairs[unquote(key)] = None if text == _MISSING else text
    return pairs


def _typed(key: str, texts: Sequence[str | None]) -> tuple[Column, list[Cells]]:
    given = [text for text in texts if text is not None]
    for kind, dtype in ((_whole, np.dtype(np.int64)), (_decimal, np.dtype(np.float64))):
        if given and all(kind(text) for text in given):
            ones = [_one(np.zeros(1, dtype) if text is None else np.array([text]).astype(dtype), text) for text in texts]
            return Column(key, ColumnType.NUMBER, dtype), ones
    codes = np.zeros(1, np.int32)
    return Column(key, ColumnType.TEXT, codes.dtype), [_one(codes, text, (text or "",)) for text in texts]


def _one(values: "np.ndarray[tuple[int], np.dtype[np.generic]]", text: str | None, words: tuple[str, ...] = ()) -> Cells:
    return Cells(values, np.ones(1, bool) if text is None else None, words)


def _whole(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,18}", text) is not None


def _decimal(text: str) -> bool:
    return re.fullmatch(r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?", text) is not None and math.isfinite(float(text))
