"""Tables: which columns are used, what each becomes, and what is fitted to the training samples."""

import datetime
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.learning.batches import inputs, targets
from thalweg.learning import data
from thalweg.learning.data import DataError, Dataset, Temporary
from thalweg.learning.data.frames import MemoryTable, table_of
from thalweg.learning.data.preparation import in_own_units, prepare_table
from thalweg.learning.data.preparation.features import bucket
from thalweg.learning.data.preparation.kept import Kept, bitmap
from thalweg.learning.data.rows import Indices
from thalweg.learning.data.sources import SOURCES
from thalweg.learning.data.tables import Cells, Table
from thalweg.v1 import job_pb2

Columns = Mapping[str, Any]
PEOPLE: Columns = {
    "age": [20, 30, None, 50, 40, 30],
    "city": ["Bonn", "Ulm", "Ulm", None, "Bonn", "Ulm"],
    "member": [True, False, None, True, True, False],
    "label": ["yes", "no", "yes", "no", "yes", "no"],
}


class Grouped:
    """A table that says that it is read by groups, and counts what is taken."""

    def __init__(self, table: MemoryTable, ends: Sequence[int]) -> None:
        self._table = table
        self.name, self.columns, self.groups = table.name, table.columns, ends
        self.cells = 0

    def __len__(self) -> int:
        return len(self._table)

    def take(self, indices: Indices, names: Sequence[str]) -> Mapping[str, Cells]:
        found = self._table.take(indices, names)
        self.cells += sum(len(cells.values) for cells in found.values())
        return found

    def where(self, row: int) -> str:
        return self._table.where(row)


def spec_of(loss: str = "mean_squared_error", dtype: str = "float64", **settings: Any) -> job_pb2.JobSpec:
    model = {"layers": [{"dense": {"units": 1}}], "loss": loss, "dtype": dtype}
    source = {"csv": "a.csv", "order": "auto"} | settings
    return json_format.ParseDict({"model": model, "data": source, "seed": 7}, job_pb2.JobSpec())


def load(given: Columns | Table, /, loss: str = "mean_squared_error", dtype: str = "float64", **settings: Any) -> Dataset:
    """The data of a job whose source gives a table."""
    table = table_of(given, "people") if isinstance(given, Mapping) else given
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "csv", lambda *_: table)
        return data.load(spec_of(loss, dtype, **settings), lambda _: Path())


def features(given: Columns, /, **settings: Any) -> list[list[float]]:
    """The features of a table whose last column, added here, is a target that does not matter."""
    count = len(next(iter(given.values())))
    loaded = load({**given, "y": np.arange(count)}, **settings)
    found: list[list[float]] = inputs(loaded.train).tolist()
    return found


