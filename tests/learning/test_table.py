"""Tables: one strict reader, columns by name, and that predicting takes what training took."""

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from tests.learning.batches import inputs, targets, told
from thalweg.contract.resources import Memory
from thalweg.learning import data
from thalweg.learning.data import DataError, Dataset, Found, MemoryLackError
from thalweg.v1 import job_pb2


def load(content: str | bytes, folder: Path, loss: str = "mean_squared_error", **settings: Any) -> Dataset:
    """The table as training takes it."""
    path = folder / ("f" * 64)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    model = {"layers": [{"dense": {"units": 1}}], "loss": loss, "dtype": "float64"}
    spec = json_format.ParseDict({"model": model, "data": {"csv": "a.csv", **settings}}, job_pb2.JobSpec())
    return data.load(spec, lambda _: path)


def samples(content: str | bytes, folder: Path, dataset: Dataset, header: bool | None = None, **settings: Any) -> Found:
    """The table as predicting takes it, for a model that was trained on a dataset."""
    path = folder / "new.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    spec = json_format.ParseDict({"csv": "a.csv", **settings}, job_pb2.Data())
    return data.read_samples(path, spec, dataset.preprocessing, dataset.schema["x"].shape[0], header)


def test_a_table(tmp_path: Path) -> None:
    text = "\ufeffage, label ,height\n1,0,2.5\n\n 3 ,+1,-4e1\n"
    first = load(text, tmp_path)
    assert (inputs(first.train).tolist(), targets(first.train).tolist()) == ([[1, 0], [3, 1]], [2.5, -40])
    assert (list(first.preprocessing.columns), first.preprocessing.target) == (["age", "label"], "height")
    assert list(first.preprocessing.shape) == [2]
    second = load(text, tmp_path, target="label", loss="softmax_cross_entropy")
    assert (inputs(second.train).tolist(), targets(second.train).tolist()) == ([[1, 2.5], [3, -40]], [0, 1])
    assert targets(second.train).dtype == np.int64
    assert (list(second.preprocessing.columns), second.preprocessing.target) == (["age", "height"], "label")


def test_labels_of_a_table_are_labels_for_a_module(tmp_path: Path) -> None:
    def loaded(content: str) -> Dataset:
        path = tmp_path / ("f" * 64)
        path.write_text(content)
        model = {"torch": {"entrypoint": "a:b"}, "loss": "softmax_cross_entropy", "dtype": "float32"}
        spec = json_format.ParseDict({"model": model, "data": {"csv": "a.csv"}}, job_pb2.JobSpec())
        return data.load(spec, lambda _: path)

    found = targets(loaded("a,label\n1,0\n3,1\n").train)
    assert found.tolist() == [0, 1]
    assert found.dtype == np.int64
    with pytest.raises(DataError, match=r"^data\.csv: y has 0\.5 at sample 1 .* needs labels: whole numbers"):
        loaded("a,label\n1,0\n3,0.5\n")


def test_a_table_without_names(tmp_path: Path) -> None:
    found = load("1,2,3\n4,5,6\n", tmp_path, header=False)
    assert (inputs(found.train).tolist(), targets(found.train).tolist()) == ([[1, 2], [4, 5]], [3, 6])
    assert (list(found.preprocessing.columns), found.preprocessing.target) == ([], "")
    with pytest.raises(DataError, match=r"^data\.target: 'a\.csv' has no column names \(data\.header = false\)"):
        load("1,2,3\n4,5,6\n", tmp_path, header=False, target="c")


@pytest.mark.parametrize("names", ["id,2019,2020,label", "a,b1,2_c", "0,1,label", "nan,inf,a"])
def test_names_that_look_a_little_like_numbers(names: str, tmp_path: Path) -> None:
    row = ",".join("1" for _ in names.split(","))
    assert list(load(f"{names}\n{row}\n", tmp_path).preprocessing.columns) == names.split(",")[:-1]


