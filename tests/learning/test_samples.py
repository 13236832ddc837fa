"""Data that is larger than memory: rows that stay in their file, blocks, computed splits, integers that stay integers."""

import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.learning.batches import inputs, targets
from thalweg.learning import data
from thalweg.learning.data import DataError, Dataset
from thalweg.learning.data.order import MAX_PERMUTED
from thalweg.learning.data.preparation import split, standardization
from thalweg.learning.data.preparation.splitting import Drawn, Others
from thalweg.learning.data.rows import FileRows, Rows, Selected
from thalweg.learning.data.samples import blocks
from thalweg.learning.data.sources.npz import load_rows
from thalweg.v1 import job_pb2


def load(path: Path, loss: str = "mean_squared_error", dtype: str = "float32", **source: Any) -> Dataset:
    model = {"layers": [{"dense": {"units": 1}}], "loss": loss, "dtype": dtype}
    spec = json_format.ParseDict({"model": model, "data": {"order": "auto"} | source, "seed": 7}, job_pb2.JobSpec())
    return data.load(spec, lambda _: path)


def numbers(dtype: str, shape: tuple[int, ...], seed: int = 0) -> NDArray[Any]:
    generator, kind = np.random.default_rng(seed), np.dtype(dtype)
    if kind.kind == "f":
        return generator.normal(3, 100, shape).astype(kind)
    if kind.kind == "b":
        return generator.random(shape) > 0.5
    info = np.iinfo(kind)
    return generator.integers(info.min, info.max, shape, kind, endpoint=True)


def plainly(x: NDArray[Any]) -> tuple[list[float], list[float]]:
    """Mean and deviation as NumPy computes them of one array in memory, squares by 1,024."""
    mean = np.mean(x, axis=0, dtype=np.float64)
    squares = np.zeros(mean.shape)
    for start in range(0, len(x), 1024):
        squares += np.sum((x[start : start + 1024].astype(np.float64) - mean) ** 2, axis=0)
    constant = x.min(axis=0) == x.max(axis=0)
    scale = np.sqrt(squares / len(x))
    mean, scale = np.where(constant, x[0], mean), np.where(constant | (scale == 0), 1, scale)
    return mean.ravel().tolist(), scale.ravel().tolist()


