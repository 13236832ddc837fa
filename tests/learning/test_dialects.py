"""CSV files as spreadsheets, R, pandas, databases and instruments write them: their values, or why they are refused."""

import bz2
import codecs
import csv
import gzip
import hashlib
import io
import itertools
import lzma
import math
import re
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from tests.learning.batches import inputs, targets, told
from thalweg.contract.resources import Memory
from thalweg.learning import data
from thalweg.learning.data import DataError, Dataset, MemoryLackError
from thalweg.learning.data.access import Temporary
from thalweg.learning.data.samples import ALL
from thalweg.learning.data.sources.text_tables import batches, kinds, reading, records
from thalweg.learning.data.sources.text_tables.words import DELIMITERS, JSON_LINES, TO_TRAIN, Told, told_by
from thalweg.learning.data.tables import Table
from thalweg.learning.errors import NodeError
from thalweg.v1 import job_pb2

FILES = Path(__file__).parents[1] / "data" / "tables"
SHA256 = "f" * 64


class Holds(NamedTuple):
    """What a column holds: its type, the name of its dtype, and its cells, None where one is missing."""

    type: str
    dtype: str
    cells: list[Any]


def whole(*cells: int | None) -> Holds:
    return Holds("number", "int64", [*cells])


def real(*cells: float | None) -> Holds:
    return Holds("number", "float64", [*cells])


def text(*cells: str | None) -> Holds:
    return Holds("text", "int32", [*cells])


def truth(*cells: bool | None) -> Holds:
    return Holds("boolean", "bool", [*cells])


def time(*cells: str | None) -> Holds:
    return Holds("time", "datetime64[us]", [cell if cell is None else np.datetime64(cell, "us").item() for cell in cells])