def test_names_that_are_numbers(tmp_path: Path) -> None:
    assert list(load("5.1,?,1.4\n1,2,3\n", tmp_path, header=True).preprocessing.columns) == ["5.1", "?"]


# The table, and what is said of it both to those who train and to those who predict.
BAD: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "'{}' is empty"),
    "only numbers": ("1,2\n3,4\n", "'{}' begins with numbers, but must begin with a line of column names; add one, or give {}"),
    "a hole in the first row": (
        "5.1,?,1.4,0\n4.9,3.0,1.4,1\n",
        "line 1 of '{}' holds numbers, such as '5.1', beside '?', so it may be a",
    ),
    "an empty hole in the first row": (
        "5,,1\n4,3,1\n",
        "line 1 of '{}' holds numbers, such as '5', beside '', so it may be a row with a",
    ),
    "a text in the first row": ("5.1,unknown,1.4\n4,3,1\n", "line 1 of '{}' holds numbers, such as '5.1', beside 'unknown'"),
    "whole numbers and a text": ("5,unknown,3\n4,3,1\n", "line 1 of '{}' holds numbers, such as '5', beside 'unknown'"),
    "a name is missing": ("a,,b\n1,2,3\n", "line 1, column 2 has no name"),
    "an index": (",a,b\n0,2,3\n", "line 1, column 1 has no name; pandas writes no index with to_csv(..., index=False)"),
    "two of a name": ("a,b,a\n1,2,3\n", "line 1, two columns are called 'a'"),
    "an infinite number": ("a,b\n1,2\n1,-inf\n", "line 3, column 'b': '-inf' is not a number; fill in a value"),
    "a text": ("a,b\n1,2\n1,x\n", "line 3, column 'b': 'x' is not a number; replace classes by whole numbers from 0"),
    "infinity": ("a,b\n1,inf\n", "line 2, column 'b': 'inf' is not a number"),
    "too large": ("a,b\n1,-1e999\n", "line 2, column 'b': '-1e999' is too large for float64"),
    "many digits": (f"a,b\n{'9' * 100_000},1\n", f"line 2, column 'a': '{'9' * 37}...' is too large for float64"),
    "underscores": (
        "part,b\n1,2\n12_34,0\n",
        "line 3, column 'part': '12_34' is not a number; write numbers as in -1234.5",
    ),
    "another script": ("a,b\n١٢,1\n", "line 2, column 'a': '١٢' is not a number; write numbers as in"),
    "full-width digits": ("a,b\n1,１\n", "line 2, column 'b': '１' is not a number"),
    "a fraction": ("a,b\n1,½\n", "line 2, column 'b': '½' is not a number"),
    "hexadecimal": ("a,b\n0x1F,2\n", "line 2, column 'a': '0x1F' is not a number"),
    "a decimal comma": ('a,b\n"1,5",2\n', "line 2, column 'a': '1,5' is not a number; write numbers as in -1234.5"),
    "two numbers": ("a,b\n1 2,3\n", "line 2, column 'a': '1 2' is not a number"),
    "a NUL": (
        b"a,b\n1,\x002\n",
        "line 2, column 'b': '\\x002' is not a number: it holds a NUL; if the file is UTF-16, save it as UTF-8",
    ),
    "a NUL in a name": (b"a,\x00b\n1,2\n", "line 1, column 2 has a NUL in its name; if the file is UTF-16, save it as UTF-8"),
    "too many cells": ("a,b\n1,2,3\n", "line 2 has 3 cells but there are 2 columns"),
    "too few cells": ("a,b\n1,2\n\n1\n", "line 4 has 1 cell but there are 2 columns"),
    "a quote is not closed": ('a,b\n1,2\n"3,4\n5,6\n', "line 3 is not proper CSV: it opens a quote that is not closed"),
    "text after a quote": ('"a","b"\n1,2\n3,"4"x\n', "line 3 is not proper CSV: text follows a closing quote"),
    "a long cell": (f"a,b\n1,2\n1,{'1' * 200_000}\n", "line 3 is not proper CSV: field larger than field limit"),
    "a long line": (f"a,b\n1,2\n{'1,' * 3_000_000}\n", "line 3 is longer than 4,194,304 characters"),
    "a long quote": ('a,b\n1,2\n"' + "\n" * 5_000_000, "line 3 is"),
    "latin-1": (
        b"a,b\n" + b"1,2\n" * 18_000 + b"gr\xf6\xdfe,2\n",
        "'{}' is not UTF-8 text: line 18002 has the byte 0xf6; save it",
    ),
    "a cut character": ("a,b\n1,2ö".encode()[:-1], "'{}' is not UTF-8 text: it ends within a character"),
    "gzip": (b"\x1f\x8b\x08\x00", "'{}' cannot be decompressed: Compressed file ended before the end-of-stream marker"),
    "Excel": (b"PK\x03\x04\x14\x00", "'{}' is a zip archive or an Excel workbook; unpack it, or export the table as CSV"),
    "too many columns": (",".join(f"c{i}" for i in range(200_000)) + "\n", "'{}' has 200,000 columns; at most 131,072 are read"),
    "long names": (f"{'a' * 90_000},{'b' * 90_000}," * 8 + "c\n", "line 1, two columns are called 'aaaa"),
}


