"""Data: reading, checking, preparing, splitting."""

import gc
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from tests.learning.batches import inputs, targets
from thalweg.contract import rules
from thalweg.contract.resources import Memory
from thalweg.learning import data
from thalweg.learning.data import DataError, Dataset, MemoryLackError
from thalweg.learning.data.order import MAX_PERMUTED, Bijection, Order, Permutation, arrangement
from thalweg.learning.data.preparation import split
from thalweg.learning.data.sources import SOURCES
from thalweg.learning.data.sources.builtins import BUILTINS
from thalweg.v1 import job_pb2


def load(path: Path | None = None, loss: str = "mean_squared_error", dtype: str = "float32", **source: Any) -> Dataset:
    model = {"layers": [{"dense": {"units": 1}}], "loss": loss, "dtype": dtype}
    spec = json_format.ParseDict({"model": model, "data": source, "seed": 7}, job_pb2.JobSpec())
    return data.load(spec, lambda _: path or Path("nowhere"))


@pytest.mark.parametrize(
    ("name", "labels"), [("and", [0, 0, 0, 1]), ("or", [0, 1, 1, 1]), ("nand", [1, 1, 1, 0]), ("xor", [0, 1, 1, 0])]
)
def test_gates(name: str, labels: list[int]) -> None:
    dataset = load(builtin=name)
    assert inputs(dataset.train).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert targets(dataset.train).tolist() == labels
    assert targets(dataset.train).dtype == np.float32


def test_digits() -> None:
    dataset = load(builtin="digits", loss="softmax_cross_entropy", validation_fraction=0.2)
    assert inputs(dataset.train).shape == (1438, 64)
    assert inputs(dataset.validation).shape == (359, 64)
    assert (inputs(dataset.train).min(), inputs(dataset.train).max()) == (0, 1)
    assert inputs(dataset.train).dtype == np.float32
    labels = np.concatenate([targets(dataset.train), targets(dataset.validation)])
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_threads_load_at_once() -> None:
    def yield_to_the_others(_phase: str, _info: dict[str, int]) -> None:
        time.sleep(0)

    thresholds = gc.get_threshold()
    gc.callbacks.append(yield_to_the_others)
    gc.set_threshold(20)
    try:
        with ThreadPoolExecutor(4) as threads:
            loaded = list(threads.map(lambda _: load(builtin="digits", loss="softmax_cross_entropy"), range(100)))
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(yield_to_the_others)
    assert all((inputs(dataset.train) == inputs(loaded[0].train)).all() for dataset in loaded)


def test_every_builtin_loads() -> None:
    for name in BUILTINS:
        assert len(inputs(load(builtin=name).train))


def test_standardization_is_that_of_the_training_samples(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(5, 3, (50, 2, 3))
    x[:, 0, 0] = 4  # a feature that never changes
    np.savez(tmp_path / "a.npz", x=x, y=np.zeros(50))
    dataset = load(tmp_path / "a.npz", npz="a.npz", dtype="float64", standardize=True, validation_fraction=0.3)
    assert inputs(dataset.train).shape == (35, 2, 3)
    np.testing.assert_allclose(inputs(dataset.train).mean(0), 0, atol=1e-12)
    scale = inputs(dataset.train).std(0)
    assert scale[0, 0] == 0
    np.testing.assert_allclose(scale.ravel()[1:], 1)
    assert inputs(dataset.validation).mean() != pytest.approx(0, abs=1e-6)
    assert len(dataset.preprocessing.mean) == 6


def test_more_features_than_a_message_holds_are_not_standardized(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 400, 400), np.uint8), y=np.zeros(2))
    assert inputs(load(tmp_path / "a.npz", npz="a.npz").train).shape == (2, 400, 400)
    with pytest.raises(DataError, match=r"^data\.standardize: a sample has 160,000 features; at most 131,072"):
        load(tmp_path / "a.npz", npz="a.npz", standardize=True)


def test_one_hot() -> None:
    assert targets(load(builtin="xor", one_hot=True).train).tolist() == [[1, 0], [0, 1], [0, 1], [1, 0]]


