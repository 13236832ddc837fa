"""`thalweg data check`: what is said of a file, and that the job that it prints can be trained."""

import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.client.conftest import Command
from tests.client.helpers import Cluster
from thalweg.client import Result
from thalweg.learning.data.sources.text_tables import reading


def flowers(rows: int = 60) -> str:
    """A table as a spreadsheet writes it: text with brackets, decimal commas, holes, dates, an identifier and labels."""
    lines = ["Ort;Höhe;[alt];Wann;Nummer;Art"]
    for row in range(rows):
        height = "" if row % 10 == 0 else f"{row},5"
        place = ("Bern", "Basel", "[b]Chur[/]")[row % 3]
        lines.append(f"{place};{height};{row % 2 == 0};{row % 28 + 1}.01.2026;n{row};{('Rose', 'Lilie')[row % 2]}")
    return "\n".join(lines) + "\n"


def trained(cluster: Cluster, checked: Any, folder: Path) -> Result:
    """The result of the job that was printed, from a file as it stands."""
    (folder / "first.toml").write_text(checked["job_file"], encoding="utf-8")
    result = cluster.client.submit(folder / "first.toml").wait()
    assert result.state == "SUCCEEDED"
    return result


def test_a_table_is_described_and_its_job_trains(cluster: Cluster, command: Command, tmp_path: Path) -> None:
    (tmp_path / "blumen.csv").write_text(flowers(), encoding="utf-8")
    seen = command("data", "check", "blumen.csv", "--json").json
    assert (seen["source"], seen["rows"]) == ("csv", 60)
    how = {"delimiter": "semicolon", "encoding": "utf-8", "decimal": "comma", "header": True, "skipped": 0}
    assert seen["written"] == how
    columns = {column["name"]: column for column in seen["columns"]}
    place, height, old, when = (columns[name] for name in ("Ort", "Höhe", "[alt]", "Wann"))
    assert (place["type"], place["distinct"], place["prepare"], place["features"]) == ("text", 3, "one_hot", 3)
    assert (height["type"], height["low"], height["high"], height["missing"]) == ("number", 1.5, 59.5, 6)
    assert (old["type"], old["distinct"], old["features"]) == ("boolean", 2, 1)
    assert (when["low"], when["high"], when["features"]) == ("2026-01-01T00:00:00", "2026-01-28T00:00:00", 7)
    assert seen["target"]["classes"] == {"Lilie": 30, "Rose": 30}
    data = seen["job"]["data"]
    assert (data["missing"], data["ignore"]) == ("median", ["Nummer"])
    assert data["validation"] == {"fraction": 0.2, "stratify": "Art"}
    result = trained(cluster, seen, tmp_path)
    assert result.validation
    assert result.validation.accuracy is not None


def test_a_folder_of_csv_files_is_one_table(command: Command) -> None:
    Path("trips").mkdir()
    for number in range(3):
        Path("trips", f"{number}.csv").write_text("a;y\n1,5;0\n2;1\n")
    printed = command("data", "check", "trips")
    assert "trips: 6 rows, 2 columns" in printed.out
    assert "delimiter semicolon" in printed.out


def test_what_people_read_says_the_same(command: Command, tmp_path: Path) -> None:
    (tmp_path / "blumen.csv").write_text(flowers(), encoding="utf-8")
    printed = command("data", "check", "blumen.csv")
    assert printed.code == 0
    assert "blumen.csv: 60 rows, 6 columns" in printed.out
    assert "delimiter semicolon, encoding utf-8, decimal comma, names in the first line" in printed.out
    rows = {line.split()[0]: " ".join(line.split()) for line in printed.out.splitlines() if line}
    assert rows["Ort"] == "Ort text 3 distinct, most often 'Basel' 0 one-hot, 3 features"
    assert rows["Höhe"] == "Höhe number 1.5 … 59.5 6 number"
    assert rows["[alt]"] == "[alt] boolean 2 distinct, most often 'false' 0 0 or 1"
    assert "target Art: 2 classes: Lilie (30), Rose (30)" in printed.out
    assert printed.out.endswith(command("data", "check", "blumen.csv", "--json").json["job_file"])