@pytest.mark.parametrize(("settings", "words"), [({}, '["unknown"]'), ({"missing_values": ["NA"]}, '["NA", "unknown"]')])
def test_text_among_numbers_leads_to_missing_values(settings: Any, words: str, tmp_path: Path) -> None:
    advice = f"or give data.missing_values = {words} if it says that the value is missing, or give data.columns.b.type = "
    with pytest.raises(DataError, match=f"'unknown' is not a number; .*, {re.escape(advice)}"):
        load("a,b\n1,2\n1,unknown\n2,3\n", tmp_path, **settings)


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_told(case: str, tmp_path: Path) -> None:
    content, message = BAD[case]
    before = load("x,y,z\n1,2,3\n", tmp_path)
    with pytest.raises(DataError) as training:
        load(content, tmp_path)
    assert told(training.value, "data.csv", "a.csv").startswith(
        "data.csv: " + message.format("a.csv", "data.header = false if there is none")
    )
    with pytest.raises(DataError) as predicting:
        samples(content, tmp_path, before)
    assert str(predicting.value).startswith("INPUT: " + message.format("new.csv", "--no-header if there is none"))


HOLES = [("a,b\n1,2\n1,\n", 3, "b"), ("a,b\n1,2\nNA,1\n", 3, "a"), ("a,b\n1,nan\n", 2, "b")]