NAN = np.ones((9, 3))
NAN[5, 2] = np.nan
BAD_NPZ: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"x": NAN, "y": np.ones(9)}, {}, "x holds NaN or infinite values, 1 in all, the first at sample 5, feature 2"),
    ({"x": np.ones((9, 3))}, {}, "has no array y; it has 'x'"),
    ({"a": np.ones((9, 3))}, {}, "has no array x and no array y; it has 'a'"),
    ({"x": np.ones((9, 3)), "y": np.ones(8)}, {}, "x has 9 samples but y has 8"),
    ({"x": np.ones((0, 3)), "y": np.ones(0)}, {}, "has no samples"),
    ({"x": np.array(["a", "b"]), "y": np.ones(2)}, {}, "must hold real numbers"),
    ({"x": np.array([{}, {}]), "y": np.ones(2)}, {}, "holds Python objects in x; it must hold numbers"),
    (
        {"x": np.ones((2, 3)), "y": np.array([0.5, 1])},
        {"loss": "softmax_cross_entropy"},
        "y has 0.5 at sample 0 .* whole numbers",
    ),
    ({"x": np.ones((2, 3)), "y": np.array([1, -2])}, {"one_hot": True}, "y has -2 at sample 1"),
    ({"x": np.ones((2, 3)), "y": np.array([1, 10**9])}, {"one_hot": True}, "y has 1000000000 at sample 1 .* at most 99999"),
]


@pytest.mark.parametrize(("arrays", "settings", "message"), BAD_NPZ)
def test_a_bad_npz_file_is_told(arrays: dict[str, Any], settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=f"^data.npz: .*{message}"):
        load(tmp_path / "a.npz", npz="a.npz", **settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"no archive", r"is not a NumPy archive; write one with numpy\.savez"),
        (b"PK\x03\x04 broken", "is not a NumPy archive"),
    ],
)
def test_what_is_no_archive_is_told(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=rf"^data\.npz: 'a\.npz' {message}"):
        load(tmp_path / "a.npz", npz="a.npz")


def test_one_array_is_no_archive(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(DataError, match="is not a NumPy archive"):
        load(tmp_path / "a.npz", npz="a.npz")


def member(shape: object, dtype: str = "<f8", body: bytes = b"") -> bytes:
    """An array's file with any header."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


DECLARED: list[tuple[bytes, str]] = [
    (member((1 << 50, 4)), "is truncated: x needs 36,028,797,018,963,968 bytes but has"),
    (member((1 << 62, 1 << 62)), "is truncated"),
    (member((9, 1), body=bytes(71)), "is truncated: x needs 72 bytes but has 71"),
    (member((-4, 4)), r"declares the invalid shape \(-4, 4\) for x"),
    (member((1 << 62, 0)), "cannot be read as a NumPy archive: array is too big"),
    (member((2,), "<c16", bytes(32)), "holds elements of type complex128 in x; it must hold real numbers"),
    (member((2,), "<U9"), "holds elements of type <U9 in x"),
    (member("(" * 9000), "cannot be read as a NumPy archive"),
    (member((1,) * 5000), "cannot be read as a NumPy archive: Header info length .* is large"),
    (b"no array", "cannot be read as a NumPy archive: the magic string is not correct"),
    (b"\x93NUMPY\x03\x00", "holds x in a format that NumPy does not use for numbers"),
]


@pytest.mark.parametrize(("content", "message"), DECLARED)
def test_what_an_array_declares_is_checked_first(content: bytes, message: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
        archive.writestr("y.npy", member((1,), body=bytes(8)))
    with pytest.raises(DataError, match=rf"^data\.npz: 'a\.npz' {message}"):
        load(tmp_path / "a.npz", npz="a.npz")


def test_an_archive_of_another_method_is_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", member((1, 1), body=bytes(8)))
        archive.writestr("y.npy", member((1,), body=bytes(8)))
    with pytest.raises(DataError, match=r"^data\.npz: 'a\.npz' uses an unsupported compression method"):
        load(tmp_path / "a.npz", npz="a.npz")


def test_arrays_that_have_no_room_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some kilobytes unpack to megabytes, which must be in memory if they lie column by column."""
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((10, 100_000)).T, y=np.zeros(100_000, np.int8))
    assert (tmp_path / "a.npz").stat().st_size < 1 << 15
    monkeypatch.setattr("thalweg.learning.data.memory.memory", lambda: Memory(7 << 20, 7 << 20))
    with pytest.raises(
        MemoryLackError,
        match=r"data\.npz: 'a\.npz': x of shape \(100000, 10\) and type float64 needs .* MiB of memory; this machine has",
    ):
        load(tmp_path / "a.npz", npz="a.npz", dtype="float64")


def test_an_unknown_data_set_is_told() -> None:
    with pytest.raises(DataError, match=r"data\.builtin: unknown data set 'digit'; expected one of .*; did you mean 'digits'"):
        load(builtin="digit")


def test_a_split_that_leaves_nothing_is_told() -> None:
    with pytest.raises(DataError, match=r"data\.validation_fraction: 0\.1 of 4 samples is less than one"):
        load(builtin="xor", validation_fraction=0.1)