def problem(given: Columns | Table, /, loss: str = "mean_squared_error", **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(given, loss, **settings)
    return str(caught.value)


def test_a_table_with_text_and_holes_becomes_features_and_classes() -> None:
    columns = {"age": {"missing": "median", "prepare": "min_max"}, "city": {"missing": "most_frequent"}}
    loaded = load(PEOPLE, "softmax_cross_entropy", missing="mean", columns=columns)
    assert inputs(loaded.train).tolist() == [
        [0, 1, 0, 1],
        [1 / 3, 0, 1, 0],
        [1 / 3, 0, 1, 1],
        [1, 0, 1, 1],
        [2 / 3, 1, 0, 1],
        [1 / 3, 0, 1, 0],
    ]
    assert targets(loaded.train).tolist() == [1, 0, 1, 0, 1, 0]
    assert targets(loaded.train).dtype == np.int64
    found = loaded.preprocessing
    assert [(column.name, column.type, column.prepare) for column in found.table] == [
        ("age", "number", "min_max"),
        ("city", "text", "one_hot"),
        ("member", "boolean", "none"),
    ]
    assert (found.table[0].fill, found.table[1].fill_text, list(found.table[1].categories)) == (30, "Ulm", ["Bonn", "Ulm"])
    assert [(target.name, list(target.classes)) for target in found.targets] == [("label", ["no", "yes"])]
    assert (list(found.shape), found.dtype, list(found.columns)) == ([4], "float64", [])


def test_missing_values_are_an_error_that_counts_them_and_says_what_to_write() -> None:
    told = problem(PEOPLE, "softmax_cross_entropy")
    assert told.startswith("data.missing: in 'people' values are missing, by column: 'age' 1, 'city' 1, 'member' 1; the ")
    assert "row 2 (counted from 0)" in told
    assert 'write data.missing = "median", "mean", "most_frequent", a value, or "drop"' in told
    assert "data.columns.age.missing" in told
    # Those of validation samples count as well.
    told = problem({"a": [1.0] * 9 + [math.nan], "b": range(10)}, validation_fraction=0.9)
    assert "'a' 1" in told
    told = problem({"a": [1, 2, 3], "b": [1, None, 3]}, missing="mean")
    assert told.startswith("data.columns.b.missing: 1 rows of 'people' have no target, the first is row 1")


@pytest.mark.parametrize(
    ("missing", "wanted"), [("mean", 4), ("median", 2), ("most_frequent", 2), ("-7.5", -7.5), ("drop", None)]
)
def test_missing_numbers_are_replaced_or_their_rows_dropped(missing: str, wanted: float | None) -> None:
    found = [row[0] for row in features({"a": [2, 10, None, 2, 2, math.nan]}, missing=missing)]
    assert found == ([2, 10, 2, 2] if wanted is None else [2, 10, wanted, 2, 2, wanted])


def test_a_value_replaces_missing_text_truth_and_times() -> None:
    columns = {"city": {"missing": "nowhere"}, "member": {"missing": "no"}, "when": {"missing": "1970-01-02", "prepare": "none"}}
    given = {"city": PEOPLE["city"], "member": PEOPLE["member"], "when": [datetime.date(1970, 1, 1)] * 5 + [None]}
    found = features(given, columns=columns)
    assert [row[:3] for row in found[2:4]] == [[0, 1, 0], [0, 0, 1]]
    assert [row[3] for row in found] == [1, 0, 0, 1, 1, 0]
    assert [row[4] for row in found] == [0, 0, 0, 0, 0, 86400]
    told = problem({"a": [1, None], "b": [1, 2]}, missing="unknown")
    assert "'unknown' is neither one of mean, median, most_frequent, drop, nor a value of the column 'a'" in told
    assert told.endswith("set data.columns.a.missing")
    assert "mean needs numbers" in problem({"a": ["x", None], "b": [1, 2]}, columns={"a": {"missing": "mean"}})


def test_dropped_rows_are_neither_learned_from_nor_validated_with() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=20_000), generator.normal(size=20_000)
    a[generator.random(20_000) < 0.4] = np.nan
    whole = ~np.isnan(a)
    loaded = load({"a": a, "b": b}, missing="drop", validation_fraction=0.25)
    plain = load({"a": a[whole], "b": b[whole]}, validation_fraction=0.25)
    for part, wanted in ((loaded.train, plain.train), (loaded.validation, plain.validation)):
        assert inputs(part).tobytes() == inputs(wanted).tobytes()
        assert targets(part).tobytes() == targets(wanted).tobytes()
    assert "in each row of 'people' a value is missing" in problem({"a": [None, None], "b": [1, 2]}, missing="drop")
    # A row without a target is dropped, too, and one that misses a value of another column is not.
    loaded = load({"a": [1, 2, None], "b": [None, 5, 6]}, columns={"b": {"missing": "drop"}, "a": {"missing": "0"}})
    assert (inputs(loaded.train).tolist(), targets(loaded.train).tolist()) == ([[2], [0]], [5, 6])


@hypothesis.given(st.lists(st.booleans(), max_size=300), st.data())
def test_a_bitmap_finds_the_rows_that_are_kept(keeps: list[bool], drawn: st.DataObject) -> None:
    flags = np.array(keeps, bool)
    kept = Kept(bitmap(len(flags), lambda rows: flags[rows], 64))
    wanted = np.flatnonzero(flags)
    assert len(kept) == len(wanted)
    assert kept[:].tolist() == wanted.tolist()
    assert kept[3:9].tolist() == wanted[3:9].tolist()
    asked = np.array(drawn.draw(st.lists(st.integers(0, max(0, len(wanted) - 1)), max_size=9 if len(wanted) else 0)), np.intp)
    assert kept[asked].tolist() == wanted[asked].tolist()