@pytest.mark.parametrize(("text", "line", "column"), HOLES)
def test_a_hole_is_told(text: str, line: int, column: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as training:
        load(text, tmp_path)
    assert f"{column!r} 1" in str(training.value) or f"data.columns.{column}.missing: 1 rows" in str(training.value)
    assert f"the first is line {line}" in str(training.value)
    with pytest.raises(DataError) as predicting:
        samples(text, tmp_path, load("x,y,z\n1,2,3\n", tmp_path))
    assert str(predicting.value).startswith(f"INPUT: line {line}, column {column!r}: ")
    assert str(predicting.value).endswith("is not a number; fill in a value, or remove the line")


def test_long_names_are_told(tmp_path: Path) -> None:
    names = ",".join(f"{index:0100000}" for index in range(20))
    with pytest.raises(DataError, match=r"^data\.csv: 'a\.csv': the names of all columns together"):
        load(names.replace("0", "a") + "\n", tmp_path)


def test_a_table_to_train_on_needs_more(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.csv: 'a\.csv' has one column; there must be at least two"):
        load("a\n1\n", tmp_path)
    with pytest.raises(DataError, match=r"^data\.csv: 'a\.csv' has no rows after its column names"):
        load("a,b\n", tmp_path)
    with pytest.raises(
        DataError, match=r"^data\.target: .* no column 'heigth' \(did you mean 'height'\?\); it has 'age', 'height'"
    ):
        load("age,height\n1,2\n", tmp_path, target="heigth")


def test_a_table_that_has_no_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = Memory(8000, 8000)
    monkeypatch.setattr("thalweg.learning.data.sources.text_tables.held.memory", lambda: room)
    monkeypatch.setattr("thalweg.learning.data.memory.memory", lambda: room)
    with pytest.raises(
        MemoryLackError, match=r"^data\.csv: 'a\.csv' needs 0\.01 MiB of memory; this machine has 0\.01 MiB available"
    ):
        load("a,b\n" + "1,2\n" * 501, tmp_path)


TRAINED = "a,b,label\n1,2,0\n3,4,1\n"


@pytest.mark.parametrize(
    "text", ["a,b\n5,6\n", "b,a\n6,5\n", "a,b,label\n5,6,9\n", "label,b,a\n9,6,5\n", " b , a \n\n6,5\n"], ids=repr
)
def test_columns_are_found_by_their_names(text: str, tmp_path: Path) -> None:
    found = samples(text, tmp_path, load(TRAINED, tmp_path))
    assert (found.x.tolist(), found.notice) == ([[5, 6]], "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n5\n", "lacks the column 'b'; name the columns as in the training data: 'a', 'b'"),
        ("x,y\n5,6\n", "lacks the columns 'a', 'b' and has the columns 'x', 'y', which the job was not trained on; name the"),
        (
            "a,B\n5,6\n",
            "lacks the column 'b' (did you mean 'B'?) and has the column 'B', which the job was not trained on; name the columns",
        ),
        (
            "id,a,b\n1,5,6\n",
            "has the column 'id', which the job was not trained on; remove the columns that are not features: 'a', 'b'",
        ),
        ("a,b,species\n1,5,6\n", "has the column 'species', which the job was not trained on"),
    ],
)
def test_columns_that_do_not_fit_are_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        samples(text, tmp_path, load(TRAINED, tmp_path))
    assert str(caught.value).startswith(f"INPUT: 'new.csv' {message}")


def test_a_column_that_was_meant(tmp_path: Path) -> None:
    dataset = load("sepal_length,petal_length,species\n1,2,0\n", tmp_path)
    with pytest.raises(DataError, match=r"lacks the column 'petal_length' \(did you mean 'petal_lenght'\?\) and has the column"):
        samples("sepal_length,petal_lenght\n1,2\n", tmp_path, dataset)


def test_a_column_may_have_a_separator_in_its_name(tmp_path: Path) -> None:
    assert samples("a;b\n5\n", tmp_path, load("a;b,c\n1,2\n", tmp_path)).x.tolist() == [[5]]


def test_no_rows_are_no_samples(tmp_path: Path) -> None:
    assert samples("b,a\n", tmp_path, load(TRAINED, tmp_path)).x.shape == (0, 2)


def test_a_table_without_names_for_a_job_with_names(tmp_path: Path) -> None:
    dataset = load(TRAINED, tmp_path)
    found = samples("5,6\n7,8\n", tmp_path, dataset, header=False)
    assert found.x.tolist() == [[5, 6], [7, 8]]
    assert found.notice == "new.csv: the columns were assumed to be in the order of the training data: 'a', 'b'"
    with pytest.raises(DataError, match=r"^INPUT: 'new\.csv' has 3 columns without names; the job was trained on 2: 'a', 'b'"):
        samples("5,6,0\n", tmp_path, dataset, header=False)