# The settings of a job, the columns, and the line of the last row.
GOOD: dict[str, tuple[dict[str, Any], dict[str, Holds], int]] = {
    "pandas.csv": (
        {},
        {
            "id": whole(1, 2, 3),
            "price": real(1.5, 2, None),
            "sold": truth(True, False, True),
            "when": time("2026-01-31T08:15", "2026-02-01", "2026-02-02T12:00"),
            "city": text("Bern", "Basel", None),
        },
        4,
    ),
    "r_no_row_names.csv": (
        {},
        {"a": real(1.5, None, 2.5), "b": text("x", "y", None), "ok": truth(True, False, None)},
        4,
    ),
    "r_write_csv2.csv": ({}, {"weight": real(1.25, -2.5), "name": text("Anna; B.", 'C "D"')}, 3),
    "excel_german.csv": ({}, {"Menge": whole(3, 12), "Preis": real(1.5, 0.75), "Datum": time("2026-12-31", "2027-01-01")}, 3),
    "excel_us.csv": ({}, {"date": time("2026-12-31", "2027-01-02"), "amount": real(10.5, 11), "flag": truth(True, False)}, 3),
    "excel_french.csv": ({}, {"jour": time("2026-12-31", "2027-01-01"), "valeur": real(1.5, 2.5)}, 3),
    "ambiguous_dates.csv": ({}, {"date": text("1/2/2027", "3/4/2027"), "n": whole(1, 2)}, 3),
    "excel_unicode.txt": ({}, {"näme": text("ä", "ö"), "zahl": real(1.5, 2.5)}, 3),
    "excel_na.csv": ({}, {"a": whole(1, None, 4), "b": whole(2, 3, 5)}, 4),
    "excel_errors.csv": (
        {"missing_values": ["#N/A", "#DIV/0!"]},
        {"a": whole(1, None, None, 5), "b": whole(2, 3, 4, 6)},
        5,
    ),
    "latin1.csv": ({"encoding": "windows-1252"}, {"größe": text("groß", "klein"), "zahl": whole(1, 2)}, 3),
    "thousands.csv": ({"columns": {"a": {"type": "text"}}}, {"a": text("1,234", "12,345"), "b": whole(1, 2)}, 3),
    "unclear_decimal.csv": ({"decimal": "comma"}, {"a": real(1.234, 5.678), "b": whole(1, 2)}, 3),
    "percent.csv": ({"columns": {"a": {"type": "text"}}}, {"a": text("5%", "7%"), "b": whole(1, 2)}, 3),
    "postgres_copy.tsv": ({}, {"id": whole(1, 2, 3), "name": text("Anna", None, "Bob"), "score": real(1.5, None, 2.5)}, 4),
    "mysql.tsv": ({}, {"id": whole(1, 2), "name": text("Anna", None), "score": real(1.5, None)}, 3),
    "psql_bars.txt": ({}, {"id": whole(1, 2), "name": text("Anna", "Bob"), "ok": truth(True, False)}, 3),
    "sqlite_quotes.csv": ({}, {"id": whole(1, 2, 3, 4), "text": text("two\nlines", 'a "word"', "a, b", "plain")}, 7),
    "instrument_comments.csv": ({}, {"wavelength": real(400.5, 401), "counts": whole(12, 15)}, 6),
    "instrument_trailing.csv": ({}, {"t": real(0.1, 0.2), "u": whole(1, 2)}, 3),
    "trailing_rows.csv": ({}, {"t": whole(1, 3), "u": whole(2, 4)}, 3),
    "numpy_savetxt.csv": ({}, {"# x": real(1, 3), "y": real(2, -4)}, 3),
    "numpy_no_names.csv": ({"header": False}, {"1": real(1, 3), "2": real(2, 4)}, 2),
    "iso_times.csv": (
        {},
        {
            "t": time("2026-01-31T08:00", "2026-01-31T08:00", "2026-01-31T08:00:00.25"),
            "u": time("2026-01-31", "2026-02-01", "2026-02-02"),
            "v": whole(1, 2, 3),
        },
        4,
    ),
    "time_odd.csv": (
        {"columns": {"t": {"type": "text"}}},
        {"t": text("2026-01-31", "2026-02-30", "2026-02-01"), "v": whole(1, 2, 3)},
        4,
    ),
    "old_mac.csv": ({}, {"a": whole(1, 3), "b": whole(2, 4)}, 3),
    "all_missing.csv": ({}, {"a": real(None, None), "b": whole(1, 2)}, 3),
    "words_only.csv": ({}, {"a": text(None, "x", "y"), "b": real(None, None, None)}, 4),
    "codes.csv": ({"columns": {"zip": {"type": "text"}}}, {"zip": text("01234", "98765"), "n": whole(1, 2)}, 3),
    "big_integers.csv": ({}, {"id": whole(9007199254740993, -5), "n": whole(1, 2)}, 3),
    "gzipped.csv.gz": ({}, {"a": whole(1, 2), "b": text("x", "y")}, 3),
    "zstandard.csv.zst": ({}, {"a": whole(1, 2), "b": text("x", "y")}, 3),
}
# The settings of a job, and what is wrong.
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "pandas_index.csv": ({}, "line 1, column 1 has no name; pandas writes no index with to_csv(..., index=False)"),
    "r_write_csv.csv": ({}, "line 1, column 1 has no name; pandas writes no index with to_csv(..., index=False), and R no names"),
    "r_write_table.csv": (
        {},
        "line 2 has 3 cells but there are 2 columns; if the first cell is the name of a row, as R writes it, write the table "
        "with row.names = FALSE",
    ),
    "excel_errors.csv": ({}, "line 4, column 'a': '#DIV/0!' is not a number; write numbers as in"),
    "latin1.csv": (
        {},
        "'latin1.csv' is not UTF-8 text: line 1 has the byte 0xf6; save it as UTF-8, or give data.encoding, such as",
    ),
    "thousands.csv": ({}, "line 2, column 'a': '1,234' is not a number; write numbers as in"),
    "thousands_german.csv": (
        {},
        "line 2, column 'a': '1.234,5' is not a number; write numbers as in -1234.5 or 1.5e-3, without separators of thousands",
    ),
    "unclear_decimal.csv": (
        {},
        "line 2 of 'unclear_decimal.csv': '1,234' may be 1.234 or 1234; remove separators of thousands, or",
    ),
    "mixed_decimals.csv": ({}, "'mixed_decimals.csv' has '1,5' on line 2 and '2.5' on line 3, so it is not clear how decimal"),
    "one_comma.csv": ({"decimal": "point"}, "line 6, column 'a': '1,5' is not a number; write numbers as in -1234.5"),
    "percent.csv": (
        {},
        "line 2, column 'a': '5%' is not a number; write numbers as in -1234.5 or 1.5e-3, without the percent sign",
    ),
    "currency.csv": (
        {},
        "line 2, column 'a': '$5.00' is not a number; write numbers as in -1234.5 or 1.5e-3, without the currency",
    ),
    "one_odd_cell.csv": ({}, "line 7, column 'a': 'abc' is not a number"),
    "instrument_preamble.csv": (
        {},
        "lines 1 to 3 of 'instrument_preamble.csv', such as 'Spectrometer 7', come before the table, which begins on line 4; "
        "remove them, or begin them with #",
    ),
    "late_comment.csv": ({}, "line 3 has 1 cell but there are 2 columns; comments may stand before the table only"),
    "numpy_no_names.csv": (
        {},
        "'numpy_no_names.csv' begins with numbers, but must begin with a line of column names; add one, or",
    ),
    "ambiguous_dates.csv": (
        {"columns": {"date": {"type": "time"}}},
        "column 'date' holds dates that may be day, month, year or month, day, year; write them as 2026-12-31",
    ),
    "time_odd.csv": ({}, "line 3, column 't': '2026-02-30' is not a date in the order year, month, day, with or without a time"),
    "truth_odd.csv": ({}, "line 5, column 't': 'maybe' is not true or false, as other cells of the column are; correct it"),
    "short_row.csv": ({}, "line 3 has 2 cells but there are 3 columns"),
    "open_quote.csv": ({}, "line 3 is not proper CSV: it opens a quote that is not closed"),
    "damaged.csv.gz": ({}, "'damaged.csv.gz' cannot be decompressed: Compressed file ended before"),
    "psql_bars.txt": ({"columns": {"name": {"type": "number"}}}, "line 2, column 'name': 'Anna' is not a number"),
}