@pytest.mark.parametrize("block_bytes", [1, 40_000, 1 << 20])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int8", "uint8", "int64", "uint64", "bool"])
@pytest.mark.parametrize("sample", [(1,), (2,), (7,), (64,), (1, 1), (3, 1, 5), (1100,)])
def test_statistics_by_blocks_have_the_bits_of_all_at_once(
    sample: tuple[int, ...], dtype: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thalweg.learning.data.rows.BLOCK_BYTES", block_bytes)
    x = numbers(dtype, (2500, *sample))
    chosen = np.sort(np.random.default_rng(1).permutation(len(x))[500:])
    with np.errstate(over="ignore"):
        wanted = plainly(x[chosen])
        for rows in (x, np.asfortranarray(x)):
            found = standardization(Selected(rows, chosen))
            assert (list(found.mean), list(found.scale)) == wanted


def test_a_column_by_blocks_is_close_to_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thalweg.learning.data.rows.BLOCK_BYTES", 4096)
    x = numbers("float64", (20_000, 1))
    found, (mean, scale) = standardization(x, whole=False), plainly(x)
    assert [*found.mean, *found.scale] == pytest.approx([*mean, *scale], rel=1e-12)


def test_a_constant_feature_is_shifted_to_zero_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thalweg.learning.data.rows.BLOCK_BYTES", 64)
    x = np.column_stack([np.full(1000, 0.1), np.arange(1000)])
    found = standardization(x)
    assert (found.mean[0], found.scale[0]) == (0.1, 1)


@given(st.integers(0, 2**64 - 1), st.integers(2, 400), st.data())
def test_a_computed_split_is_a_partition_in_rising_order(key: int, samples: int, drawn: st.DataObject) -> None:
    few = Drawn(samples, drawn.draw(st.integers(0, samples // 2)), np.uint64(key))
    others = Others(few)
    assert sorted([*few[:], *others[:]]) == list(range(samples))
    for part in (few, others):
        whole = part[:]
        assert np.all(np.diff(whole) > 0)
        assert len(part) == len(whole)
        asked = np.array(drawn.draw(st.lists(st.integers(0, max(0, len(part) - 1)), max_size=9 if len(part) else 0)), np.intp)
        assert part[asked].tolist() == whole[asked].tolist()
        assert part[1:5].tolist() == whole[1:5].tolist()


def test_of_each_part_of_a_computed_split_any_sample_may_be_drawn() -> None:
    """Also where the data repeats itself as often as samples are drawn."""
    drawn = Drawn(100_000, 10_000, np.uint64(5))[:]
    assert np.bincount(drawn % 10, minlength=10) == pytest.approx(np.full(10, 1000), abs=200)
    assert np.array_equal(drawn // 10, np.arange(10_000))
    assert not np.array_equal(drawn, Drawn(100_000, 10_000, np.uint64(6))[:])


def test_many_samples_are_split_without_memory() -> None:
    many = 3 * 10**9
    train, validation = split(3, many, 0.3, "auto")
    assert (len(train), len(validation)) == (2_100_000_000, 900_000_000)
    last = np.sort(np.concatenate([train[len(train) - 7 :], validation[len(validation) - 3 :]]))
    assert last.tolist() == list(range(many - 10, many))
    train, validation = split(3, many, 0.9, "auto")
    assert (len(train), len(validation)) == (300_000_000, 2_700_000_000)
    train, validation = split(3, many, 0, "auto")
    assert (len(train), len(validation), train[many - 2 :].tolist()) == (many, 0, [many - 2, many - 1])
    with pytest.raises(DataError, match=r"data: has 10,000,000,000 samples; at most 4,294,967,296"):
        split(3, 10**10, 0.1, "auto")


def test_few_samples_are_split_by_a_permutation_and_many_are_not() -> None:
    assert isinstance(split(0, MAX_PERMUTED, 0.1, "auto")[0], np.ndarray)
    assert isinstance(split(0, MAX_PERMUTED + 1, 0.1, "auto")[0], Others)
    for order in ("permuted", ""):
        assert isinstance(split(0, MAX_PERMUTED + 1, 0.1, order)[0], np.ndarray)
    # The numbers that jobs were trained with: of another split the weights have other bits.
    train, validation = split(7, 10, 0.3, "auto")
    assert (train[:].tolist(), validation[:].tolist()) == ([0, 1, 2, 3, 4, 7, 9], [5, 6, 8])
    assert split(7, MAX_PERMUTED + 1, 0.1, "auto")[1][:5].tolist() == [9, 13, 29, 37, 44]


@pytest.mark.parametrize("dtype", ["float32", ">f8", "int8", "uint64", "bool"])
@pytest.mark.parametrize("sample", [(), (1,), (3, 5), (0,)])
def test_rows_in_a_file_are_those_of_the_array(sample: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    x = numbers(np.dtype(dtype).newbyteorder("=").name, (50, *sample)).astype(dtype)
    np.savez(tmp_path / "a.npz", y=np.ones(3), x=x)
    (rows,) = load_rows(tmp_path / "a.npz", "data.npz", "a.npz", ["x"])
    assert isinstance(rows, FileRows)
    assert (rows.shape, rows.dtype, len(rows)) == (x.shape, x.dtype, 50)
    (tmp_path / "a.npz").unlink()
    for indices in (slice(None), slice(3, 9), slice(9, 3), np.array([7, 8, 9, 3, 3, 49, 0]), np.empty(0, np.intp)):
        assert np.array_equal(rows[indices], x[indices])
        assert rows[indices].dtype == x.dtype


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_that_do_not_lie_in_their_file_row_by_row_are_read(save: Any, order: str, tmp_path: Path) -> None:
    x = np.asarray(numbers("float64", (20, 3)), order=order)  # type: ignore[call-overload]
    save(tmp_path / "a.npz", x=x)
    (rows,) = load_rows(tmp_path / "a.npz", "data.npz", "a.npz", ["x"])
    assert isinstance(rows, FileRows if (save, order) == (np.savez, "C") else np.ndarray)
    assert np.array_equal(rows[:], x)


def test_a_file_that_changes_while_it_is_used_is_told(tmp_path: Path) -> None:
    def opened() -> Rows:
        np.savez(tmp_path / "a.npz", x=numbers("float64", (20, 3)))
        return load_rows(tmp_path / "a.npz", "data.npz", "a.npz", ["x"])[0]

    rows = opened()
    rows[:]
    os.truncate(tmp_path / "a.npz", 200)
    with pytest.raises(DataError, match=r"^data\.npz: 'a\.npz' has changed while it was used; restore the file"):
        rows[:]
    rows = opened()
    with (tmp_path / "a.npz").open("r+b") as file:
        file.seek(200)
        file.write(b"other")
    os.utime(tmp_path / "a.npz", ns=(0, 0))
    with pytest.raises(DataError, match="has changed"):
        rows[np.array([0])]


def test_a_damaged_array_is_told_though_it_stays_in_its_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((9, 3)), y=np.ones(9))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(np.float64(1).tobytes() * 9)] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"^data\.npz: 'a\.npz' cannot be read as a NumPy archive: Bad CRC-32"):
        load(tmp_path / "a.npz", npz="a.npz")


def same(first: Dataset, second: Dataset) -> bool:
    parts = zip((first.train, first.validation), (second.train, second.validation), strict=True)
    return first.preprocessing == second.preprocessing and all(
        a.schema == b.schema and inputs(a).tobytes() == inputs(b).tobytes() and targets(a).tobytes() == targets(b).tobytes()
        for a, b in parts
    )


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize(
    ("loss", "one_hot"), [("mean_squared_error", False), ("softmax_cross_entropy", False), ("mean_squared_error", True)]
)
@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_samples_are_the_same_whether_they_are_held_or_not(
    kind: str, loss: str, one_hot: bool, standardize: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = numbers("float64", (300, 4)), np.random.default_rng(2).integers(0, 5, 300)
    file = tmp_path / f"a.{kind}"
    if kind == "npz":
        np.savez(file, x=x, y=y)
    else:
        np.savetxt(file, np.column_stack([x, y]), "%.17g", ",", header="a,b,c,d,y", comments="")
    settings: dict[str, Any] = {kind: file.name, "standardize": standardize, "one_hot": one_hot, "validation_fraction": 0.2}
    whole = load(file, loss, **settings)
    monkeypatch.setattr("thalweg.learning.data.memory.MAX_HELD", 0)
    monkeypatch.setattr("thalweg.learning.data.rows.BLOCK_BYTES", 500)
    monkeypatch.setattr("thalweg.learning.data.samples.BLOCK_BYTES", 500)
    parts = load(file, loss, **settings)
    assert same(whole, parts)
    train, order = parts.train, np.random.default_rng(3).permutation(240)
    out = {name: np.empty((240, *field.shape), field.dtype) for name, field in train.schema.items()}
    assert train.take(order, out) is out
    assert all(np.array_equal(out[name], whole.train.take(order)[name]) for name in out)
    assert len([*blocks(train)]) >= 10


def test_wrong_samples_are_counted_from_the_first_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thalweg.learning.data.rows.BLOCK_BYTES", 64)
    x = np.ones((40, 3))
    x[7, 1] = x[31, 2] = np.nan
    np.savez(tmp_path / "a.npz", x=x, y=np.ones(40))
    with pytest.raises(DataError, match="x holds NaN or infinite values, 2 in all, the first at sample 7, feature 1"):
        load(tmp_path / "a.npz", npz="a.npz")
    np.savez(tmp_path / "a.npz", x=np.ones((40, 3)), y=np.arange(40) / np.array([1] * 33 + [2] * 7))
    with pytest.raises(DataError, match=r"y has 16\.5 at sample 33 "):
        load(tmp_path / "a.npz", "softmax_cross_entropy", npz="a.npz")


def test_the_memory_of_data_does_not_grow_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From an archive that is not compressed: loaded, standardized, split and taken from, 64 MiB take what 16 MiB take."""
    monkeypatch.setattr("thalweg.learning.data.memory.MAX_HELD", 0)

    def peak(samples: int) -> int:
        np.savez(tmp_path / "a.npz", x=numbers("uint8", (samples, 1024)), y=np.arange(samples) % 10)
        tracemalloc.start()
        try:
            settings: dict[str, Any] = {"npz": "a.npz", "standardize": True, "validation_fraction": 0.25}
            dataset = load(tmp_path / "a.npz", "softmax_cross_entropy", **settings)
            for part in (dataset.train, dataset.validation):
                for where in blocks(part):
                    assert part.take(where)["x"].dtype == np.float32
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak(16 << 10), peak(64 << 10)
    # What is kept of each sample is its number: 8 bytes, a few times over while they are sorted.
    assert large - small < 48 * (48 << 10)
    assert large < 16 << 20


@pytest.mark.parametrize("most", [0, 1 << 20])
@pytest.mark.parametrize("dtype", ["int8", "int64", "uint16", "bool", ">i2"])
def test_integers_stay_integers(dtype: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thalweg.learning.data.memory.MAX_HELD", most)
    x = numbers(np.dtype(dtype).newbyteorder("=").name, (50, 4)).astype(dtype)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(50))
    dataset = load(tmp_path / "a.npz", npz="a.npz")
    assert inputs(dataset.train).dtype == dataset.schema["x"].dtype == x.dtype.newbyteorder("=")
    assert np.array_equal(inputs(dataset.train), x)
    assert inputs(load(tmp_path / "a.npz", npz="a.npz", standardize=True).train).dtype == np.float32