def test_numbers_are_learnt_in_their_own_units(cluster: Cluster, command: Command, tmp_path: Path) -> None:
    lines = ["a,b,y", *(f"{row},{row % 7},{1000 * row}.5" for row in range(50))]
    (tmp_path / "n.csv").write_text("\n".join(lines) + "\n")
    seen = command("data", "check", "n.csv", "--json").json
    assert seen["target"]["classes"] == {}
    assert seen["job"]["model"]["loss"] == "mean_squared_error"
    assert seen["job"]["data"]["columns"] == {"y": {"prepare": "standardize"}}
    assert trained(cluster, seen, tmp_path).validation
    other = command("data", "check", "n.csv", "--target", "b", "--json").json
    assert other["target"]["classes"] == {"0": 8} | {str(label): 7 for label in range(1, 7)}
    assert trained(cluster, other, tmp_path).train


def test_a_table_without_names_is_read_as_settings_say(cluster: Cluster, command: Command, tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("".join(f"{row},{row % 3},{row % 2}\n" for row in range(30)))
    refused = command("data", "check", "n.csv")
    assert refused.code == 1
    assert "data.header = false" in refused.err
    seen = command("data", "check", "n.csv", "--set", "data.header=false", "--json").json
    assert [column["name"] for column in seen["columns"]] == ["1", "2", "3"]
    assert seen["target"]["classes"] == {"0": 15, "1": 15}
    trained(cluster, seen, tmp_path)


def test_columns_that_training_refuses_are_told_and_avoided(cluster: Cluster, command: Command, tmp_path: Path) -> None:
    rows = 400
    table = pa.table(
        {
            "list": [[row] for row in range(rows)],
            "empty": pa.array([None] * rows, pa.float64()),
            "city": [None if row == 7 else f"c{row % 150}" for row in range(rows)],
            "size": pa.array([None if row % 9 == 0 else row for row in range(rows)], pa.int64()),
            "sold": [None if row == 3 else row % 2 == 0 for row in range(rows)],
        }
    )
    (tmp_path / "trips").mkdir()
    pq.write_table(table.slice(0, 300), tmp_path / "trips" / "a.parquet", row_group_size=64)
    pq.write_table(table.slice(300), tmp_path / "trips" / "b.parquet")
    seen = command("data", "check", "trips", "--json").json
    assert (seen["source"], seen["rows"], seen["written"]) == ("parquet", rows, None)
    refused = {column["name"]: column["refused"] for column in seen["columns"]}
    assert "lists" in refused["list"]
    assert "no value" in refused["empty"]
    assert "more than 100 categories" in refused["city"]
    assert not refused["size"]
    assert {column["name"]: column["missing"] for column in seen["columns"]} == {
        "list": None, "empty": rows, "city": 1, "size": 45, "sold": 1,
    }  # fmt: skip
    data = seen["job"]["data"]
    assert data["ignore"] == ["empty", "list"]
    assert data["columns"]["city"] == {"prepare": "hash", "missing": "unknown"}
    assert data["columns"]["sold"] == {"missing": "drop"}
    assert seen["target"]["classes"] == {"false": 199, "true": 200}
    trained(cluster, seen, tmp_path)


def test_json_lines_are_a_table(cluster: Cluster, command: Command, tmp_path: Path) -> None:
    lines = [f'{{"size": {row}, "kind": "{"ab"[row % 2]}"}}' for row in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    seen = command("data", "check", "rows.jsonl", "--json").json
    assert (seen["source"], seen["target"]["classes"]) == ("json_lines", {"a": 10, "b": 10})
    trained(cluster, seen, tmp_path)


@pytest.mark.parametrize(("y", "loss"), [(np.arange(40) % 4, "softmax_cross_entropy"), (np.eye(40)[:, :3], "mean_squared_error")])
def test_arrays_are_described_and_their_job_trains(
    cluster: Cluster, command: Command, tmp_path: Path, y: np.ndarray[Any, Any], loss: str
) -> None:
    x = np.linspace(-1, 2, 40 * 6, dtype=np.float32).reshape(40, 2, 3)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    seen = command("data", "check", "a.npz", "--json").json
    [of_x, of_y] = seen["arrays"]
    assert of_x == {"name": "x", "shape": [40, 2, 3], "dtype": "float32", "low": -1.0, "high": 2.0}
    assert (of_y["shape"], of_y["dtype"]) == ([*y.shape], y.dtype.name)
    assert seen["job"]["model"]["loss"] == loss
    trained(cluster, seen, tmp_path)
    assert "x: 40 × 2 × 3, float32, -1 … 2" in command("data", "check", "a.npz").out


def test_one_array_needs_another_for_a_job(cluster: Cluster, command: Command, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((30, 2)))
    np.save(tmp_path / "y.npy", np.arange(30) / 7)
    alone = command("data", "check", "x.npy")
    assert "x.npy: 30 × 2, float64, 1 … 1" in alone.out
    assert "name their file with --target" in alone.err
    seen = command("data", "check", "x.npy", "--target", "y.npy", "--json").json
    assert seen["job"]["data"]["npy"] == {"x": "x.npy", "y": "y.npy"}
    trained(cluster, seen, tmp_path)


def test_a_csv_file_needs_no_pyarrow(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(reading, "MAX_HELD_FILE", 0)
    (tmp_path / "t.csv").write_text(flowers(), encoding="utf-8")
    assert command("data", "check", "t.csv", "--json").json["rows"] == 60


def test_a_compressed_file_is_described_as_it_would_be_unpacked(command: Command, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(flowers(), encoding="utf-8")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes()))
    plain, packed = (command("data", "check", name, "--json").json for name in ("t.csv", "t.csv.gz"))
    assert packed["job"]["data"].pop("csv") == "t.csv.gz"
    for name in ("written", "rows", "columns", "target"):
        assert packed[name] == plain[name]


def test_files_at_urls_are_described_too(command: Command, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(flowers(), encoding="utf-8")
    url = (tmp_path / "t.csv").as_uri()
    seen = command("data", "check", url, "--json").json
    assert (seen["rows"], seen["job"]["data"]["csv"]) == (60, url)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.csv", None, "there is no file"),
        ("one.csv", b"a\n1\n2\n", "has one column; there must be at least two"),
        ("words.csv", b"a\nx\ny\n", "no columns left for features"),
        ("empty.csv", b"", "is empty"),
        ("rows.csv", b"a,b\n", "has no rows"),
        ("broken.csv", b"a,b\n1,2\n1,2,3\n", "line 3 has 3 cells but there are 2 columns"),
        ("broken.parquet", b"PAR1 nothing", "broken.parquet"),
        ("broken.npz", b"nothing", "is not a NumPy archive"),
        ("when.csv", b"a,b\n1,2026-01-02\n2,2026-01-03\n", "the target holds times"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(
    command: Command, tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    printed = command("data", "check", name)
    assert (printed.code, printed.out) == (1, "")
    assert printed.err.startswith("thalweg: ")
    assert said in printed.err
    assert "bug" not in printed.err
    assert len(printed.err.splitlines()) == 1


def test_a_target_may_have_any_name(command: Command, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a,"x, y",z\n' + "".join(f"{row},{row % 3},\n" for row in range(30)))
    printed = command("data", "check", "t.csv", "--target", "x, y")
    assert printed.code == 0
    said = {" ".join(line.split()) for line in printed.out.splitlines()}
    assert {"a number 0 … 29 0 number", "x, y number 0 … 2 0 target"} <= said
    assert "target x, y: 3 classes: 0 (10), 1 (10), 2 (10)" in said


def test_an_unknown_target_is_told_with_the_columns(command: Command, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("city,size,price\nBern,1,2\nBasel,3,4\n")
    printed = command("data", "check", "t.csv", "--target", "prize")
    assert printed.code == 1
    assert "has no column 'prize'" in printed.err
    assert "'price'" in printed.err


def test_a_folder_without_tables_says_what_is_expected(command: Command, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    printed = command("data", "check", "none")
    assert printed.code == 1
    assert ".parquet, .parq, .arrow, .feather, .ipc" in printed.err
    (tmp_path / "none" / "rose").mkdir()
    (tmp_path / "none" / "rose" / "1.png").touch()
    printed = command("data", "check", "none")
    assert printed.code == 1
    assert "none: holds images, and only tables are shown; a job names such a folder by data.images" in printed.err