@pytest.fixture(params=["in memory", "converted"])
def converts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a file is converted to Arrow, however small it is."""
    converted: bool = request.param == "converted"
    monkeypatch.setattr(reading, "MAX_HELD_FILE", -1 if converted else 1 << 20)
    if not converted:
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    return converted


def read(path: Path, settings: dict[str, Any]) -> Table:
    told = told_by(json_format.ParseDict(settings, job_pb2.Data()))
    return reading.read(path, TO_TRAIN, path.name, told, Temporary(lambda _: path), SHA256).table


def held_in(table: Table) -> dict[str, Holds]:
    names = [column.name for column in table.columns]
    taken = table.take(ALL, names)
    found = {}
    for column in table.columns:
        values, missing, words = taken[column.name]
        assert values.dtype == column.dtype
        cells = [words[value] for value in values.tolist()] if words else values.tolist()
        gone = np.zeros(len(table), bool) if missing is None else missing
        found[column.name] = Holds(
            column.type.value, column.dtype.name, [None if lost else cell for cell, lost in zip(cells, gone, strict=True)]
        )
    return found


@pytest.mark.parametrize("name", GOOD)
def test_a_file_is_read(name: str, converts: bool) -> None:
    settings, wanted, line = GOOD[name]
    table = read(FILES / name, settings)
    assert type(table).__name__ == ("ConvertedTable" if converts else "HeldTable")
    assert held_in(table) == wanted
    assert list(held_in(table)) == list(wanted)
    assert table.where(len(table) - 1) == f"line {line}"
    some = table.take(np.array([len(table) - 1, 0]), list(wanted))
    for column, cells in some.items():
        values, missing, words = cells
        found = [words[value] if words else value for value in values.tolist()]
        ends = [wanted[column].cells[-1], wanted[column].cells[0]]
        gone = [False, False] if missing is None else missing.tolist()
        assert [None if lost else cell for cell, lost in zip(found, gone, strict=True)] == ends


@pytest.mark.parametrize("name", BAD)
def test_a_file_is_refused(name: str, converts: bool) -> None:
    settings, problem = BAD[name]
    with pytest.raises(DataError) as caught:
        read(FILES / name, settings)
    assert told(caught.value, "data.csv", name).startswith(f"data.csv: {problem}")


def test_each_file_is_a_case() -> None:
    names = {path.name for path in FILES.iterdir()}
    assert names == {*GOOD, *BAD}
    assert len(names) >= 30


@pytest.mark.parametrize(
    ("odd", "problem"), [("12,5", "'12,5' is not a number; write numbers as"), ("abc", "'abc' is not a number")]
)
def test_one_odd_cell_of_many_is_told(odd: str, problem: str, converts: bool, tmp_path: Path) -> None:
    rows = [f"{n}.25\t{n}" for n in range(10_000)]
    rows[5] = f"{odd}\t1"
    (tmp_path / "a.csv").write_text("\n".join(["a\tb", *rows]))
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.csv", {"decimal": "point"})
    assert str(caught.value).startswith(f"data.csv: 'a.csv': line 7, column 'a': {problem}")
    assert str(caught.value).endswith('or give data.columns.a.type = "text"')


def test_a_cell_after_the_first_batch_is_told_with_its_line(
    converts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where cells of several lines and empty lines come before it."""
    monkeypatch.setattr(batches, "MAX_CELLS", 6)
    lines = ["a,b", "# no comment,1", *(f'"x\ny",{n}' for n in range(20)), "", "z,?", "z,7", "z,seven"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"^data\.csv: 'a\.csv': line 46, column 'b': 'seven' is not a number"):
        read(tmp_path / "a.csv", {})
    (tmp_path / "a.csv").write_text("\n".join(lines[:-1]))
    table = read(tmp_path / "a.csv", {})
    assert [table.where(row) for row in (0, 1, 2, 20, 21, 22)] == [f"line {n}" for n in (2, 3, 5, 41, 44, 45)]
    assert held_in(table)["b"] == whole(1, *range(20), None, 7)
    assert held_in(table)["a"].cells == ["# no comment", *["x\ny"] * 20, "z", "z"]