def test_a_job_that_keeps_no_names(tmp_path: Path) -> None:
    """One of an earlier release, or one that was trained on arrays: columns are taken in their order, and that is said."""
    dataset = load(TRAINED, tmp_path)
    dataset.preprocessing.ClearField("columns")
    dataset.preprocessing.ClearField("target")
    notice = "new.csv: the job has no column names, so the columns were used in their order"
    for text, target, wanted in (
        ("x,y\n5,6\n", "", notice),
        ("x,y,z\n5,6,9\n", "", f"{notice}, and the last column was left out as the target"),
        ("label,x,y\n9,5,6\n", "label", notice),
    ):
        found = samples(text, tmp_path, dataset, target=target)
        assert (found.x.tolist(), found.notice) == ([[5, 6]], wanted)
    with pytest.raises(DataError, match=r"^INPUT: line 1 of 'new\.csv' holds numbers, such as '5\.1', beside '\?'"):
        samples("5.1,?\n4.9,3.0\n", tmp_path, dataset)


def test_a_job_that_was_trained_without_names(tmp_path: Path) -> None:
    dataset = load("1,2,0\n3,4,1\n", tmp_path, header=False)
    path = tmp_path / "new.csv"
    spec = job_pb2.Data(csv="a.csv", header=False)
    notice = "new.csv: the last column was left out as the target"
    for text, header, wanted in (("5,6\n7,8\n", None, ""), ("5,6,0\n7,8,0\n", None, notice), ("a,b\n5,6\n7,8\n", True, "")):
        path.write_text(text)
        found = data.read_samples(path, spec, dataset.preprocessing, 2, header)
        assert found.x.tolist() == [[5, 6], [7, 8]]
        assert wanted in found.notice
    path.write_text("a,b\n5,6\n")
    with pytest.raises(DataError, match=r"^INPUT: line 1, column 1: 'a' is not a number"):
        data.read_samples(path, spec, dataset.preprocessing, 2)


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1).map(lambda name: f"n{name}".strip())
numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(st.data())
def test_predicting_takes_what_training_took(tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject) -> None:
    """Any table that can be trained on gives the same samples to predict from, in whatever order its columns come."""
    folder = tmp_path_factory.getbasetemp()
    header = draw.draw(st.lists(names, min_size=2, max_size=6, unique=True))
    rows = draw.draw(st.lists(st.lists(numbers, min_size=len(header), max_size=len(header)), min_size=1, max_size=5))
    target = draw.draw(st.sampled_from(header))
    lines: list[list[Any]] = [header, *rows]
    trained = load(written(lines), folder, target=target)
    wanted = [name for name in header if name != target]
    order = draw.draw(st.permutations([header.index(name) for name in (header if draw.draw(st.booleans()) else wanted)]))
    found = samples(written([[line[position] for position in order] for line in lines]), folder, trained, target=target)
    assert found.notice == ""
    assert found.x.tobytes() == inputs(trained.train).tobytes()
    assert found.x.tolist() == [[row[header.index(name)] for name in wanted] for row in rows]


@given(st.text(st.sampled_from('ab1.,;"\n\r -e_٣?'), max_size=40))
def test_predicting_refuses_what_training_refuses(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Whatever the text is, both take it, with the same numbers, or both refuse it."""
    folder = tmp_path_factory.getbasetemp()
    try:
        trained = load(text, folder)
    except DataError:
        with pytest.raises(DataError):
            samples(text, folder, load("x,y\n1,2\n", folder))
        return
    if not trained.preprocessing.table and not trained.preprocessing.targets:
        path = folder / "new.csv"
        path.write_text(text, encoding="utf-8", newline="")
        assert data.read_samples(path, job_pb2.Data(), trained.preprocessing, -1).x.tolist() == inputs(trained.train).tolist()


def written(rows: list[list[Any]]) -> str:
    """Rows as a CSV file."""
    file = io.StringIO(newline="")
    csv.writer(file).writerows([[repr(cell) if isinstance(cell, float) else cell for cell in row] for row in rows])
    return file.getvalue()
