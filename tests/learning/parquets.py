"""Parquet and Arrow files for tests."""

import datetime
import decimal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from thalweg.learning.data.tables import Cells


def numbers(rows: int, seed: int = 0) -> pa.Table:
    """A table of features `a`, `b` and a target `y`."""
    generator = np.random.default_rng(seed)
    a, b = generator.normal(size=rows), generator.integers(0, 9, rows)
    return pa.table({"a": a, "b": pa.array(b, pa.int16()), "y": 2 * a - 0.1 * b})


def write_folder(folder: Path, rows: int = 1000, group: int = 300) -> pa.Table:
    """A folder with a file for each of three years, whose rows the returned table has, with the years as its first column."""
    tables = []
    for number, year in enumerate((2024, 2025, 2026)):
        path = folder / f"year={year}" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        table = numbers(rows, number)
        pq.write_table(table, path, row_group_size=group)
        tables.append(table.add_column(0, "year", pa.array([year] * rows, pa.int64())))
    return pa.concat_tables(tables)


def plain(cells: Cells) -> list[Any]:
    """Cells as Python's values, None for missing ones."""
    values = cells.values.tolist()
    if cells.words:
        values = [cells.words[code] for code in values]
    return [None if cells.missing is not None and cells.missing[row] else value for row, value in enumerate(values)]


def mixed(rows: int) -> pa.Table:
    """A table with a column of each type, and missing cells."""
    generator = np.random.default_rng(1)

    def drawn(*values: Any) -> list[Any]:
        return [values[index] for index in generator.integers(0, len(values), rows)]

    day = datetime.date(1969, 12, 30)
    moment = datetime.datetime(2024, 6, 1, 12, 30, 0, 250)
    return pa.table(
        {
            "small": pa.array(drawn(1, -2, None), pa.int8()),
            "large": pa.array(drawn(2**64 - 1, 0, None), pa.uint64()),
            "real": pa.array(drawn(0.1, -1e300, None)),
            "half": pa.array([None if value is None else np.float16(value) for value in drawn(0.5, -2.0, None)], pa.float16()),
            "price": pa.array(drawn(decimal.Decimal("12.25"), None), pa.decimal128(9, 2)),
            "truth": pa.array(drawn(True, False, None)),
            "text": pa.array(drawn("a", "b\u00e9", "", None)),
            "long": pa.array(drawn("x", "y"), pa.large_string()),
            "codes": pa.array(drawn("red", "blue", None)).dictionary_encode(),
            "day": pa.array(drawn(day, None)),
            "naive": pa.array(drawn(moment, None), pa.timestamp("us")),
            "zoned": pa.array(drawn(moment), pa.timestamp("ms", "Asia/Tokyo")).cast(pa.timestamp("ns", "Asia/Tokyo")),
            "nothing": pa.nulls(rows),
        }
    )


def expected(column: str, table: pa.Table) -> list[Any]:
    """The cells of a column as Python's values: times in UTC, without a zone."""
    column_ = table[column]
    if column == "zoned":
        column_ = column_.cast(pa.timestamp("us", "UTC"))
    values = column_.to_pylist()
    if column == "zoned":
        return [value.replace(tzinfo=None) for value in values]
    if column == "price":
        return [None if value is None else float(value) for value in values]
    if column == "day":
        return [None if value is None else datetime.datetime.combine(value, datetime.time()) for value in values]
    return list(values)


ROWS: Mapping[str, slice | list[int]] = {
    "within a group": slice(5, 60),
    "over groups": slice(90, 310),
    "all": slice(None),
    "none": slice(3, 3),
    "any": [399, 0, 100, 99, 100, 250],
}
MIXED = mixed(400)
