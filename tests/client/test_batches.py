"""Batches that an iterator gives, as the data of a job."""

import gc
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.client.helpers import Cluster, names_in
from tests.end_to_end.cluster import running_server
from thalweg.client import Client, LocalError, ThalwegError, row_batches
from thalweg.client.arrays import GROUP_ROWS, write_arrays
from thalweg.client.batches import write_batches

X = np.random.default_rng(0).normal(size=(100, 2, 3)).astype(np.float32)
Y = np.arange(100) % 4


def pairs(x: Any = X, y: Any = Y, sizes: Sequence[int] = (30, 1, 0, 69)) -> Iterator[Any]:
    ends = np.cumsum(sizes)
    for start, end in zip(ends - sizes, ends, strict=True):
        yield x[start:end], y[start:end]


def in_folder(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ">f4", np.int16, bool])
def test_pairs_of_arrays_become_the_files_of_all_samples(dtype: Any, tmp_path: Path) -> None:
    x = np.asfortranarray((X > 0).astype(dtype))
    for name, array in (("x", x), ("y", Y)):
        np.save(tmp_path / f"{name}.npy", np.ascontiguousarray(array))
    for number, sizes in enumerate([(100,), (30, 1, 0, 69), (1,) * 100]):
        parts = write_batches(pairs(x, Y, sizes), in_folder(tmp_path, str(number)))
        assert isinstance(parts, dict)
        for name, path in parts.items():
            assert path.read_bytes() == (tmp_path / f"{name}.npy").read_bytes()


def test_lists_of_two_are_pairs_as_loaders_give_them(tmp_path: Path) -> None:
    batches: list[Any] = [[[[1.0], [2.0]], [0, 1]], [np.ones((1, 1)), np.array([1])]]
    parts = write_batches(iter(batches), tmp_path)
    assert isinstance(parts, dict)
    assert np.load(parts["x"]).tolist() == [[1], [2], [1]]
    assert np.load(parts["y"]).tolist() == [0, 1, 1]


ROWS = 2 * GROUP_ROWS + 1000
NUMBERS = np.arange(ROWS) * 0.5
WORDS = np.array(["Bern", "Basel", "Chur"], object)[np.arange(ROWS) % 3]


def parts_of_table(size: int) -> Iterator[Any]:
    for start in range(0, ROWS, size):
        yield {"a": NUMBERS[start : start + size], "b": WORDS[start : start + size]}


def test_parts_of_a_table_become_one_file_however_they_are_divided(tmp_path: Path) -> None:
    paths = [write_batches(parts_of_table(size), in_folder(tmp_path, str(size))) for size in (1000, GROUP_ROWS, 100_000, ROWS)]
    assert all(isinstance(path, Path) for path in paths)
    contents = [path.read_bytes() for path in paths if isinstance(path, Path)]
    assert len({*contents}) == 1
    found = pq.ParquetFile(pa.BufferReader(contents[0]))
    assert [found.metadata.row_group(group).num_rows for group in range(found.num_row_groups)] == [GROUP_ROWS, GROUP_ROWS, 1000]
    table = found.read()
    assert table.column("a").to_numpy().tolist() == NUMBERS.tolist()
    assert table.column("b").to_pylist() == WORDS.tolist()


def test_wide_rows_are_written_in_smaller_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_batches, "_GROUP_BYTES", 8000)
    path = write_batches(({"a": np.arange(500.0)} for _ in range(8)), tmp_path)
    metadata = pq.ParquetFile(path).metadata
    assert metadata.num_rows == 4000
    assert 2 <= metadata.num_row_groups <= 8