def test_numbers_are_prepared_as_the_job_says() -> None:
    given = {name: [1.0, 3, 5, 7] for name in ("none", "standardize", "min_max", "log", "ordinal")}
    found = np.array(features(given, columns={name: {"prepare": name} for name in given}))
    wanted = [1, -3 / math.sqrt(5), 0, math.log(2), 0]
    assert found[0].tolist() == pytest.approx(wanted, rel=1e-15)
    assert found[3].tolist() == pytest.approx([7, 3 / math.sqrt(5), 1, math.log(8), 3], rel=1e-15)
    assert "the smallest training value is -1" in problem({"a": [-1, 2], "b": [1, 2]}, columns={"a": {"prepare": "log"}})
    told = problem({"a": ["x", "y"], "b": [1, 2]}, columns={"a": {"prepare": "log"}})
    assert told.startswith("data.columns.a.prepare: log is not possible, because the column holds text; use one of one_hot, ")
    assert told.endswith('or read it as numbers with type = "number"')


def test_a_constant_number_is_shifted_to_zero() -> None:
    found = features({"a": [0.1] * 1000, "c": ["x"] * 1000}, standardize=True)
    assert {row[0] for row in found} == {0}


def test_text_becomes_vectors_positions_or_buckets() -> None:
    words = ["b", "a", "c", "a"]
    assert features({"t": words}) == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]]
    assert features({"t": words}, columns={"t": {"prepare": "ordinal"}}) == [[1], [0], [2], [0]]
    found = np.array(features({"t": words}, columns={"t": {"prepare": "hash", "buckets": 5}}))
    assert found.shape == (4, 5)
    assert found.argmax(1).tolist() == [bucket(word, 5) for word in words]
    # CRC-32 of UTF-8 is the same everywhere.
    assert (bucket("a", 1000), bucket("Köln", 1000)) == (0xE8B7BE43 % 1000, 795_358_715 % 1000)
    many = {"t": [f"w{index}" for index in range(101)]}
    told = problem(many | {"y": range(101)})
    assert told.startswith("data.columns.t.prepare: the column 't' has more than 100 categories; write data.columns.t.prepare = ")
    assert '"hash"' in told
    assert "dates" not in told
    for count in (101, 10_001):
        days = [str(np.datetime64("2000-01-01") + index) for index in range(count)]
        assert problem({"t": days, "y": range(count)}).endswith(
            'they look like dates: data.columns.t.type = "time" reads them as such'
        )
    assert len(features(many, columns={"t": {"prepare": "one_hot"}})[0]) == 101


def test_numbers_that_are_categories_are_known_by_their_shortest_text() -> None:
    assert features({"zip": [53111, 89073, 53111]}, columns={"zip": {"type": "text"}}) == [[1, 0], [0, 1], [1, 0]]
    loaded = load({"a": [1.0, 2.5, 1], "y": [1, 2, 3]}, columns={"a": {"prepare": "one_hot"}})
    assert list(loaded.preprocessing.table[0].categories) == ["1", "2.5"]


def test_text_is_read_as_the_job_says() -> None:
    given = {"n": ["1.5", " 2 ", ""], "t": ["yes", "No", "1"], "d": ["2024-01-01", "2024-01-01T12:00:00+02:00", "2024-01-02"]}
    types = {"n": {"type": "number", "missing": "0"}, "t": {"type": "boolean"}, "d": {"type": "time", "prepare": "none"}}
    start = 1_704_067_200
    assert features(given, columns=types) == [[1.5, 1, start], [2, 0, start + 10 * 3600], [0, 1, start + 86400]]
    told = problem({"n": ["1", "two"], "y": [1, 2]}, columns={"n": {"type": "number"}})
    assert told.startswith("data.columns.n.type: 'people': row 1 (counted from 0), column 'n': 'two' cannot be read as number")
    assert "cannot be read as time; leave type out" in problem({"n": [1, 2], "y": [1, 2]}, columns={"n": {"type": "time"}})


