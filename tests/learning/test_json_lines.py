"""JSON lines as tables: values, types and what is missing, or why they are refused."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from tests.learning.batches import inputs, targets, told
from tests.learning.test_dialects import Holds, held_in, real, text, time, truth, whole
from thalweg.learning import data
from thalweg.learning.data import DataError, Dataset
from thalweg.learning.data.access import Temporary
from thalweg.learning.data.samples import ALL
from thalweg.learning.data.sources import SOURCES
from thalweg.learning.data.sources.columns import Source
from thalweg.learning.data.sources.text_tables import reading
from thalweg.learning.data.tables import Table
from thalweg.v1 import job_pb2


def table(content: str | bytes, folder: Path, **settings: Any) -> Table:
    path = folder / "a.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    spec = json_format.ParseDict({"json_lines": "a.jsonl", "sha256": "f" * 64, **settings}, job_pb2.Data())
    found = SOURCES["json_lines"](spec, Temporary(lambda _: path))
    assert not isinstance(found, Source)
    return found


def load(content: str, folder: Path, **settings: Any) -> Dataset:
    path = folder / "a.jsonl"
    path.write_text(content)
    model = {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error", "dtype": "float64"}
    spec = json_format.ParseDict({"model": model, "data": {"json_lines": "a.jsonl", **settings}}, job_pb2.JobSpec())
    return data.load(spec, lambda _: path)


GOOD: dict[str, tuple[str, dict[str, Any], dict[str, Holds]]] = {
    "numbers": ('{"a": 1, "b": 2.5}\n\n{"b": -1e3, "a": -2}\n', {}, {"a": whole(1, -2), "b": real(2.5, -1000)}),
    "missing ones": (
        '{"a": 1, "b": "x"}\n{"a": null}\n{"c": true}',
        {},
        {"a": whole(1, None, None), "b": text("x", None, None), "c": truth(None, None, True)},
    ),
    "text that looks like numbers": ('{"zip": "01234"}\n{"zip": "98765"}\n', {}, {"zip": text("01234", "98765")}),
    "text that says NA": ('{"a": "NA"}\n{"a": "none"}\n{"a": ""}\n', {}, {"a": text("NA", "none", None)}),
    "text that is told to be numbers": (
        '{"a": "1.5"}\n{"a": "2"}\n',
        {"columns": {"a": {"type": "number"}}},
        {"a": real(1.5, 2)},
    ),
    "numbers that are told to be text": (
        '{"a": 1}\n{"a": 1.50}\n',
        {"columns": {"a": {"type": "text"}}},
        {"a": text("1", "1.50")},
    ),
    "times": ('{"t": "2026-01-31T08:00:00Z"}\n{"t": "2026-02-01"}\n', {}, {"t": time("2026-01-31T08:00", "2026-02-01")}),
    "large numbers": (
        '{"a": 9007199254740993, "b": 12345678901234567890}\n',
        {},
        {"a": whole(9007199254740993), "b": real(12345678901234567890.0)},
    ),
    "escapes and lines in text": ('{"\\u00e4": "x\\ny, \\"z\\""}\r\n', {}, {"ä": text('x\ny, "z"')}),
    "nothing": ('{"a": null}\n', {}, {"a": real(None)}),
}
BAD: dict[str, tuple[str | bytes, str]] = {
    "an object": (
        '{"a": 1}\n{"a": {"b": 1}}\n',
        "line 2, column 'a' holds an object; write what is in it as columns of their own, such as a_1",
    ),
    "a list": ('{"a": [1, 2]}\n', "line 1, column 'a' holds a list; write what is in it as columns of their own"),
    "one text among numbers": (
        '{"a": 1}\n{"a": 2}\n{"a": "x"}\n',
        "line 3, column 'a': 'x' is text, and most values of the column are numbers",
    ),
    "one number among text": (
        '{"a": "x"}\n\n{"a": 2}\n{"a": "y"}\n',
        "line 3, column 'a': '2' is a number, and most values of the column are text",
    ),
    "no JSON": ('{"a": 1}\n{"a": 1,}\n', "line 2 is not JSON: "),
    "NaN": ('{"a": 1}\n{"a": NaN}\n', "line 2 is not JSON: NaN is not a number"),
    "a document": ('[\n  {"a": 1}\n]\n', "line 1 is not JSON: "),
    "no object": ('{"a": 1}\n[1, 2]\n', 'line 2 is no object, such as {"size": 1.5}; write an object on each line'),
    "an overflow": ('{"a": 1}\n{"a": 1e999}\n', "line 2, column 'a': '1e999' is too large for float64"),
    "a date among dates": ('{"a": "2026-01-01"}\n{"a": "2026-13-01"}\n', "line 2, column 'a': '2026-13-01' is not a date"),
    "no rows": ("\n", "'a.jsonl' has no rows; write an object on each line"),
    "no name": ('{"": 1}\n', "line 1: '' is not the name of a column; rename it"),
    "no UTF-8": (b'{"a": "\xe4"}\n', "'a.jsonl' is not UTF-8 text: line 1 has the byte 0xe4"),
    "deep": ("[" * 100_000 + "\n", "line 1 is not JSON: "),
}


@pytest.fixture(params=["in memory", "converted"], autouse=True)
def converts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a file is converted to Arrow, however small it is."""
    converted: bool = request.param == "converted"
    monkeypatch.setattr(reading, "MAX_HELD_FILE", -1 if converted else 1 << 20)
    return converted


