"""Folders of CSV files and of JSON lines, which are one table each."""

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from tests.learning.batches import inputs, targets
from thalweg.client.jobfile import load_job
from thalweg.learning import data
from thalweg.learning.data import DataError, Dataset, Temporary
from thalweg.learning.data.sources.text_tables import reading
from thalweg.v1 import job_pb2


@pytest.fixture(params=[False, True], ids=["held", "converted"], autouse=True)
def converts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:
        pytest.importorskip("pyarrow")
        monkeypatch.setattr(reading, "MAX_HELD_FILE", 0)
    return bool(request.param)


def write(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def load(folder: Path, source: str = "csv", loss: str = "mean_squared_error", **settings: Any) -> Dataset:
    model = {"layers": [{"dense": {"units": 2}}], "loss": loss, "dtype": "float64"}
    given = {"model": model, "data": {source: f"file://{folder}", **settings}}
    return data.load(json_format.ParseDict(given, job_pb2.JobSpec()), Temporary(Path))


def problem(folder: Path, source: str = "csv", **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(folder, source, **settings)
    return str(caught.value)


def test_files_are_one_table_in_the_order_of_their_paths(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "b.csv": "y,city,size\n3,Ulm,7\n",
        "a/1.csv": "size,city,y\n1.5,Bonn,1\n2.5,Ulm,2\n",
        "c.csv.gz": gzip.compress(b"size;y;city\r\n8;4;Bonn\r\n"),
        "notes.md": "no table",
        "_old/1.csv": "another,table\n",
    }
    found = load(write(tmp_path, files), target="y")
    assert inputs(found.train).tolist() == [[1.5, 1, 0], [2.5, 0, 1], [7, 0, 1], [8, 1, 0]]
    assert targets(found.train).tolist() == [1, 2, 3, 4]
    loaded = load_job({"data": {"csv": str(tmp_path)}})
    assert [*loaded.parts] == ["a/1.csv", "b.csv", "c.csv.gz"]


def test_a_folder_has_the_bits_of_one_file(tmp_path: Path) -> None:
    rows = [f"{number / 7!r},{number % 5},{number % 3}\n" for number in range(60)]
    whole = write(tmp_path / "whole", {"a.csv": "a,b,y\n" + "".join(rows)})
    parts = {f"{start:02}.csv": "a,b,y\n" + "".join(rows[start : start + 13]) for start in range(0, 60, 13)}
    one, several = (load(folder, standardize=True) for folder in (whole, write(tmp_path / "parts", parts)))
    assert inputs(one.train).tobytes() == inputs(several.train).tobytes()
    assert one.preprocessing.mean == several.preprocessing.mean


def test_what_columns_hold_follows_from_all_files(tmp_path: Path) -> None:
    # Numbers alone in the first file, but text in most rows of all.
    numbers = {"1.csv": "code,y\n1,0\n2,1\n", "2.csv": "code,y\nx,0\ny,1\nz,0\n"}
    assert inputs(load(write(tmp_path / "text", numbers)).train).shape == (5, 5)
    # Whole numbers do not show how decimal ones are written.
    decimals = {"1.csv": "a;y\n1;0\n2;1\n", "2.csv": "a;y\n1,5;0\n2,25;1\n"}
    assert inputs(load(write(tmp_path / "decimal", decimals)).train).tolist() == [[1], [2], [1.5], [2.25]]


def test_the_first_deviation_is_told_with_file_line_and_column(tmp_path: Path) -> None:
    write(tmp_path, {"1.csv": "a,b,y\n1,2,3\n4,5,6\n", "2.csv": "a,b,y\n1,2,3\n\n4,x,6\n"})
    assert problem(tmp_path).startswith("data.csv: line 4 of '2.csv', column 'b': 'x' is not a number")
    write(tmp_path, {"2.csv": "a,b,y\n1,2,3\n4,5\n"})
    assert problem(tmp_path).startswith("data.csv: '2.csv': line 3 has 2 cells but there are 3 columns")
    write(tmp_path, {"2.csv": "a,c,y\n1,2,3\n"})
    said = "data.csv: '2.csv' lacks the column 'b', which '1.csv' has; write all files with the same columns"
    assert problem(tmp_path) == said
    write(tmp_path, {"2.csv": "a,b,c,y\n1,2,3,4\n"})
    assert problem(tmp_path).startswith("data.csv: '2.csv' has the column 'c', which '1.csv' lacks")
    write(tmp_path, {"2.csv": "a,b,y\n1,2,3\n,5,6\n"})
    assert "values are missing, by column: 'a' 1; the first is line 3 of '2.csv'" in problem(tmp_path)
    write(tmp_path, {"2.csv": ""})
    assert "'2.csv' is empty" in problem(tmp_path)
    (tmp_path / "2.csv").unlink()
    write(tmp_path, {"year=2026/2.csv": "a,b,y\n1,2,3\n"})
    assert "the folder 'year=2026' of 'year=2026/2.csv' would be a column of Parquet or Arrow files" in problem(tmp_path)


def test_files_without_names_need_as_many_columns(tmp_path: Path) -> None:
    write(tmp_path, {"1.csv": "1,2\n3,4\n", "2.csv": "5,6\n"})
    assert inputs(load(tmp_path, header=False).train).tolist() == [[1], [3], [5]]
    write(tmp_path, {"2.csv": "5,6,7\n"})
    assert problem(tmp_path, header=False).startswith("data.csv: '2.csv' has 3 columns, but '1.csv' has 2")


def test_folders_of_json_lines(tmp_path: Path) -> None:
    files = {"1.jsonl": '{"a": 1, "y": 2}\n', "2.jsonl": '{"y": 3, "a": 4}\n{"y": 5, "a": null, "b": "x"}\n'}
    write(tmp_path, files)
    found = load(tmp_path, "json_lines", target="y", missing="0")
    assert inputs(found.train)[:, 0].tolist() == [1, 4, 0]
    assert targets(found.train).tolist() == [2, 3, 5]
    write(tmp_path, {"2.jsonl": '{"a": "one", "y": 1}\n{"a": 3, "y": 1}\n'})
    said = problem(tmp_path, "json_lines", target="y")
    assert said.startswith("data.json_lines: '2.jsonl': line 1, column 'a': 'one' is text, and most values of the column are num")


def test_a_folder_that_changes_is_converted_again(tmp_path: Path) -> None:
    write(tmp_path, {"1.csv": "a,y\n1,2\n", "2.csv": "a,y\n3,4\n"})
    assert len(load(tmp_path).train) == 2
    write(tmp_path, {"2.csv": "a,y\n3,4\n5,6\n"})
    assert len(load(tmp_path).train) == 3