def test_times_become_a_calendar() -> None:
    # 1970-01-05 was a Monday.
    given = [np.datetime64("1970-01-05T00:00"), np.datetime64("1970-01-05T06:00"), np.datetime64("1970-01-08T12:00")]
    found = np.array(features({"t": given}))
    assert found.shape == (3, 7)
    assert found[:, 0].mean() == pytest.approx(0, abs=1e-12)
    assert found[0, 1:5].tolist() == pytest.approx([0, 1, 0, 1], abs=1e-12)
    assert found[1, 1:3].tolist() == pytest.approx([1, 0], abs=1e-12)
    assert found[2, 3:5].tolist() == pytest.approx([0, -1], abs=1e-12)
    assert np.hypot(found[:, 5], found[:, 6]).tolist() == pytest.approx([1, 1, 1])


def test_columns_are_chosen_by_name() -> None:
    given = {"id": [7, 8], "a": [1, 2], "b": [3, 4], "c": [5, 6], "d": [0, 1]}
    loaded = load(given, target="b", ignore=["id"])
    assert (inputs(loaded.train).tolist(), targets(loaded.train).tolist()) == ([[1, 5, 0], [2, 6, 1]], [3, 4])
    assert (list(loaded.preprocessing.columns), loaded.preprocessing.target) == (["a", "c", "d"], "b")
    loaded = load(given, targets=["b", "d"], features=["c", "a"])
    assert (inputs(loaded.train).tolist(), targets(loaded.train).tolist()) == ([[5, 1], [6, 2]], [[3, 0], [4, 1]])
    assert [target.name for target in loaded.preprocessing.targets] == ["b", "d"]
    for settings, told in (
        ({"target": "B"}, "data.target: 'people' has no column 'B' (did you mean 'b'?); it has 'id', 'a', 'b', 'c', 'd'"),
        ({"features": ["a", "a"]}, "data.features: names 'a' twice"),
        ({"ignore": ["d"]}, "data.ignore: names 'd', which is the target; by default the last column is the target"),
        ({"columns": {"e": {}}}, "data.columns: 'people' has no column 'e'"),
        ({"features": ["a"], "ignore": ["a"]}, "data.ignore: names 'a', which is one of data.features"),
        ({"ignore": ["id", "a", "b", "c"]}, "data.features: 'people' has no columns left for features"),
        ({"target": "a", "targets": ["b"]}, "data.targets: is given beside data.target"),
    ):
        assert problem(given, **settings).startswith(told)


def test_targets_of_text_are_classes_and_need_a_loss_for_them() -> None:
    given = {"a": [1, 2, 3], "y": ["b", "a", "b"]}
    assert targets(load(given, "binary_cross_entropy").train).tolist() == [1, 0, 1]
    assert targets(load(given, one_hot=True).train).tolist() == [[0, 1], [1, 0], [0, 1]]
    assert problem(given).startswith("data.target: the column 'y' holds text, and model.loss = mean_squared_error needs numbers")
    told = problem({"a": [1, 2, 3], "y": ["b", "a", "c"]}, "binary_cross_entropy")
    assert told.startswith("data.target: the column 'y' has 3 classes; binary_cross_entropy needs exactly two")
    found = load({"a": [1, 2], "y": [True, False]}, "softmax_cross_entropy")
    assert list(found.preprocessing.targets[0].classes) == ["false", "true"]
    # A class that only validation samples have is one.
    many = {"a": range(100), "y": [str(index) for index in range(100)]}
    loaded = load(many, "softmax_cross_entropy", validation_fraction=0.5)
    assert len(loaded.preprocessing.targets[0].classes) == 100


@pytest.mark.parametrize("prepare", ["none", "standardize", "min_max", "log"])
def test_targets_are_predicted_in_their_own_units(prepare: str) -> None:
    dollars = np.array([100_000.0, 250_000, 400_000, 90_000])
    loaded = load({"a": range(4), "price": dollars}, columns={"price": {"prepare": prepare}})
    learned = targets(loaded.train)
    assert (learned.tolist() == dollars.tolist()) == (prepare == "none")
    assert prepare == "none" or np.abs(learned).max() < 20
    assert in_own_units(loaded.preprocessing.targets, learned).tolist() == pytest.approx(dollars.tolist(), rel=1e-12)
    one = in_own_units(loaded.preprocessing.targets, learned.reshape(-1, 1).astype(np.float32))
    assert one.shape == (4, 1)
    assert one.dtype == np.float32