@given(st.integers(0, 2**62), st.integers(2, 300), st.floats(0, 0.99))
def test_a_split_is_a_partition_that_follows_from_the_seed(seed: int, samples: int, fraction: float) -> None:
    wanted = int(samples * Fraction(repr(fraction)))
    if fraction > 0 and wanted == 0:
        with pytest.raises(DataError):
            split(seed, samples, fraction)
        return
    train, validation = (part[:] for part in split(seed, samples, fraction))
    assert sorted([*train, *validation]) == list(range(samples))
    assert len(validation) == wanted
    assert all(np.array_equal(a, b[:]) for a, b in zip((train, validation), split(seed, samples, fraction), strict=True))


def test_sources_are_the_contracts() -> None:
    assert set(SOURCES) == set(rules.alternatives(job_pb2.Data, "source"))
    assert {"npz", "csv"} <= set(rules.files(job_pb2.Data, "source")) < set(SOURCES)
    assert rules.files(job_pb2.Initial, "source") == ["file"]


def order_of(samples: int, batch_size: int, microbatches: int, seed: int, order: str = "auto") -> Order:
    training = job_pb2.Training(batch_size=batch_size, microbatches=microbatches)
    return Order(job_pb2.JobSpec(seed=seed, data=job_pb2.Data(order=order), training=training), samples)


@pytest.mark.parametrize("kind", ["permuted", "computed"])
@given(st.integers(1, 60), st.integers(1, 70), st.integers(1, 9), st.integers(0, 99))
def test_each_epoch_uses_each_sample_once(kind: str, samples: int, batch_size: int, microbatches: int, seed: int) -> None:
    order = order_of(samples, batch_size, microbatches, seed, kind)
    for epoch in (0, 1):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        seen = []
        for step in steps:
            parts = [order.microbatch(step, m) for m in range(microbatches)]
            minibatch = [int(i) for indices, _ in parts for i in indices]
            assert {size for _, size in parts} == {len(minibatch)}
            assert 0 < len(minibatch) <= batch_size
            seen += minibatch
        assert sorted(seen) == list(range(samples))


@pytest.mark.parametrize("kind", ["permuted", "computed"])
def test_a_microbatch_does_not_depend_on_what_was_asked_before(kind: str) -> None:
    def ask(tasks: list[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
        order = order_of(50, 8, 3, 1, kind)
        return {task: order.microbatch(*task)[0].tolist() for task in tasks}

    tasks = [(step, m) for step in range(20) for m in range(3)]
    assert ask(tasks) == ask(tasks[::-1])
    assert ask([(0, 0)]) != ask([(7, 0)])


@pytest.mark.parametrize("samples", [1, 2, 3, 1000, 4096, 100_003])
def test_a_computed_order_is_one(samples: int) -> None:
    """Of all samples, without a trace of where they stand, and another one in each epoch and for each seed."""
    orders = [Bijection(samples, seed)(epoch, 0, samples) for seed, epoch in ((5, 0), (5, 1), (6, 0))]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(samples))
    if samples >= 1000:
        positions = np.arange(samples)
        for order in orders:
            # The correlation of independent numbers has a deviation of 1 / √samples.
            assert abs(np.corrcoef(order, positions)[0, 1]) < 4 / np.sqrt(samples)
            assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 4 / np.sqrt(samples)
            assert abs(np.count_nonzero(order[: samples // 2] < samples / 2) / samples - 0.25) < 2 / np.sqrt(samples)
        assert np.count_nonzero(orders[0] == orders[1]) < 10 > np.count_nonzero(orders[0] == orders[2])


def test_a_computed_order_takes_no_memory() -> None:
    many = 10**15
    last = Bijection(many, 0)(3, many - 5, many + 5)
    assert last.shape == (5,)
    assert last.min() >= 0
    assert last.max() < many
    assert last.max() > many // 1000


def test_orders_are_what_they_were() -> None:
    """The numbers that jobs were trained with: of another order the weights have other bits."""
    drawn = [2, 8, 6, 7, 1, 4, 9, 0, 3, 5]
    assert order_of(10, 10, 1, 3).minibatch(1).tolist() == drawn
    assert order_of(10, 10, 1, 3, "").minibatch(1).tolist() == drawn
    assert Bijection(10, 3)(1, 0, 10).tolist() == [6, 8, 5, 1, 0, 4, 9, 3, 7, 2]


def test_few_samples_are_permuted_and_many_computed() -> None:
    assert isinstance(arrangement("auto", MAX_PERMUTED, 0), Permutation)
    assert isinstance(arrangement("auto", MAX_PERMUTED + 1, 0), Bijection)
    # A job that was accepted before there was a choice keeps the order that it has.
    assert isinstance(arrangement("", MAX_PERMUTED + 1, 0), Permutation)
