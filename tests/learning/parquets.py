"""Parquet and Arrow files for tests."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


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