def test_a_file_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_HELD_FILE", -1)
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,x\n")
    access = Temporary(lambda _: path)
    first = reading.read(path, TO_TRAIN, "a.csv", told_by(job_pb2.Data()), access, SHA256).table
    # What the file holds no longer matters: its content is known by its SHA-256.
    path.write_text("a,b\nc,y\n")
    second = reading.read(path, TO_TRAIN, "a.csv", told_by(job_pb2.Data()), access, SHA256).table
    assert held_in(first) == held_in(second) == {"a": whole(1), "b": text("x")}
    other = reading.read(path, TO_TRAIN, "a.csv", told_by(job_pb2.Data(header=False)), access, SHA256).table
    assert held_in(other) == {"1": text("a", "c"), "2": text("b", "y")}


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_file_may_be_compressed(compress: Callable[[bytes], bytes], converts: bool, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(compress(b"BZh9,b\n1,x\n"))
    assert held_in(read(tmp_path / "a.csv", {})) == {"BZh9": whole(1), "b": text("x")}
    (tmp_path / "a.csv").write_bytes(b"BZh9,b\n1,x\n")
    assert held_in(read(tmp_path / "a.csv", {})) == {"BZh9": whole(1), "b": text("x")}


def test_without_pyarrow_tables_are_in_memory_and_only_zstandard_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert held_in(read(FILES / "gzipped.csv.gz", {})) == GOOD["gzipped.csv.gz"][1]
    with pytest.raises(
        NodeError, match=r"^data\.csv: 'zstandard\.csv\.zst' is compressed with Zstandard: pyarrow is not installed"
    ):
        read(FILES / "zstandard.csv.zst", {})


ENCODINGS = {
    b"a,b\n\x81,1\n": ("windows-1252", "is not text in windows-1252: "),
    b"a,b\n\xc3\xa4,1\n\xe4,2\n": ("utf-8", "is not text in utf-8: "),
    codecs.BOM_UTF16_LE + b"a\0,": (None, "is not text in utf-16: "),
}


@pytest.mark.parametrize("content", ENCODINGS, ids=repr)
def test_bytes_that_are_no_text_are_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    encoding, problem = ENCODINGS[content]
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.csv", {"encoding": encoding} if encoding else {})
    assert str(caught.value).startswith(f"data.csv: 'a.csv' {problem}")


WIDTHS = {
    "a,b\nr1,x,y\nr2,z,w\n": "line 2 has 3 cells but there are 2 columns; if the first cell is the name of a row",
    "a,b,c\nx,y\nz,w\n": "line 2 has 2 cells but there are 3 columns",
    "Results\na,b\nx,y\nz,w\n": "line 1 of 'a.csv', such as 'Results', comes before the table, which begins on line 2",
    "Results\n1,2\n3,4\n": "line 2 has 2 cells but there is 1 column",
}


@pytest.mark.parametrize("content", WIDTHS, ids=repr)
def test_rows_of_other_widths_are_told(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.csv", {})
    assert told(caught.value, "data.csv", "a.csv").startswith(f"data.csv: {WIDTHS[content]}")


def test_a_file_that_changes_while_it_is_read_is_told(converts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n")
    found = kinds.kinds_of

    def changing(rows: batches.Rows, names: Sequence[str], told: Told) -> list[kinds.Kind]:
        path.write_text("a,b\n1,2\n3,4\n")
        return found(rows, names, told)

    monkeypatch.setattr(reading, "kinds_of", changing)
    with pytest.raises(DataError, match=r"^data\.csv: 'a\.csv' has changed while it was read; restore the file, or submit"):
        read(path, {})


def test_the_memory_of_a_conversion_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_HELD_FILE", -1)
    monkeypatch.setattr(records, "RUN", 1 << 15)

    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.csv"
        path.write_text("a,b,c\n" + "".join(f"{row},{row / 7},word {row}\n" for row in range(rows)))
        tracemalloc.start()
        try:
            assert len(read(path, {})) == rows
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1000)
    assert peak(48_000) < 1.25 * peak(12_000)


def test_a_table_in_memory_needs_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For words, too, each of them once."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    room = Memory(1 << 20, 1 << 20)
    monkeypatch.setattr("thalweg.learning.data.sources.text_tables.held.memory", lambda: room)
    monkeypatch.setattr("thalweg.learning.data.memory.memory", lambda: room)
    (tmp_path / "a.csv").write_text("a,b\n" + "".join(f"word {row % 100},x\n" for row in range(30_000)))
    assert len(read(tmp_path / "a.csv", {})) == 30_000
    (tmp_path / "a.csv").write_text("a,b\n" + "".join(f"word {row},x\n" for row in range(30_000)))
    with pytest.raises(MemoryLackError, match=r"^data\.csv: 'a\.csv' needs .* of memory; this machine has 1\.00 MiB available"):
        read(tmp_path / "a.csv", {})


def load(path: Path, loss: str = "mean_squared_error", dtype: str = "float64", **settings: Any) -> Dataset:
    model = {"layers": [{"dense": {"units": 1}}], "loss": loss, "dtype": dtype}
    settings = {"csv": "a.csv", "sha256": SHA256, **settings}
    return data.load(json_format.ParseDict({"model": model, "seed": 3, "data": settings}, job_pb2.JobSpec()), lambda _: path)


# Of the reader of earlier releases: preprocessing, names and order of columns, samples and targets.
DIGESTS: list[tuple[dict[str, Any], str]] = [
    ({}, "7be9d0b350e96d6a681c22f9b9f55bf771891d03524b65f523f318c538d05578"),
    ({"standardize": True, "validation_fraction": 0.2}, "a6dae5b31acccc536aa56d388da34839f906c9fc58521f2170b025964cf8cab3"),
    ({"target": "n"}, "b38d8386b4026d0bd3165ad7ecca9549b53ad356c11e2d1bd138f2a87eae8160"),
    ({"one_hot": True}, "6aa1c03968f0f2d82efd3714c9b51592242259e3d4c17a86027322c1a204ae34"),
]


@pytest.mark.parametrize(("settings", "digest"), DIGESTS, ids=str)
def test_a_table_of_numbers_has_the_bits_of_earlier_releases(
    settings: dict[str, Any], digest: str, converts: bool, tmp_path: Path
) -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(500, 5)) * 10.0 ** rng.integers(-8, 9, (500, 5))
    x[:, 3] = rng.integers(-5, 6, 500)
    rows = [[repr(float(value)) for value in row] for row in x]
    for row in rows:
        row[3] = row[3].removesuffix(".0")
    rows[3][3] = "-0"
    lines = ["a b,ä,2019,n,#5,y", *(",".join([*row, str(index % 3)]) for index, row in enumerate(rows))]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = load(tmp_path / "a.csv", dtype="float32", **settings)
    made = hashlib.sha256(found.preprocessing.SerializeToString(deterministic=True))
    for part in (found.train, found.validation):
        for name, values in sorted(part.take(ALL).items()):
            made.update(f"{name} {values.dtype} {values.shape}".encode())
            made.update(np.ascontiguousarray(values).tobytes())
    assert made.hexdigest() == digest


def test_columns_of_all_kinds_are_learned_from(converts: bool) -> None:
    found = load(FILES / "pandas.csv", target="price", missing="drop", features=["city", "sold"])
    assert inputs(found.train).tolist() == [[0, 1, 1], [1, 0, 0]]
    assert targets(found.train).tolist() == [1.5, 2]
    with pytest.raises(DataError, match=r"'a\.csv' values are missing, by column: 'city' 1.*the first is line 4"):
        load(FILES / "pandas.csv", target="id", features=["city", "sold"])


def test_a_table_without_names_may_hold_text(converts: bool, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,1.5,3\ny,2.5,4\n")
    found = load(tmp_path / "a.csv", header=False)
    assert inputs(found.train).tolist() == [[1, 0, 1.5], [0, 1, 2.5]]
    assert targets(found.train).tolist() == [3, 4]
    (tmp_path / "new.csv").write_text("y,3.5\n")
    spec = job_pb2.Data(csv="a.csv", header=False)
    rows = data.read_rows(tmp_path / "new.csv", spec, found.preprocessing)
    prepared = data.prepare_table(rows, found.preprocessing, np.dtype(np.float64))
    assert prepared
    assert prepared.x[ALL].tolist() == [[0, 1, 3.5]]


def test_rows_to_predict_from_are_read_as_the_training_data_was(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("zip;size;when;y\n01234;1,5;31.12.2026;1\n1234;2,5;01.01.2027;2\n", encoding="utf-8")
    settings: dict[str, Any] = {"columns": {"zip": {"type": "text"}, "when": {"prepare": "standardize"}}, "decimal": "comma"}
    found = load(tmp_path / "a.csv", **settings)
    spec = json_format.ParseDict({"csv": "a.csv", **settings}, job_pb2.Data())
    # In another order, with a column that does not matter in place of the target, and numbers alone where there is text.
    (tmp_path / "new.csv").write_text("y;when;size;zip\nwho;31.12.2026;1,5;01234\n?;1.1.2027;2,5;1234\n")
    rows = data.read_rows(tmp_path / "new.csv", spec, found.preprocessing)
    prepared = data.prepare_table(rows, found.preprocessing, np.dtype(np.float64))
    assert prepared
    assert prepared.x[ALL].tolist() == inputs(found.train).tolist()
    (tmp_path / "new.csv").write_text("when;size;zip\n31.12.2026;1.5;01234\n")
    with pytest.raises(DataError) as caught:
        data.read_rows(tmp_path / "new.csv", spec, found.preprocessing)
    assert str(caught.value) == "INPUT: line 2, column 'size': '1.5' is not a number; write numbers as in -1234,5 or 1,5e-3"


@pytest.mark.parametrize(
    "cell", ["0", "-0.0", "1e-320", "1.7976931348623157e308", "4.9e-324", ".5", "5.", "+3", " 7 ", "1E5", "007"]
)
def test_a_number_is_pythons(cell: str, converts: bool, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"a,b\n{cell},1\n")
    (value,) = read(tmp_path / "a.csv", {}).take(ALL, ["a"])["a"].values.tolist()
    assert (float(value), math.copysign(1, value)) == (float(cell), math.copysign(1, float(cell)))


def test_a_compressed_table_is_predicted_from(tmp_path: Path) -> None:
    found = load(FILES / "gzipped.csv.gz", target="a")
    rows = data.read_rows(FILES / "gzipped.csv.gz", job_pb2.Data(csv="a.csv", target="a"), found.preprocessing)
    prepared = data.prepare_table(rows, found.preprocessing, np.dtype(np.float64))
    assert prepared
    assert prepared.x[ALL].tolist() == inputs(found.train).tolist() == [[1, 0], [0, 1]]


words = st.text(st.sampled_from('ab "\n\r,;|\t#'), max_size=6).map(lambda text: f"w{text}w")
cells = st.one_of(st.integers(-(10**17), 10**17).map(str), st.floats(allow_nan=False, allow_infinity=False).map(repr), words)


@given(st.data())
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject) -> None:
    """Whatever cells hold, and however they are separated, in memory and converted, with the line of each row."""
    folder = tmp_path_factory.getbasetemp()
    delimiter = draw.draw(st.sampled_from(["comma", "semicolon", "tab", "bar"]))
    width = draw.draw(st.integers(2, 4))
    rows = draw.draw(st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=12))
    end = draw.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    file = io.StringIO(newline="")
    # Python quotes only the line ends that it writes.
    quoting: Literal[0, 1] = csv.QUOTE_MINIMAL if end == "\r\n" and draw.draw(st.booleans()) else csv.QUOTE_ALL
    writer = csv.writer(file, delimiter=DELIMITERS[delimiter], lineterminator=end, quoting=quoting)
    writer.writerow([f"c{index}" for index in range(width)])
    starts = []
    for row in rows:
        starts.append(len(re.findall(r"\r\n|\r|\n", file.getvalue())) + 1)
        writer.writerow(row)
    (folder / "a.csv").write_text(file.getvalue(), newline="")
    settings: dict[str, Any] = {"delimiter": delimiter, "decimal": "point"}
    settings["columns"] = {f"c{index}": {"type": "text"} for index in range(width)}
    order = np.array(draw.draw(st.permutations(range(len(rows)))))
    for run, limit in itertools.product((8, 1 << 20), (-1, 1 << 20)):
        with mock.patch.object(records, "RUN", run), mock.patch.object(reading, "MAX_HELD_FILE", limit):
            table = read(folder / "a.csv", settings)
        found = [held.cells for held in held_in(table).values()]
        assert [[*row] for row in zip(*found, strict=True)] == [[cell.strip() for cell in row] for row in rows]
        assert [table.where(row) for row in range(len(rows))] == [f"line {start}" for start in starts]
        for index, (codes, missing, known) in enumerate(table.take(order, list(settings["columns"])).values()):
            assert missing is None
            assert [known[code] for code in codes.tolist()] == [rows[row][index].strip() for row in order]


pieces = st.sampled_from(
    [
        *(bytes([character]) for character in b',;|\t"\n\r# 1-.%{}[:\0\xff'),
        *(b"1,5", b"-2.5", b"e9", b"true", b"2026-01-01", b"31.12.2026", b"NA", b'{"a": ', b"null", b"word"),
        *("ä".encode(), codecs.BOM_UTF8, codecs.BOM_UTF16_LE, b"\x1f\x8b"),
    ]
)


@given(st.lists(pieces, max_size=30).map(b"".join), st.booleans())
def test_whatever_a_file_holds_it_is_a_table_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, is_json: bool
) -> None:
    """The same one, whether it is converted or not."""
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(content)
    told = JSON_LINES if is_json else Told()
    found: list[object] = []
    for limit in (-1, 1 << 20):
        with mock.patch.object(reading, "MAX_HELD_FILE", limit):
            try:
                table = reading.read(path, TO_TRAIN, "any.csv", told, Temporary(lambda _: path), SHA256).table
            except DataError as error:
                found.append(str(error))
            else:
                found.append((table.columns, held_in(table), table.missing, [table.where(row) for row in range(len(table))]))
    assert found[0] == found[1]
