"""Samples that are held out to validate and to test with: by fraction, by value, by group, by time, or in files of their own."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from tests.learning.batches import inputs, targets
from thalweg.client.jobfile import load_job
from thalweg.client.models import check
from thalweg.contract.errors import ThalwegError
from thalweg.learning import data
from thalweg.learning.data import DataError, Dataset, Temporary
from thalweg.learning.data.order import MAX_PERMUTED
from thalweg.learning.data.preparation import Values, parts
from thalweg.learning.errors import NodeError
from thalweg.server import validation
from thalweg.v1 import job_pb2

CLASSES = np.repeat([0, 1, 2], [60, 30, 10])


def division(samples: int, values: NDArray[Any] | None = None, **fields: Any) -> list[NDArray[np.intp]]:
    """The indices of the training, validation and test samples."""

    def column(name: str) -> Values:
        assert name == "c"
        assert values is not None
        return Values(values)

    return [part[:] for part in parts(json_format.ParseDict(fields, job_pb2.Data()), 5, samples, column).indices]


@given(
    st.integers(40, 400),
    st.lists(st.sampled_from([0.05, 0.1, 0.29, 0.4]), min_size=2, max_size=2),
    st.sampled_from([None, "stratify", "group", "time"]),
    st.sampled_from([None, "stratify", "group", "time"]),
)
def test_each_sample_is_in_one_part(samples: int, fractions: list[float], first: str | None, second: str | None) -> None:
    values = np.arange(samples) % 7
    fields = {
        name: {"fraction": fraction} | ({by: "c"} if by else {})
        for name, fraction, by in zip(("validation", "test"), fractions, (first, second), strict=True)
    }
    found = division(samples, values, **fields)
    assert sorted(np.concatenate(found)) == list(range(samples))
    assert all(len(part) and np.all(np.diff(part) > 0) for part in found)
    assert all(np.array_equal(a, b) for a, b in zip(found, division(samples, values, **fields), strict=True))


def test_a_fraction_means_the_same_in_both_places() -> None:
    old, new = division(50, validation_fraction=0.3), division(50, validation={"fraction": 0.3})
    assert all(np.array_equal(a, b) for a, b in zip(old, new, strict=True))
    assert [len(part) for part in new] == [35, 15, 0]


def test_the_test_samples_do_not_depend_on_those_to_validate_with() -> None:
    alone, beside = division(100, test={"fraction": 0.2}), division(100, test={"fraction": 0.2}, validation={"fraction": 0.5})
    assert np.array_equal(alone[2], beside[2])
    assert [len(part) for part in beside] == [40, 40, 20]


def test_a_column_by_which_both_are_chosen_is_read_once() -> None:
    asked: list[str] = []

    def column(name: str) -> Values:
        asked.append(name)
        return Values(CLASSES)

    by_class = {"fraction": 0.2, "stratify": "kind"}
    both = json_format.ParseDict({"test": by_class, "validation": by_class}, job_pb2.Data())
    assert [len(part) for part in parts(both, 7, 100, column).indices] == [64, 16, 20]
    assert asked == ["kind"]


def test_each_class_has_its_share_of_stratified_samples() -> None:
    shuffled = np.random.default_rng(0).permutation(CLASSES)
    for part, each in zip(
        division(100, shuffled, test={"fraction": 0.2, "stratify": "c"}, validation={"fraction": 0.5, "stratify": "c"}),
        ([24, 12, 4], [24, 12, 4], [12, 6, 2]),
        strict=True,
    ):
        assert np.bincount(shuffled[part]).tolist() == each


@pytest.mark.parametrize(
    ("kinds", "notice"),
    [
        ("aabbbb", ""),
        ("aabbbc", "a value of 'kind' is in one sample alone, which is learned from or held out, not both: 'c'"),
        ("dabbbc", "3 values of 'kind' are each in one sample alone, which is learned from or held out, not both: 'a', 'c', 'd'"),
        ("abcdef", ""),
    ],
)
def test_values_of_one_sample_are_mentioned(kinds: str, notice: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n,a,kind\n" + "".join(f"{row},{row},{kind}\n" for row, kind in enumerate(kinds)))
    found = load({"data": tmp_path / "a.csv"}, validation={"fraction": 0.34, "stratify": "kind"}, ignore=["n"])
    assert found.notices == ((f"data.validation.stratify: {notice}",) if notice else ())


def test_the_largest_remainders_get_what_is_left_of_a_stratified_fraction() -> None:
    # 0.25 of 6, 5 and 3 are 1.5, 1.25 and 0.75: 3 of 14 in all.
    values = np.repeat(["a", "b", "c"], [6, 5, 3])
    _, held_out, _ = division(14, values, validation={"fraction": 0.25, "stratify": "c"})
    assert [int(np.sum(values[held_out] == name)) for name in "abc"] == [1, 1, 1]


def test_groups_are_not_divided() -> None:
    groups = np.random.default_rng(1).integers(0, 20, 400)
    train, held_out, _ = division(400, groups, validation={"fraction": 0.25, "group": "c"})
    assert not set(groups[train]) & set(groups[held_out])
    # Each group has about 20 samples.
    assert abs(len(held_out) - 100) <= 20


def test_the_latest_are_held_out() -> None:
    times = np.random.default_rng(2).permutation(np.arange("2020-01-01", "2020-04-10", dtype="datetime64[D]"))
    train, held_out, _ = division(100, times, validation={"fraction": 0.1, "time": "c"})
    assert len(held_out) == 10
    assert times[train].max() < times[held_out].min()
    # Samples of one time stay together.
    train, held_out, _ = division(8, np.array([1, 2, 3, 3, 3, 3, 0, 0]), validation={"fraction": 0.2, "time": "c"})
    assert held_out.tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("by", ["group", "time"])
def test_something_is_left_to_learn_from(by: str) -> None:
    with pytest.raises(DataError, match=r"data\.validation: holds out all samples"):
        division(10, np.zeros(10), validation={"fraction": 0.5, by: "c"})


def test_many_samples_are_held_out_by_bits() -> None:
    samples = MAX_PERMUTED + 1000
    values = np.arange(samples) % 3
    train, held_out, _ = division(samples, values, validation={"fraction": 0.25, "stratify": "c"})
    assert np.array_equal(np.sort(np.concatenate([train, held_out])), np.arange(samples))
    assert np.ptp(np.bincount(values[held_out])) <= 1
    assert len(held_out) == samples // 4


def load(files: dict[str, Path], **fields: Any) -> Dataset:
    model = {"layers": [{"dense": {"units": 3}}], "loss": "softmax_cross_entropy", "dtype": "float32"}
    held_out = {name: {"file": path.name, "sha256": name} for name, path in files.items() if name != "data"}
    source = {files["data"].suffix[1:]: files["data"].name, "sha256": "data"}
    spec = json_format.ParseDict({"model": model, "data": source | held_out | fields, "seed": 7}, job_pb2.JobSpec())
    return data.load(spec, lambda sha256: files[sha256])


def table(path: Path, rows: int, columns: str = "a,b,kind", first: int = 0) -> Path:
    lines = [f"{first + row},{row % 5},{row % 3}" for row in range(rows)]
    path.write_text("\n".join([columns, *lines]) + "\n")
    return path


def test_a_file_of_its_own_is_prepared_like_the_training_samples(tmp_path: Path) -> None:
    files = {
        "data": table(tmp_path / "a.csv", 100),
        "validation": table(tmp_path / "b.csv", 8, first=1000),
        "test": table(tmp_path / "c.csv", 5, first=49),
    }
    found = load(files, standardize=True)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [100, 8, 5]
    mean, scale = found.preprocessing.mean[0], found.preprocessing.scale[0]
    assert mean == pytest.approx(49.5)
    np.testing.assert_allclose(inputs(found.validation)[:, 0], (1000 + np.arange(8) - mean) / scale, rtol=1e-6)
    assert targets(found.test).tolist() == [0, 1, 2, 0, 1]


def test_a_file_of_its_own_may_stand_beside_a_fraction(tmp_path: Path) -> None:
    files = {"data": table(tmp_path / "a.csv", 100), "test": table(tmp_path / "c.csv", 5)}
    found = load(files, validation={"fraction": 0.3, "stratify": "kind"})
    assert [len(part) for part in (found.train, found.validation, found.test)] == [70, 30, 5]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a,b,kind\n1,2,0\n3,x,0\n4,5,1\n", "'b.csv': line 3, column 'b': 'x' is not a number; "),
        ("a,b,kind\n1,2\n", "'b.csv': line 2 has 2 cells but there are 3 columns"),
        ("", "'b.csv' is empty"),
        ("a,b,kind\n1,,0\n", "'b.csv' lacks 1 of the values in the column 'b', but the job's data is numbers alone, "),
        ("a,b,kind\n1,q,0\n", "'b.csv' holds text in the column 'b', but the job's data is numbers alone, "),
    ],
)
def test_errors_of_a_file_of_its_own_name_its_field_and_the_file(text: str, problem: str, tmp_path: Path) -> None:
    files = {"data": table(tmp_path / "a.csv", 100), "validation": tmp_path / "b.csv"}
    files["validation"].write_text(text)
    with pytest.raises(DataError, match=rf"^data\.validation\.file: {re.escape(problem)}"):
        load(files)
    if text.startswith("a,b,kind\n1,,0"):
        files["data"].write_text("a,b,kind\n1,u,0\n2,v,1\n")
        with pytest.raises(DataError, match=r"^data\.validation\.file: .*'b\.csv'"):
            load(files)


def test_a_file_of_its_own_is_looked_at_before_a_job_is_submitted(tmp_path: Path) -> None:
    for name in ("data", "own"):
        (tmp_path / name).mkdir()
        for number in (1, 2):
            (tmp_path / name / f"{number}.csv").write_text("a,y\n0,0\n1,1\n")
    job = {
        "data": {
            "csv": str(tmp_path / "data"),
            "validation": {"file": str(tmp_path / "own")},
            "test": {"file": str(tmp_path / "own")},
        },
        "model": {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"},
        "optimizer": {"sgd": {}},
    }
    check(load_job(job))
    (tmp_path / "own" / "2.csv").write_text("a,y\n0,0\n1,x\n")
    with pytest.raises(
        ThalwegError, match=r"^data\.(validation|test)\.file: line 3 of '2\.csv', column 'y': 'x' is not a number"
    ):
        check(load_job(job))


def test_a_file_of_its_own_that_differs_is_refused(tmp_path: Path) -> None:
    files = {"data": table(tmp_path / "a.csv", 100), "test": table(tmp_path / "c.csv", 5, columns="a,c,kind")}
    with pytest.raises(DataError, match=r"data\.test\.file: has the features 'a', 'c', but the job's data has 'a', 'b'"):
        load(files)


def test_a_column_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"held out by 'colour', which is no column of data\.csv; it has 'a', 'b', 'kind'"):
        load({"data": table(tmp_path / "a.csv", 10)}, test={"fraction": 0.3, "group": "colour"})


def text_table(path: Path, rows: int, first: int = 0, kinds: str = "xyz") -> Path:
    lines = [f"{first + row},{'red' if row % 4 else 'blue'},{kinds[row % 3]}" for row in range(rows)]
    path.write_text("\n".join(["a,colour,kind", *lines]) + "\n")
    return path


def test_tables_with_text_are_divided_and_prepared_alike(tmp_path: Path) -> None:
    files = {"data": text_table(tmp_path / "a.csv", 120), "test": text_table(tmp_path / "b.csv", 6, first=1000)}
    columns = {"a": {"prepare": "min_max"}}
    found = load(files, validation={"fraction": 0.25, "stratify": "colour"}, columns=columns)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [90, 30, 6]
    assert found.preprocessing.targets[0].classes == ["x", "y", "z"]
    # blue, red: sorted.
    assert [np.mean(inputs(part)[:, 1]) for part in (found.train, found.validation)] == pytest.approx([0.25, 0.25], abs=0.02)
    assert inputs(found.test)[:, 1:].tolist() == [[0, 1] if row % 4 else [1, 0] for row in range(6)]
    assert inputs(found.test)[:, 0].min() > 8
    assert targets(found.test).tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_class_that_the_jobs_data_does_not_have_is_an_error(part: str, tmp_path: Path) -> None:
    """It would have counted as the first one."""
    files = {"data": text_table(tmp_path / "a.csv", 120, kinds="xyz"), part: text_table(tmp_path / "b.csv", 6, kinds="xyw")}
    problem = (
        r"^data\.(validation|test)\.file: 'b\.csv': line 4, column 'kind' has the class 'w', which the job's data does not have"
    )
    with pytest.raises(DataError, match=problem):
        load(files)


def test_a_column_that_is_ignored_may_be_missing_in_a_file_of_its_own(tmp_path: Path) -> None:
    files = {"data": table(tmp_path / "a.csv", 100), "validation": tmp_path / "b.csv"}
    (tmp_path / "b.csv").write_text("a,kind\n5,0\n7,2\n")
    found = load(files, ignore=["b"])
    assert inputs(found.validation).tolist() == [[5], [7]]
    source = {"csv": "a.csv", "sha256": "data", "validation": {"file": "b.csv", "sha256": "validation"}, "ignore": ["b"]}
    spec = json_format.ParseDict({"data": source, "model": {"loss": "mean_squared_error"}}, job_pb2.JobSpec())
    own = data.held_out(spec, lambda sha256: files[sha256])
    assert own.y.tolist() == [0, 2]
    with pytest.raises(DataError, match=r"^data\.ignore: 'a\.csv' has no column 'colour'"):
        load(files, ignore=["b", "colour"])


def test_groups_of_text_are_not_divided(tmp_path: Path) -> None:
    found = load({"data": text_table(tmp_path / "a.csv", 120)}, test={"fraction": 0.2, "group": "colour"})
    assert [len(part) for part in (found.train, found.test)] == [90, 30]
    # Blue is no category of the training samples.
    assert {tuple(row) for row in inputs(found.test)[:, 1:].tolist()} == {(0.0,)}


def test_a_table_of_its_own_with_other_columns_is_refused(tmp_path: Path) -> None:
    files = {"data": text_table(tmp_path / "a.csv", 120), "test": table(tmp_path / "b.csv", 6)}
    with pytest.raises(DataError, match=r"data\.test\.file"):
        load(files)


def job(source: dict[str, Any], **model: Any) -> job_pb2.JobSpec:
    given = {"layers": [{"dense": {"units": 3}}], "loss": "softmax_cross_entropy", "dtype": "float32"} | model
    return json_format.ParseDict({"model": given, "data": source, "seed": 7}, job_pb2.JobSpec())


def test_files_of_their_own_may_be_at_urls(tmp_path: Path) -> None:
    place = f"file://{tmp_path}"
    for name, rows in (("a.csv", 100), ("b.csv", 8), ("c.csv", 5)):
        table(tmp_path / name, rows)
    source = {"csv": f"{place}/a.csv", "validation": {"file": f"{place}/b.csv"}, "test": {"file": f"{place}/c.csv"}}
    found = data.load(job(source), Temporary(Path))
    assert [len(part) for part in (found.train, found.validation, found.test)] == [100, 8, 5]
    assert [file.url for file in found.preprocessing.files] == [f"{place}/{name}.csv" for name in "abc"]
    assert len(data.held_out(job(source), Temporary(Path)).y) == 8
    # Those that are validated with belong to the data, too.
    (tmp_path / "b.csv").write_text((tmp_path / "b.csv").read_text() + "1,2,0\n")
    changed = data.load(job(source), Temporary(Path))
    assert len(changed.validation) == 9
    assert changed.preprocessing.fingerprint != found.preprocessing.fingerprint
    # One alone may be at a URL.
    uploaded = {"csv": "a.csv", "sha256": "a", "test": {"file": f"{place}/c.csv"}}
    mixed = data.load(job(uploaded), lambda _: tmp_path / "a.csv")
    assert (len(mixed.train), len(mixed.test)) == (100, 5)
    assert mixed.preprocessing.fingerprint
    with pytest.raises(NodeError, match=r"^data\.test\.file: file://.*nowhere"):
        data.load(job({"csv": f"{place}/a.csv", "test": {"file": f"{place}/nowhere.csv"}}), Temporary(Path))


def test_folders_of_their_own(tmp_path: Path) -> None:
    for folder, files in (("train", 3), ("test", 2)):
        (tmp_path / folder).mkdir()
        for file in range(files):
            columns = {"a": [file, 1, 2], "y": [0, 1, 2]}
            parquet.write_table(pyarrow.table(columns), tmp_path / folder / f"{file}.parquet")
    source = {"parquet": f"file://{tmp_path}/train", "test": {"file": f"file://{tmp_path}/test/"}}
    found = data.load(job(source), Temporary(Path))
    assert (len(found.train), len(found.test)) == (9, 6)
    # As the client's.
    loaded = load_job({"data": {"parquet": str(tmp_path / "train"), "test": {"file": str(tmp_path / "test")}}})
    uploads = {upload.field: upload.given for upload in loaded.uploads()}
    assert {field: list(given) for field, given in uploads.items() if not isinstance(given, Path)} == {
        "data.parquet": ["0.parquet", "1.parquet", "2.parquet"],
        "data.test.file": ["0.parquet", "1.parquet"],
    }


def test_two_files_of_arrays_of_their_own(tmp_path: Path) -> None:
    for name, rows in (("a", 12), ("b", 4)):
        np.save(tmp_path / f"{name}-x.npy", np.arange(2.0 * rows).reshape(rows, 2))
        np.save(tmp_path / f"{name}-y.npy", np.arange(rows) % 3)
    urls = {name: {part: f"file://{tmp_path}/{name}-{part}.npy" for part in "xy"} for name in "ab"}
    found = data.load(job({"npy": urls["a"], "validation": {"npy": urls["b"]}}), Temporary(Path))
    assert (len(found.train), targets(found.validation).tolist()) == (12, [0, 1, 2, 0])
    paths = {name: {part: f"{tmp_path}/{name}-{part}.npy" for part in "xy"} for name in "ab"}
    loaded = load_job({"data": {"npy": paths["a"], "validation": {"npy": paths["b"]}}})
    assert [upload.field for upload in loaded.uploads()] == ["data.npy", "data.validation.npy"]
    with pytest.raises(ThalwegError, match=r"data\.test\.file: is not possible with data\.npy; write data\.test\.npy"):
        validation.complete(job({"npy": urls["a"], "test": {"file": "b.npz"}}))


def test_images_of_their_own_may_lack_a_class_but_have_no_other(tmp_path: Path) -> None:
    for number, name in enumerate(("train/ant", "train/bee", "train/cat", "test/cat", "test/ant/old")):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(np.full((2, 2), number, np.uint8)).save(tmp_path / name / "1.png")
    (tmp_path / "test" / "bee").mkdir()
    source = {"images": f"file://{tmp_path}/train", "test": {"file": f"file://{tmp_path}/test"}}
    found = data.load(job(source), Temporary(Path))
    assert (targets(found.train).tolist(), targets(found.test).tolist()) == ([0, 1, 2], [0, 2])
    assert data.held_out(job(source), Temporary(Path)).y.tolist() == ["ant", "cat"]
    assert load_job({"data": {"images": str(tmp_path / "train"), "test": {"file": str(tmp_path / "test")}}}).held_out
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / "cow")
    with pytest.raises(
        DataError, match=r"^data\.test\.file: has the classes 'cow', but the job's data has 'ant', 'bee', 'cat' alone"
    ):
        data.load(job(source), Temporary(Path))
