"""Parquet: types, folders, groups of rows, and what is wrong with files."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf import json_format

from tests.learning.batches import inputs, targets
from tests.learning.parquets import MIXED, ROWS, expected, numbers, plain, write_folder
from thalweg.contract.resources import Memory
from thalweg.learning import data
from thalweg.learning.data import DataError, MemoryLackError
from thalweg.learning.data import memory as data_memory
from thalweg.learning.data.recent import Recent
from thalweg.learning.data.sources import parquet
from thalweg.learning.data.sources.files import SourceFile
from thalweg.learning.data.sources.grouped import GroupedTable
from thalweg.learning.data.sources.partitions import Partitions
from thalweg.learning.data.tables import ColumnType
from thalweg.learning.errors import NodeError
from thalweg.v1 import job_pb2

FIELD = "data.parquet"


def opened(folder: Path) -> GroupedTable:
    """The table of a file, or of all below a folder."""
    if folder.is_file():
        return parquet.table([SourceFile(folder.name, folder)], folder.name, FIELD)
    files = sorted(folder.rglob("*.parquet"))
    return parquet.table([SourceFile(path.relative_to(folder).as_posix(), path) for path in files], folder.name, FIELD)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("column", MIXED.column_names)
def test_cells_are_those_of_the_file(column: str, rows: str, tmp_path: Path) -> None:
    table = MIXED
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    chosen = ROWS[rows]
    indices = chosen if isinstance(chosen, slice) else np.array(chosen, np.intp)
    cells = opened(tmp_path / "a.parquet").take(indices, [column])[column]
    wanted = expected(column, table)
    assert plain(cells) == (wanted[indices] if isinstance(indices, slice) else [wanted[row] for row in indices])


def test_columns_have_types(tmp_path: Path) -> None:
    pq.write_table(MIXED, tmp_path / "a.parquet")
    types = {column.name: (column.type, column.dtype.name) for column in opened(tmp_path / "a.parquet").columns}
    assert types == {
        "small": (ColumnType.NUMBER, "int8"),
        "large": (ColumnType.NUMBER, "uint64"),
        "real": (ColumnType.NUMBER, "float64"),
        "half": (ColumnType.NUMBER, "float16"),
        "price": (ColumnType.NUMBER, "float64"),
        "truth": (ColumnType.BOOLEAN, "bool"),
        "text": (ColumnType.TEXT, "int32"),
        "long": (ColumnType.TEXT, "int32"),
        "codes": (ColumnType.TEXT, "int32"),
        "day": (ColumnType.TIME, "datetime64[us]"),
        "naive": (ColumnType.TIME, "datetime64[us]"),
        "zoned": (ColumnType.TIME, "datetime64[us]"),
        "nothing": (ColumnType.NUMBER, "float64"),
    }


def test_a_folder_is_one_table_of_all_its_files_in_the_order_of_their_paths(tmp_path: Path) -> None:
    whole = write_folder(tmp_path / "trips")
    table = opened(tmp_path / "trips")
    assert [column.name for column in table.columns] == ["year", "a", "b", "y"]
    assert list(table.groups) == [300, 600, 900, 1000, 1300, 1600, 1900, 2000, 2300, 2600, 2900, 3000]
    assert len(table) == 3000
    rows = np.random.default_rng(0).permutation(3000)[:200]
    for name, cells in table.take(rows, ["y", "year", "b"]).items():
        assert cells.values.tolist() == whole[name].take(pa.array(rows)).to_pylist()
    assert table.where(1003) == "row 3 (counted from 0) of year=2025/part-0.parquet"


@pytest.mark.parametrize(
    ("values", "kind", "cells"),
    [
        (("7", "08"), ColumnType.NUMBER, [7, 8]),
        (("1.5", "-2"), ColumnType.NUMBER, [1.5, -2.0]),
        (("1", "b%20c"), ColumnType.TEXT, ["1", "b c"]),
        (("3", "__HIVE_DEFAULT_PARTITION__"), ColumnType.NUMBER, [3, None]),
    ],
)
def test_names_of_folders_are_typed_columns(values: tuple[str, ...], kind: ColumnType, cells: list[Any], tmp_path: Path) -> None:
    for value in values:
        (tmp_path / f"k={value}").mkdir()
        pq.write_table(numbers(2), tmp_path / f"k={value}" / "a.parquet")
    table = opened(tmp_path)
    assert (table.columns[0].name, table.columns[0].type) == ("k", kind)
    found = plain(table.take(slice(None), ["k"])["k"])
    order = sorted(range(len(values)), key=lambda index: f"k={values[index]}")
    assert found == [cells[index] for index in order for _ in range(2)]


def test_folders_of_different_kinds_are_an_error(tmp_path: Path) -> None:
    for folder in ("k=1", "other"):
        (tmp_path / folder).mkdir()
        pq.write_table(numbers(2), tmp_path / folder / "a.parquet")
    with pytest.raises(DataError, match=r"'other/a.parquet' name the columns none, and those of 'k=1/a.parquet' k"):
        opened(tmp_path)


def test_the_index_of_pandas_is_no_column(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": [1, 2, 3, 4], "y": [1.0, 2.0, 3.0, 4.0]})
    frame[frame.a != 3].to_parquet(tmp_path / "a.parquet")
    assert "__index_level_0__" in pq.read_schema(tmp_path / "a.parquet").names
    assert [column.name for column in opened(tmp_path / "a.parquet").columns] == ["a", "y"]


def test_groups_without_rows_are_left_out(tmp_path: Path) -> None:
    with pq.ParquetWriter(tmp_path / "a.parquet", numbers(0).schema) as writer:
        for rows in (0, 5, 0, 7, 0):
            writer.write_table(numbers(rows))
    pq.write_table(numbers(0), tmp_path / "b.parquet")
    pq.write_table(numbers(2), tmp_path / "c.parquet")
    table = opened(tmp_path)
    assert list(table.groups) == [5, 12, 14]
    assert table.where(12) == "row 0 (counted from 0) of c.parquet"
    assert table.take(np.array([12]), ["a"])["a"].values.tolist() == numbers(2)["a"].to_pylist()[:1]


def test_only_needed_columns_and_groups_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(numbers(400), tmp_path / "a.parquet", row_group_size=100)
    read: list[tuple[int, tuple[str, ...]]] = []
    original = parquet._File.read

    def noted(self: Any, group: int, names: tuple[str, ...]) -> Any:
        read.append((group, tuple(names)))
        return original(self, group, names)

    monkeypatch.setattr(parquet._File, "read", noted)
    table = opened(tmp_path / "a.parquet")
    table.take(np.array([250, 120]), ["y"])
    table.take(np.array([299]), ["y"])
    assert read == [(1, ("y",)), (2, ("y",))]


def test_decoded_groups_are_held_up_to_a_number_of_bytes(tmp_path: Path) -> None:
    pq.write_table(numbers(1000), tmp_path / "a.parquet", row_group_size=100)
    whole = opened(tmp_path / "a.parquet")
    file = parquet._File(SourceFile("a.parquet", tmp_path / "a.parquet"), FIELD, Recent(1 << 20, lambda _: 0))
    bounded = GroupedTable(FIELD, "a", [file], Partitions((), ((),)), held=2000)
    for row in range(0, 1000, 37):
        rows = np.array([row, (row * 7) % 1000])
        assert bounded.take(rows, ["a"])["a"].values.tolist() == whole.take(rows, ["a"])["a"].values.tolist()
        assert 0 < bounded.held <= 2000
    assert whole.held == 8000


def test_threads_read_at_once(tmp_path: Path) -> None:
    table = write_folder(tmp_path / "d", group=50)
    wanted = np.array(table["y"])
    read = opened(tmp_path / "d")
    together = threading.Barrier(4)

    def sweep(seed: int) -> bool:
        together.wait()
        rows = np.random.default_rng(seed).permutation(3000)
        return all((read.take(some, ["y"])["y"].values == wanted[some]).all() for some in np.array_split(rows, 30))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(sweep, range(4)))


@pytest.mark.parametrize("change", ["lacks", "more", "type"])
def test_a_file_with_other_columns_is_named_with_the_column(change: str, tmp_path: Path) -> None:
    for number in range(30):
        pq.write_table(numbers(3), tmp_path / f"part-{number:02}.parquet")
    table = numbers(3)
    other = {
        "lacks": table.drop_columns("b"),
        "more": table.append_column("z", table["a"]),
        "type": table.set_column(1, "b", table["b"].cast(pa.float64())),
    }[change]
    pq.write_table(other, tmp_path / "part-29.parquet")
    problem = {
        "lacks": "'part-29.parquet' lacks the column 'b', which 'part-00.parquet' has",
        "more": "'part-29.parquet' has the column 'z', which 'part-00.parquet' lacks",
        "type": "column 'b' is double in 'part-29.parquet' and int16 in 'part-00.parquet'",
    }[change]
    with pytest.raises(DataError, match=f"^data.parquet: {problem}; write all files with the same"):
        opened(tmp_path)


def test_columns_may_have_another_order_or_be_empty_in_a_file(tmp_path: Path) -> None:
    table = numbers(3)
    pq.write_table(table.set_column(0, "a", pa.nulls(3)), tmp_path / "1.parquet")
    pq.write_table(table.select(["y", "b", "a"]), tmp_path / "2.parquet")
    found = opened(tmp_path)
    assert [(column.name, column.dtype.name) for column in found.columns] == [("a", "float64"), ("b", "int16"), ("y", "float64")]
    assert plain(found.take(slice(None), ["a"])["a"]) == [None] * 3 + table["a"].to_pylist()


def test_nested_columns_are_refused_only_if_they_are_used(tmp_path: Path) -> None:
    table = numbers(2).append_column("tags", pa.array([["x"], []])).append_column("raw", pa.array([b"1", b"2"]))
    pq.write_table(table.append_column("where", pa.array([{"lat": 1.0}, {"lat": 2.0}])), tmp_path / "a.parquet")
    found = opened(tmp_path / "a.parquet")
    assert len(found.take(slice(None), ["a", "y"])) == 2
    for name, kind in (("tags", "list<element: string>"), ("raw", "binary"), ("where", "struct<lat: double>")):
        with pytest.raises(DataError) as caught:
            found.take(slice(None), ["a", name])
        assert f"column '{name}' of 'a.parquet' holds {kind}, which cannot be a feature" in str(caught.value)


def damage(kind: str, path: Path) -> None:
    content = bytearray(path.read_bytes())
    match kind:
        case "truncated":
            content = content[:-100]
        case "footer":
            content[-60:-20] = bytes(40)
        case "pages":
            content[20:200] = bytes(180)
        case "text":
            content = bytearray(b"a,b,y\n1,2,3\n")
        case "empty":
            content = bytearray()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("truncated", "'b.parquet' is truncated: it does not end as a Parquet file"),
        ("footer", "'b.parquet' cannot be read as Parquet: "),
        ("pages", r"'b.parquet' cannot be read in row group 0 \(counted from 0\): "),
        ("text", "'b.parquet' is not a Parquet file; write one with"),
        ("empty", "'b.parquet' is empty"),
    ],
)
def test_damaged_files_are_named(kind: str, problem: str, tmp_path: Path) -> None:
    pq.write_table(numbers(100), tmp_path / "a.parquet")
    pq.write_table(numbers(100), tmp_path / "b.parquet", use_dictionary=False, write_page_checksum=True)
    damage(kind, tmp_path / "b.parquet")
    with pytest.raises(DataError, match=f"^data.parquet: {problem}"):
        opened(tmp_path).take(slice(None), ["a", "b", "y"])


@pytest.mark.parametrize("content", ["another", "shorter", "touched"])
def test_a_file_that_changes_is_found_when_it_is_read(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(numbers(400), path, row_group_size=100)
    table = opened(path)
    table.take(slice(0, 1), ["a"])
    if content == "another":
        pq.write_table(numbers(500, 3), path)
    elif content == "shorter":
        os.truncate(path, 10)
    else:
        os.utime(path, (1, 1))
    # What is held need not be read.
    table.take(slice(0, 1), ["a"])
    with pytest.raises(DataError, match=r"^data.parquet: 'a.parquet' has changed while it was used; restore the file, or submit"):
        table.take(slice(300, 301), ["a"])


def test_a_file_that_is_removed_is_read_on(tmp_path: Path) -> None:
    pq.write_table(numbers(10), tmp_path / "a.parquet")
    table = opened(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").unlink()
    assert table.take(slice(None), ["a"])["a"].values.tolist() == numbers(10)["a"].to_pylist()


def test_a_group_that_does_not_fit_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(numbers(100_000), tmp_path / "a.parquet")
    table = opened(tmp_path / "a.parquet")
    monkeypatch.setattr(data_memory, "memory", lambda: Memory(1 << 30, 1 << 20))
    monkeypatch.setattr(parquet._File, "read", lambda *_: pytest.fail("it was read"))
    with pytest.raises(MemoryLackError) as caught:
        table.take(slice(0, 1), ["a"])
    assert str(caught.value) == (
        "data.parquet: 'a.parquet': group 0 of 100,000 rows (counted from 0) needs 1.72 MiB of memory; this machine has 1.00 MiB "
        "available; write smaller row groups, with pyarrow.parquet.write_table(table, path, row_group_size=10000)"
    )


def test_a_job_learns_from_columns_of_all_types_by_groups(tmp_path: Path) -> None:
    table = MIXED.append_column("y", pa.array(np.arange(400) % 7, pa.int64()))
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=64)
    model = {"layers": [{"dense": {"units": 7}}], "loss": "softmax_cross_entropy", "dtype": "float32"}
    source = {"parquet": "a.parquet", "sha256": "0" * 64, "missing": "most_frequent", "ignore": ["nothing", "real", "large"]}
    spec = json_format.ParseDict({"model": model, "data": source, "seed": 3}, job_pb2.JobSpec())
    dataset = data.load(spec, lambda _: tmp_path / "a.parquet")
    labels = dataset.train.take(slice(0, 400))["y"]
    assert labels.tolist() == table["y"].to_pylist()
    assert "truth" in [column.name for column in dataset.preprocessing.table]


def test_a_nested_column_is_left_out_or_is_named(tmp_path: Path) -> None:
    table = numbers(30).add_column(0, "tags", pa.array([["x"]] * 30))
    pq.write_table(table, tmp_path / "a.parquet")
    model = {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error", "dtype": "float32"}
    spec = json_format.ParseDict({"model": model, "data": {"parquet": "a.parquet"}}, job_pb2.JobSpec())
    with pytest.raises(DataError, match=r"column 'tags' of 'a.parquet' holds list<element: string>, which cannot be"):
        data.load(spec, lambda _: tmp_path / "a.parquet")
    spec.data.ignore.append("tags")
    assert data.load(spec, lambda _: tmp_path / "a.parquet").train.schema["x"].shape == (2,)


@pytest.mark.parametrize("source", ["parquet", "arrow"])
def test_a_node_without_pyarrow_says_what_to_install(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    spec = json_format.ParseDict({"model": {"dtype": "float32"}, "data": {source: "a"}}, job_pb2.JobSpec())
    with pytest.raises(
        NodeError, match=rf"^data.{source}: pyarrow is not installed on this machine; pip install 'thalweg\[data\]'$"
    ):
        data.load(spec, lambda _: tmp_path / "a")


def framed(folder: Path, name: str | None = "key", rows: int = 40) -> Any:
    """A data frame with an index, which a file of it has, too."""
    frame = pd.DataFrame({"a": np.arange(rows) / 2, "y": np.arange(rows)}, index=pd.Index(np.arange(rows) + 1000, name=name))
    folder.mkdir(exist_ok=True)
    frame.to_parquet(folder / "a.parquet")
    frame.reset_index().rename(columns={"index": "key"}).to_feather(folder / "plain.feather")
    return frame


@pytest.mark.parametrize("name", ["key", None])
def test_the_index_of_a_data_frame_is_no_column_unless_it_is_named(name: str | None, tmp_path: Path) -> None:
    frame = framed(tmp_path, name)

    def loaded(**settings: Any) -> data.Dataset:
        job = {
            "model": {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error", "dtype": "float64"},
            "data": {"parquet": "a.parquet", **settings},
        }
        return data.load(json_format.ParseDict(job, job_pb2.JobSpec()), lambda _: tmp_path / "a.parquet")

    found = loaded()
    assert inputs(found.train).tolist() == [[value] for value in frame["a"]]
    assert targets(found.train).ravel().tolist() == frame["y"].tolist()
    # Predictions take the frame, the file, and rows that have the index as a column or do not.
    by_file = data.read_rows(tmp_path / "a.parquet", job_pb2.Data(parquet="a.parquet"), found.preprocessing)
    rows: list[object] = [frame, by_file, {"a": frame["a"]}]
    rows += [frame.reset_index()] if name else []
    for given in rows:
        prepared = data.prepare_table(given, found.preprocessing, np.dtype(np.float64))
        assert prepared is not None
        assert np.array_equal(np.asarray(prepared.x[:]), inputs(found.train))
    if name:
        assert inputs(loaded(features=["key", "a"]).train)[0].tolist() == [1000, 0]
        assert inputs(loaded(columns={"key": {"prepare": "min_max"}}).train)[-1].tolist() == [19.5, 1]
        assert targets(loaded(target="key").train).ravel()[:2].tolist() == [1000, 1001]
        held_out = loaded(validation={"fraction": 0.25, "time": "key"}).validation
        assert inputs(held_out)[:, 0].tolist() == (np.arange(30, 40) / 2).tolist()


def test_what_others_write_where_pandas_does_is_passed_over(tmp_path: Path) -> None:
    for told in (b"no JSON", b"[]", b'{"index_columns": 3}', b'{"index_columns": [{"kind": "range"}]}'):
        table = pa.table({"a": [1.0, 2.0], "y": [1, 2]}).replace_schema_metadata({b"pandas": told})
        pq.write_table(table, tmp_path / "a.parquet")
        columns = parquet.table([SourceFile("a.parquet", tmp_path / "a.parquet")], "a.parquet", "data.parquet").columns
        assert [(column.name, column.is_index) for column in columns] == [("a", False), ("y", False)]