def test_all_kinds_of_rows_are_taken(tmp_path: Path) -> None:
    given = pd.DataFrame({"n": [1, 2, 3, 4], "w": pd.Categorical(["a", "b", "c", "b"])})
    kinds: dict[str, Callable[[Any], Any]] = {
        "pandas": lambda part: part,
        "arrow table": lambda part: pa.Table.from_pandas(part, preserve_index=False),
        "record batch": lambda part: pa.RecordBatch.from_pandas(part, preserve_index=False),
        "rows": lambda part: part.to_dict("records"),
        "columns": lambda part: {"n": part["n"].to_numpy(), "w": part["w"].astype(str).tolist()},
        "columns in another order": lambda part: {"w": part["w"].astype(str).tolist(), "n": part["n"].to_numpy()},
        "polars": lambda part: pl.DataFrame({"n": part["n"].to_list(), "w": part["w"].to_list()}),
    }
    for name, kind in kinds.items():
        # The categories of the parts differ.
        parts = [kind(part.assign(w=part["w"].cat.remove_unused_categories())) for part in (given[:1], given[1:])]
        path = write_batches(iter(parts), in_folder(tmp_path, name))
        assert pq.read_table(path).select(["n", "w"]).to_pydict() == {"n": [1, 2, 3, 4], "w": ["a", "b", "c", "b"]}
    reader = pa.RecordBatchReader.from_batches(
        pa.schema([("n", pa.int64())]), [pa.record_batch({"n": [1]}), pa.record_batch({"n": [2]})]
    )
    assert pq.read_table(write_batches(reader, in_folder(tmp_path, "reader"))).to_pydict() == {"n": [1, 2]}


def test_a_batch_in_which_all_cells_of_a_column_are_missing_has_its_type(tmp_path: Path) -> None:
    path = write_batches(iter([{"a": [1.5], "b": ["x"]}, {"a": [None], "b": [None]}]), tmp_path)
    assert pq.read_table(path).to_pydict() == {"a": [1.5, None], "b": ["x", None]}


def test_programs_may_reuse_the_memory_of_a_batch(tmp_path: Path) -> None:
    def reused() -> Iterator[Any]:
        memory = np.empty(10)
        for number in range(5):
            memory[:] = number
            yield {"a": memory}

    path = write_batches(reused(), tmp_path)
    assert pq.read_table(path).column("a").to_pylist() == np.repeat(np.arange(5.0), 10).tolist()


ONE = (np.ones((2, 3)), np.zeros(2))
TABLE = {"a": [1, 2], "b": ["x", "y"]}