def test_several_targets_are_prepared_each() -> None:
    given = {"a": range(4), "b": [1.0, 2, 3, 4], "c": [10.0, 20, 30, 50]}
    loaded = load(given, targets=["b", "c"], columns={"c": {"prepare": "standardize"}})
    learned = targets(loaded.train)
    assert learned[:, 0].tolist() == [1, 2, 3, 4]
    assert learned[:, 1].mean() == pytest.approx(0)
    assert in_own_units(loaded.preprocessing.targets, learned)[:, 1].tolist() == pytest.approx([10, 20, 30, 50])


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("width", [1, 4])
def test_a_table_of_numbers_has_the_bits_of_arrays(width: int, standardize: bool, tmp_path: Path) -> None:
    x, y = np.random.default_rng(1).normal(3, 100, (5000, width)), np.random.default_rng(2).normal(size=5000)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    settings: dict[str, Any] = {"standardize": standardize, "validation_fraction": 0.3}
    wanted = data.load(spec_of(dtype="float32", npz="a.npz", csv=None, **settings), lambda _: tmp_path / "a.npz")
    found = load({**{f"c{index}": x[:, index] for index in range(width)}, "y": y}, dtype="float32", **settings)
    for first, second in ((found.train, wanted.train), (found.validation, wanted.validation)):
        assert inputs(first).tobytes() == inputs(second).tobytes()
        assert targets(first).tobytes() == targets(second).tobytes()
    assert list(found.preprocessing.mean) == list(wanted.preprocessing.mean)
    assert list(found.preprocessing.scale) == list(wanted.preprocessing.scale)
    assert not found.preprocessing.table


def mixed(rows: int) -> Columns:
    generator = np.random.default_rng(rows)
    holes = generator.random(rows) < 0.1
    return {
        "n": np.where(holes, np.nan, generator.lognormal(0, 3, rows)),
        "m": np.where(~holes, generator.normal(1e6, 1, rows), np.nan),
        "t": generator.choice(["a", "b", "c"], rows),
        "y": generator.normal(size=rows),
    }


def test_what_is_fitted_depends_on_neither_groups_nor_how_often_nor_where_it_is_read() -> None:
    given, columns = table_of(mixed(20_000)), {"m": {"missing": "mean", "prepare": "standardize"}}
    settings: dict[str, Any] = {"missing": "median", "columns": columns, "standardize": True, "validation_fraction": 0.2}
    first = load(given, **settings)
    ends = np.append(np.sort(np.random.default_rng(3).permutation(20_000)[:50]), 20_000).tolist()
    second = load(Grouped(given, ends), **settings)
    assert first.preprocessing == second.preprocessing
    assert inputs(first.train).tobytes() == inputs(second.train).tobytes()


