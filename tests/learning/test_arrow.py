"""Arrow's files and Feather's: record batches are groups, and what is not compressed is not copied."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather

from tests.learning.parquets import MIXED, ROWS, expected, numbers, plain
from thalweg.contract.resources import Memory
from thalweg.learning import data
from thalweg.learning.data import DataError, MemoryLackError
from thalweg.learning.data import memory as data_memory
from thalweg.learning.data.sources import arrow
from thalweg.learning.data.sources.files import SourceFile
from thalweg.learning.data.sources.grouped import GroupedTable
from thalweg.v1 import job_pb2

FIELD = "data.arrow"


def opened(*paths: Path) -> GroupedTable:
    """The table of files."""
    return arrow.table([SourceFile(path.name, path) for path in paths], paths[0].name, FIELD)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_cells_are_those_of_the_file(compression: str, rows: str, tmp_path: Path) -> None:
    feather.write_feather(MIXED, tmp_path / "a.feather", compression=compression, chunksize=100)
    chosen = ROWS[rows]
    indices = chosen if isinstance(chosen, slice) else np.array(chosen, np.intp)
    table = opened(tmp_path / "a.feather")
    assert list(table.groups) == [100, 200, 300, 400]
    for column, cells in table.take(indices, MIXED.column_names).items():
        wanted = expected(column, MIXED)
        assert plain(cells) == (wanted[indices] if isinstance(indices, slice) else [wanted[row] for row in indices])


def test_files_follow_one_another(tmp_path: Path) -> None:
    for number in range(3):
        with pa.OSFile(str(tmp_path / f"{number}.arrow"), "wb") as file, pa.ipc.new_file(file, numbers(0).schema) as writer:
            for batch in numbers(10, number).to_batches(max_chunksize=4):
                writer.write_batch(batch)
    table = opened(*sorted(tmp_path.glob("*.arrow")))
    assert list(table.groups) == [4, 8, 10, 14, 18, 20, 24, 28, 30]
    wanted = pa.concat_tables([numbers(10, number) for number in range(3)])["y"].to_pylist()
    assert table.take(slice(7, 23), ["y"])["y"].values.tolist() == wanted[7:23]
    assert table.where(21) == "row 1 (counted from 0) of 2.arrow"


def test_words_of_all_batches_are_found(tmp_path: Path) -> None:
    # Batches of one file share a dictionary.
    words = [f"word {index % 37}" for index in range(200)]
    table = pa.table({"plain": words, "codes": pa.array(words).dictionary_encode()})
    feather.write_feather(table, tmp_path / "a.feather", chunksize=30)
    for cells in opened(tmp_path / "a.feather").take(slice(None), ["plain", "codes"]).values():
        assert plain(cells) == words


def test_numbers_that_are_not_compressed_are_not_copied(tmp_path: Path) -> None:
    feather.write_feather(numbers(100_000), tmp_path / "a.feather", compression="uncompressed", chunksize=100_000)
    table = opened(tmp_path / "a.feather")
    before = pa.total_allocated_bytes()
    values = table._cells(0, ("a",))["a"].values
    assert pa.total_allocated_bytes() - before < 10_000
    assert not values.flags.owndata
    assert not values.flags.writeable
    assert values.tolist() == numbers(100_000)["a"].to_pylist()


def test_what_is_not_copied_needs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feather.write_feather(numbers(100_000), tmp_path / "a.feather", compression="uncompressed", chunksize=100_000)
    feather.write_feather(numbers(100_000), tmp_path / "b.feather", compression="lz4", chunksize=100_000)
    monkeypatch.setattr(data_memory, "memory", lambda: Memory(1 << 30, 1 << 20))
    assert len(opened(tmp_path / "a.feather").take(slice(0, 1), ["a", "y"])) == 2
    with pytest.raises(MemoryLackError) as caught:
        opened(tmp_path / "b.feather").take(slice(0, 1), ["a"])
    assert str(caught.value) == (
        "data.arrow: 'b.feather': group 0 of 100,000 rows (counted from 0) needs 1.72 MiB of memory; this machine has 1.00 MiB "
        "available; write smaller batches, as with pyarrow.feather.write_feather(table, path, chunksize=10000)"
    )


@pytest.mark.parametrize("change", ["touched", "shorter", "rewritten"])
def test_a_file_that_changes_is_found_also_where_it_is_held(change: str, tmp_path: Path) -> None:
    path = tmp_path / "a.feather"
    feather.write_feather(numbers(1000), path, compression="uncompressed")
    table = opened(path)
    table.take(slice(0, 1), ["a"])
    match change:
        case "touched":
            os.utime(path, (1, 1))
        case "shorter":
            os.truncate(path, 5)
        case "rewritten":
            path.write_bytes(bytes(path.stat().st_size))
            os.utime(path, (1, 1))
    with pytest.raises(DataError, match=r"^data.arrow: 'a.feather' has changed while it was used"):
        table.take(slice(0, 1), ["a"])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"a,b\n1,2\n", "is not an Arrow file"),
        (b"FEA1" + bytes(40), "is of version 1 of Feather"),
        (b"PAR1" + bytes(40), "is a Parquet file; give it as data.parquet"),
        (b"\xff\xff\xff\xff" + bytes(40), "is a stream of Arrow, not a file"),
        (b"ARROW1\0\0" + bytes(40), "is truncated"),
        (b"ARROW1\0\0" + bytes(40) + b"ARROW1", "cannot be read as an Arrow file"),
    ],
)
def test_other_files_are_errors(content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(content)
    with pytest.raises(DataError, match=f"^data.arrow: 'a.arrow' {problem}"):
        opened(tmp_path / "a.arrow")


def test_positions_of_words_that_lead_elsewhere_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.feather"
    column = pa.array(["red", "blue"] * 50).dictionary_encode()
    feather.write_feather(pa.table({"c": column}), path, compression="uncompressed")
    content = path.read_bytes()
    positions = np.array(column.indices).tobytes()
    assert content.count(positions) == 1
    path.write_bytes(content.replace(positions, np.full(100, 1 << 20, np.int32).tobytes()))
    with pytest.raises(DataError, match=r"cannot be read in record batch 0 \(counted from 0\)"):
        opened(path).take(slice(None), ["c"])


def test_names_that_are_no_text_are_an_error(tmp_path: Path) -> None:
    feather.write_feather(pa.table({"name": [1.0]}), tmp_path / "a.feather", compression="uncompressed")
    content = (tmp_path / "a.feather").read_bytes()
    (tmp_path / "a.feather").write_bytes(content.replace(b"name", b"n\xffme"))
    with pytest.raises(DataError, match=r"^data.arrow: 'a.feather' cannot be read as an Arrow file: 'utf-8' codec"):
        opened(tmp_path / "a.feather")


def test_rows_to_predict_from_may_be_in_a_file_of_arrow(tmp_path: Path) -> None:
    feather.write_feather(MIXED, tmp_path / "rows")
    rows = data.read_rows(tmp_path / "rows", job_pb2.Data(csv="a.csv"), job_pb2.Preprocessing(columns=["real"]))
    assert rows is not None
    assert plain(rows.take(slice(None), ["real"])["real"]) == MIXED["real"].to_pylist()