@pytest.mark.parametrize(
    ("batches", "problem"),
    [
        ([], "the iterator gives no batches; one that was used before is empty"),
        ([(np.ones((0, 3)), np.ones(0))], "no batch has any samples"),
        ([{"a": []}, {"a": []}], "no batch has any samples"),
        (
            [ONE, ONE, (np.ones((2, 4)), np.zeros(2))],
            "batch 2: x has samples of shape (4,), but in batch 0 of shape (3,); all must",
        ),
        (
            [ONE, (np.ones((2, 3), "float32"), np.zeros(2))],
            "batch 1: x holds float32, but in batch 0 float64; convert all batches",
        ),
        ([ONE, (np.ones((2, 3)), np.zeros(2, int))], "batch 1: y holds int64, but in batch 0 float64"),
        ([ONE, (np.ones((2, 3)), np.zeros((2, 1)))], "batch 1: y has samples of shape (1,), but in batch 0 of shape ()"),
        ([ONE, (np.ones((2, 3)), np.zeros(3))], "batch 1: x has 2 samples but y has 3; the counts must match"),
        (
            [ONE, (np.full((2, 3), np.nan), np.zeros(2))],
            "batch 1: x holds NaN or infinite values, 6 in all, the first at sample 0",
        ),
        ([(1, 2)], "batch 0: x is a single number; its first axis must be the samples"),
        ([(["a"], [1])], "batch 0: x holds elements of type <U1; it must hold real numbers"),
        ([ONE, TABLE], "batch 1 is a part of a table, but batch 0 is a pair of arrays; all batches must be of one kind"),
        ([TABLE, ONE], "batch 1 is a pair of arrays, but batch 0 is a part of a table"),
        ([ONE, None], "batch 1 is of type NoneType; a batch is a pair of arrays x and y, a dictionary of columns"),
        ([np.ones(3)], "batch 0 is of type ndarray; a batch is"),
        ([TABLE, {"a": [1]}], "batch 1 has no column 'b', which batch 0 has"),
        ([TABLE, TABLE | {"c": [1, 2]}], "batch 1 has the column 'c', which batch 0 has not"),
        (
            [TABLE, {"a": [1.5], "b": ["x"]}],
            "batch 1: column 'a' holds double, but in batch 0 int64; convert all batches to one type",
        ),
        ([TABLE, {"a": [1, "x"], "b": ["x", "y"]}], "batch 1: the table cannot be written as Parquet: Could not convert 'x'"),
        ([pa.table([[1], [2]], names=["a", "a"])], "batch 0 has two columns of one name; rename one of them"),
    ],
)
def test_what_is_wrong_with_a_batch_is_told(batches: list[Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ThalwegError) as caught:
        write_batches(iter(batches), tmp_path)
    assert caught.value.reason == "INVALID_ARGUMENT"
    assert str(caught.value).startswith(f"data: {problem}")


@pytest.mark.parametrize(
    ("name", "batch"), [("y.npy", (X, Y)), ("table.parquet", {"a": np.random.default_rng(0).normal(size=ROWS)})]
)
def test_a_full_disk_is_told(name: str, batch: Any, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(LocalError) as caught:
        write_batches(iter([batch]), tmp_path)
    problem = f"cannot write the batches to {tmp_path}: No space left on device; TMPDIR can name another place"
    assert str(caught.value) == problem
    # What is left to be closed does not fail later.
    del caught
    gc.collect()


class Seen:
    """An iterator that knows how many of its batches are alive, and counts bytes that Arrow holds."""

    def __init__(self, number: int, rows: int, columns: bool) -> None:
        self._number = number
        self._rows = rows
        self._columns = columns
        self._given: list[weakref.ref[Any]] = []
        self.most_alive = 0
        self.most_in_arrow = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.most_alive = max(self.most_alive, sum(given() is not None for given in self._given))
        self.most_in_arrow = max(self.most_in_arrow, pa.total_allocated_bytes())
        if len(self._given) == self._number:
            raise StopIteration
        x = np.random.default_rng(len(self._given)).normal(size=self._rows)
        self._given.append(weakref.ref(x))
        return {"a": x} if self._columns else (x[:, None], np.zeros(self._rows, np.int8))


@pytest.mark.parametrize("columns", [False, True])
def test_memory_holds_one_batch(columns: bool, tmp_path: Path) -> None:
    batch_bytes = 8 * GROUP_ROWS
    # Imports are not counted.
    write_batches(Seen(1, 10, columns), in_folder(tmp_path, "first"))
    gc.collect()
    batches, before = Seen(60, GROUP_ROWS, columns), pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        write_batches(batches, in_folder(tmp_path, "all"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert batches.most_alive == 0
    assert peak < 6 * batch_bytes
    # What the writer of Parquet takes does not grow.
    assert batches.most_in_arrow - before < 16 * batch_bytes


def test_a_job_learns_from_batches_as_from_all_samples(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = in_folder(tmp_path, "temporary")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    x, y = X[:, 0, :2], Y % 2
    settings = {"training.epochs": 5, "training.batch_size": 20}
    jobs = [
        cluster.client.submit("xor", settings, data=(x, y)),
        cluster.client.submit("xor", settings, data=pairs(x, y)),
        cluster.client.submit("xor", settings, data=pairs(x, y, (50, 50))),
    ]
    assert jobs[1].spec.data.npy.x == "x.npy"
    assert jobs[1].spec.data.sha256 == jobs[2].spec.data.sha256
    assert len({job.wait().weights_sha256 for job in jobs}) == 1
    table: dict[str, Any] = {"a": x[:, 0], "b": x[:, 1], "side": y}
    parts = ({name: column[start : start + 7] for name, column in table.items()} for start in range(0, 100, 7))
    jobs = [cluster.client.submit("xor", settings, data=data) for data in (table, parts)]
    assert jobs[1].spec.data.parquet == "table.parquet"
    assert len({job.wait().weights_sha256 for job in jobs}) == 1
    assert names_in(temporary) == []


def test_what_an_iterator_raises_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = in_folder(tmp_path, "temporary")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    def failing() -> Iterator[Any]:
        yield ONE
        raise OSError(5, "the tape is torn")

    with running_server(tmp_path / "server") as server, Client(server.address) as client:
        with pytest.raises(OSError, match="the tape is torn"):
            client.submit("xor", data=failing())
        assert client.jobs() == []
    assert names_in(temporary) == []


@pytest.mark.parametrize("batches", [[pd.DataFrame({"a": [1, 2]})] * 3, [ONE] * 3, ({"a": [1]},) * 3])
def test_a_list_of_batches_leads_to_an_iterator(batches: Any, tmp_path: Path) -> None:
    with pytest.raises(ThalwegError, match=r"of a (list|tuple) of batches, .*, give iter\(\.\.\.\) of it$"):
        write_arrays(batches, tmp_path)