@pytest.mark.parametrize("order", ["permuted", "computed"])
def test_groups_end_at_positions_among_the_training_samples(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thalweg.learning.data.order.MAX_PERMUTED", 0)
    values = np.arange(1000.0)
    values[:120] = np.nan
    ends = [100, 101, 300, 999, 1000]
    table = Grouped(table_of({"a": values, "y": values}), ends)
    spec = spec_of(missing="drop", validation_fraction=0.3, order=order)
    found = data.preparation.tabular(spec, table, Temporary(lambda _: Path()))
    rows = found.x[found.train[:]][:, 0]
    assert list(found.groups) == sorted({int(np.count_nonzero(rows < end)) for end in ends} - {0})


def test_statistics_are_those_of_the_training_samples_alone() -> None:
    given = mixed(9000)
    loaded = load(given, missing="median", columns={"m": {"missing": "mean"}}, standardize=True, validation_fraction=0.5)
    train = data.preparation.split(7, 9000, 0.5, "auto")[0][:]
    for column, name in zip(loaded.preprocessing.table, ("n", "m"), strict=False):
        values = given[name][train]
        assert (column.shift, column.scale) == pytest.approx((np.nanmean(values), np.nanstd(values)), rel=1e-12)
    present = np.sort(given["n"][train][~np.isnan(given["n"][train])])
    assert loaded.preprocessing.table[0].fill == present[(len(present) - 1) // 2]


@hypothesis.given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64), min_size=1, max_size=40))
def test_the_median_is_exact(values: list[float]) -> None:
    found = load({"a": values, "t": ["x"] * len(values), "y": [0] * len(values)}, columns={"a": {"missing": "median"}})
    assert found.preprocessing.table[0].fill == sorted(values)[(len(values) - 1) // 2]


def test_the_table_is_read_once_to_fit_and_never_again_if_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Grouped(table_of(mixed(1000)), (1000,))
    monkeypatch.setitem(SOURCES, "csv", lambda *_: table)
    monkeypatch.setattr("thalweg.learning.data.memory.MAX_HELD", 0)
    spec, access = spec_of(missing="mean", sha256="0" * 64), Temporary(lambda _: Path())
    first = data.load(spec, access)
    # Four columns once; the target once more, to look whether it fits the loss.
    assert table.cells <= 4000 + 1000
    table.cells = 0
    second = data.load(spec, access)
    assert table.cells <= 1000
    assert first.preprocessing == second.preprocessing


def test_samples_are_the_same_whether_they_are_held_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    given = mixed(3000)
    settings: dict[str, Any] = {"missing": "median", "standardize": True}
    whole = load(given, **settings)
    monkeypatch.setattr("thalweg.learning.data.memory.MAX_HELD", 0)
    parts = load(given, **settings)
    order = np.random.default_rng(5).permutation(3000)
    assert all(np.array_equal(whole.train.take(order)[name], parts.train.take(order)[name]) for name in ("x", "y"))


def test_numbers_that_no_dtype_holds_are_told() -> None:
    assert "column 'a' holds an infinite number" in problem({"a": [1, math.inf], "y": [1, 2]})
    with pytest.raises(DataError, match=r"^data\.csv: x holds numbers that are too large for float32, in the column 'a'"):
        load({"a": [1, 1e39], "y": [1, 2]}, dtype="float32")
    told = problem({"a": [1e308, -1e308], "t": ["x", "y"], "y": [1, 2]}, columns={"a": {"prepare": "standardize"}})
    assert told.startswith("data.columns.a.prepare: the numbers are too large for standardize")


def test_a_recipe_that_is_too_large_to_travel_is_told() -> None:
    columns = {"t": {"prepare": "one_hot"}}
    told = problem({"t": [f"{number:0400}" for number in range(9000)], "y": range(9000)}, columns=columns)
    assert told.startswith("data.columns.t.prepare: what is known of all columns takes ")
    assert 'prepare it as "hash"' in told
    wide = {name: {"prepare": "hash", "buckets": 60_000} for name in ("a", "b", "c")}
    told = problem({"a": ["x"], "b": ["x"], "c": ["x"], "y": [1]}, columns=wide)
    assert told.startswith(
        "data.columns.a.prepare: the columns become 180,000 features, 60,000 of them from this one; at most 131,072"
    )
    told = problem({"t": [f"{number}" for number in range(10_001)], "y": range(10_001)}, columns=columns)
    assert told.startswith("data.columns.t.prepare: the column 't' has more than 10,000 categories")


def predicted(dataset: Dataset, x: object) -> tuple[NDArray[Any], tuple[str, ...]]:
    found = prepare_table(x, dataset.preprocessing, np.dtype(np.float64))
    assert found
    return found.x[:], found.notices


PREPARED: dict[str, Any] = {"missing": "mean", "ignore": ["id"]}
TRAINED: dict[str, Any] = {"id": range(6), **PEOPLE}


def test_rows_for_predictions_are_prepared_as_the_training_rows_were() -> None:
    loaded = load(TRAINED, "softmax_cross_entropy", **PREPARED)
    wanted = inputs(loaded.train)
    reordered = dict(reversed(TRAINED.items()))
    rows = [{name: cells[index] for name, cells in PEOPLE.items() if name != "label"} for index in range(6)]
    for given in (TRAINED, reordered, rows):
        found, notices = predicted(loaded, given)
        assert found.tolist() == wanted.tolist()
        assert not notices


def test_data_frames_are_tables() -> None:
    pandas, polars, arrow = (pytest.importorskip(name) for name in ("pandas", "polars", "pyarrow"))
    when = [datetime.datetime(2024, 1, day, 12) for day in (1, 2, 3, 4, 5)] + [None]
    given = {**PEOPLE, "when": when}
    columns = {"when": {"missing": "2024-01-01"}}
    wanted = load({**given, "y": range(6)}, missing="mean", columns=columns)
    frame = pandas.DataFrame(given | {"y": range(6)})
    nullable = frame.convert_dtypes()
    category = frame.astype({"city": "category", "label": "category"})
    for made in (
        frame,
        nullable,
        category,
        polars.DataFrame(given | {"y": range(6)}),
        arrow.table(given | {"y": list(range(6))}),
    ):
        loaded = load(table_of(made), missing="mean", columns=columns)
        assert inputs(loaded.train).tolist() == inputs(wanted.train).tolist(), type(made)
        assert predicted(wanted, made)[0].tolist() == inputs(wanted.train).tolist(), type(made)


def test_columns_that_are_missing_or_unknown_are_told() -> None:
    loaded = load(TRAINED, "softmax_cross_entropy", **PREPARED)
    for given, told in (
        ({"age": [1], "city": ["Ulm"]}, "x: lacks the column 'member'"),
        ({**PEOPLE, "Age": [1] * 6}, "x: has the column 'Age', which the job was not trained on"),
        (np.ones((2, 3)), "x: is an array, but the job was trained on a table of columns of several types; give a data frame"),
        ({"age": ["old"], "city": ["Ulm"], "member": [True]}, "x: 'x': row 0 (counted from 0), column 'age': 'old' cannot be"),
    ):
        with pytest.raises(DataError) as caught:
            predicted(loaded, given)
        assert str(caught.value).startswith(told)
    loaded = load({"a": [1, 2], "t": ["x", "y"], "y": [1, 2]})
    with pytest.raises(DataError, match=r"^x: 'x': row 1 \(counted from 0\), column 'a' has no value, and the job does not say"):
        predicted(loaded, {"a": [1, None], "t": ["x", "y"]})


def test_where_a_job_names_its_features_other_columns_may_be_there() -> None:
    settings: dict[str, Any] = {"features": ["a"], "target": "y"}
    loaded = load({"a": [1, 2], "b": [3, 4], "y": [1, 2]}, **settings)
    found, _ = predicted(loaded, {"c": ["x"], "b": [None], "a": [7]})
    assert found.tolist() == [[7]]
    with pytest.raises(DataError, match=r"^x: lacks the column 'a'; name the columns as in the training data: 'a'"):
        predicted(loaded, {"b": [1]})


def test_unknown_categories_are_counted_and_belong_to_none() -> None:
    given = {"t": ["a", "b"], "o": ["a", "b"], "y": [1, 2]}
    loaded = load(given, columns={"o": {"prepare": "ordinal"}})
    found, notices = predicted(loaded, {"t": ["c", "a", "c", "d"], "o": ["a", "b", "a", "z"]})
    assert found.tolist() == [[0, 0, 0], [1, 0, 1], [0, 0, 0], [0, 0, 2]]
    assert notices == (
        "x: column 't': 3 cells with categories that were not in the training data, 'c', 'd'; the model knows none of them",
        "x: column 'o': 1 cell with categories that were not in the training data, 'z'; the model knows none of them",
    )


def test_arrays_of_numbers_have_the_jobs_columns_in_their_order() -> None:
    given = {"a": [1, 2, None], "b": [4, 5, 6], "y": [1, 2, 3]}
    loaded = load(given, missing="mean")
    assert predicted(loaded, [[1, 2], [np.nan, 3]])[0].tolist() == [[1, 2], [1.5, 3]]
    with pytest.raises(DataError, match=r"^x: has the shape \(2, 3\), but the job was trained on 2 columns; give a data frame"):
        predicted(loaded, np.ones((2, 3)))
    plain = load({"a": [1, 2], "b": [4, 5], "y": [1, 2]}, standardize=True)
    assert prepare_table(np.ones((2, 2)), plain.preprocessing, np.dtype(np.float64)) is None
    assert predicted(plain, {"b": [4, 5], "a": [1, 2]})[0].tolist() == inputs(plain.train).tolist()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"a": [1, "x"]}, "data: column 'a' holds cells of several types: number and text"),
        ({"a": [1, 2], "b": [1]}, "data: the columns of the table differ in their numbers of rows: 'a' has 2, 'b' has 1"),
        ({"a": [[1], [2]]}, "data: column 'a' holds a list"),
        ({"a": np.ones((2, 2))}, "data: column 'a' has the shape (2, 2)"),
        ({"a": "text"}, "data: column 'a' is not a column of cells"),
        (3, "data: a int is not a table"),
    ],
)
def test_what_is_no_table_is_told(given: object, told: str) -> None:
    with pytest.raises(DataError) as caught:
        table_of(given)
    assert str(caught.value).startswith(told)