@pytest.mark.parametrize("case", GOOD)
def test_lines_are_read(case: str, tmp_path: Path) -> None:
    content, settings, wanted = GOOD[case]
    found = held_in(table(content, tmp_path, **settings))
    assert found == wanted
    assert list(found) == list(wanted)


@pytest.mark.parametrize("case", BAD)
def test_lines_are_refused(case: str, tmp_path: Path) -> None:
    content, problem = BAD[case]
    with pytest.raises(DataError) as caught:
        table(content, tmp_path)
    assert told(caught.value, "data.json_lines", "a.jsonl").startswith(f"data.json_lines: {problem}")


LINES = '{"city": "Bern", "size": 1.5, "price": 10}\n\n{"city": "Basel", "price": 20, "size": 2.5}\n'


def test_lines_are_learned_and_predicted_from(tmp_path: Path) -> None:
    found = load(LINES, tmp_path, target="price")
    assert (inputs(found.train).tolist(), targets(found.train).tolist()) == ([[0, 1, 1.5], [1, 0, 2.5]], [10, 20])
    for name, content in (
        ("new.jsonl", '{"size": 2.5, "city": "Basel"}\n{"city": "Bern", "size": 1.5, "price": "?"}\n'),
        ("new.csv", "city,size\nBasel,2.5\nBern,1.5\n"),
    ):
        (tmp_path / name).write_text(content)
        spec = job_pb2.Data(json_lines="a.jsonl", target="price")
        rows = data.read_rows(tmp_path / name, spec, found.preprocessing)
        prepared = data.prepare_table(rows, found.preprocessing, np.dtype(np.float64))
        assert prepared
        assert prepared.x[ALL].tolist() == [[1, 0, 2.5], [0, 1, 1.5]]
    (tmp_path / "new.jsonl.gz").write_bytes(gzip.compress(b'{"size": 2.5, "city": "Basel"}'))
    zipped = data.read_rows(tmp_path / "new.jsonl.gz", spec, found.preprocessing)
    assert zipped
    assert held_in(zipped) == {"size": real(2.5), "city": text("Basel")}
    (tmp_path / "new.jsonl").write_text('{"size": "large", "city": "Basel"}\n')
    with pytest.raises(DataError, match=r"^INPUT: line 1, column 'size': 'large' is not a number"):
        data.read_rows(tmp_path / "new.jsonl", spec, found.preprocessing)


def test_numbers_have_the_bits_of_a_csv_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(200, 3)).tolist()
    lines = load("".join(f'{{"a": {a!r}, "b": {b!r}, "y": {y!r}}}\n' for a, b, y in rows), tmp_path, standardize=True)
    (tmp_path / "a.csv").write_text("a,b,y\n" + "".join(f"{a!r},{b!r},{y!r}\n" for a, b, y in rows))
    model = {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error", "dtype": "float64"}
    spec = json_format.ParseDict({"model": model, "data": {"csv": "a.csv", "standardize": True}}, job_pb2.JobSpec())
    csv = data.load(spec, lambda _: tmp_path / "a.csv")
    assert inputs(lines.train).tobytes() == inputs(csv.train).tobytes()
    assert lines.preprocessing == csv.preprocessing


def test_a_missing_value_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.missing: .* by column: 'size' 1; the first is line 4"):
        load(LINES + '{"city": "Bern", "price": 1}\n', tmp_path, target="price")