def test_a_file_of_numbers_is_a_table_where_the_job_asks_for_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,a,y\n1,10,0\n2,30,1\n")
    spec = spec_of(ignore=["id"], columns={"a": {"prepare": "min_max"}})
    loaded = data.load(spec, lambda _: tmp_path / "a.csv")
    assert (inputs(loaded.train).tolist(), targets(loaded.train).tolist()) == ([[0], [1]], [0, 1])
    # Columns without names are called by their positions.
    (tmp_path / "a.csv").write_text("1,10,0\n2,30,1\n")
    unnamed = data.load(spec_of(ignore=["1"], columns={"2": {"prepare": "min_max"}}, header=False), lambda _: tmp_path / "a.csv")
    assert (inputs(unnamed.train).tolist(), targets(unnamed.train).tolist()) == ([[0], [1]], [0, 1])
    np.savez(tmp_path / "a.npz", x=np.ones((2, 1)), y=np.ones(2))
    with pytest.raises(DataError, match=r"^data\.ignore: is for tables, and data\.npz is not one; leave it out"):
        data.load(spec_of(csv=None, npz="a.npz", ignore=["id"]), lambda _: tmp_path / "a.npz")


def test_rows_of_numbers_may_have_a_target_of_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b,kind\n1,2,x\n3,4,y\n")
    loaded = data.load(spec_of("softmax_cross_entropy"), lambda _: tmp_path / "a.csv")
    assert (list(loaded.preprocessing.columns), len(loaded.preprocessing.table)) == (["a", "b"], 0)
    assert list(loaded.preprocessing.targets[0].classes) == ["x", "y"]
    (tmp_path / "new.csv").write_text("kind,b,a\nz,2,1\n,4,3\n")
    rows = data.read_rows(tmp_path / "new.csv", job_pb2.Data(csv="a.csv"), loaded.preprocessing)
    assert predicted(loaded, rows)[0].tolist() == inputs(loaded.train).tolist()


CELLS = {
    "number": st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(math.nan)),
    "text": st.one_of(st.none(), st.text(max_size=3)),
    "boolean": st.one_of(st.none(), st.booleans()),
    "time": st.one_of(st.none(), st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2100, 1, 1))),
}


WAYS = {
    "number": ["none", "standardize", "min_max", "log", "one_hot", "ordinal", "hash"],
    "text": ["one_hot", "ordinal", "hash"],
    "boolean": ["none", "one_hot", "ordinal", "hash"],
    "time": ["calendar", "none", "standardize", "min_max"],
}


@hypothesis.given(st.data())
def test_predicting_prepares_rows_as_training_did(drawn: st.DataObject) -> None:
    """Any table and any settings: rows become the same features, or it is told what is wrong with one of the fields of data."""
    kinds = drawn.draw(st.lists(st.sampled_from(sorted(CELLS)), min_size=1, max_size=4))
    rows = drawn.draw(st.integers(1, 12))
    table = {
        f"{kind}{index}": drawn.draw(st.lists(CELLS[kind], min_size=rows, max_size=rows)) for index, kind in enumerate(kinds)
    }
    missing = st.sampled_from(["mean", "median", "most_frequent", "0", "1970-01-01", "drop"])
    columns = {
        name: {"buckets": 3}
        | ({"prepare": drawn.draw(st.sampled_from(WAYS[name[:-1]]))} if drawn.draw(st.booleans()) else {})
        | ({"missing": drawn.draw(missing)} if drawn.draw(st.booleans()) else {})
        for name in table
    }
    settings: dict[str, Any] = {"columns": columns, "missing": drawn.draw(missing), "standardize": drawn.draw(st.booleans())}
    loaded, reason = None, ""
    try:
        loaded = load({**table, "y": range(rows)}, **settings)
    except DataError as error:
        reason = str(error)
    if loaded is None:
        assert reason.startswith("data")
        return
    kept = targets(loaded.train).astype(int)
    again = {name: [cells[row] for row in kept] for name, cells in table.items()}
    found, notices = predicted(loaded, again)
    assert found.tobytes() == inputs(loaded.train).tobytes()
    assert not notices
    assert np.isfinite(found).all()
