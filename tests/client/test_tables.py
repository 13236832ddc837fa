"""Jobs that learn from tables whose columns are prepared in different ways: predictions for raw rows."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from tests.client.conftest import Command
from tests.client.helpers import Cluster
from thalweg.client import Job, ThalwegError, prepare

ROWS = ((n, n % 5 + 1, n % 2) for n in range(40))
HOUSES = "id,rooms,garden,price\n" + "".join(
    f"{n},{rooms},{green},{100_000 * rooms + 50_000 * green}\n" for n, rooms, green in ROWS
)
SETTINGS: dict[str, Any] = {
    "data.csv": "houses.csv",
    "data.ignore": ["id"],
    "data.columns": {"rooms": {"prepare": "min_max"}, "garden": {"prepare": "one_hot"}, "price": {"prepare": "standardize"}},
    "model.layers": [{"dense": {"units": 1}}],
    "model.loss": "mean_squared_error",
    "training.epochs": 150,
    "optimizer.adam.learning_rate": 0.05,
}


def test_a_cell_that_cannot_be_read_is_told_with_its_line(houses: Job, cluster: Cluster, command: Command) -> None:
    Path("new.csv").write_text("garden,rooms\n1,1\n\n1,many\n")
    told = command("predict", houses.id, "new.csv", "--server", cluster.address).err
    assert "INPUT: line 4, column 'rooms': 'many' is not a number; " in told
    Path("new.csv").write_text("garden,rooms\n1,1\n1,\n")
    told = command("predict", houses.id, "new.csv", "--server", cluster.address).err
    assert "INPUT: 'new.csv': line 3, column 'rooms' has no value, and the job does not say what replaces one" in told


@pytest.fixture
def houses(cluster: Cluster) -> Job:
    """A job that has learned what houses cost."""
    Path("houses.csv").write_text(HOUSES)
    job = cluster.client.submit("xor", SETTINGS)
    job.wait()
    return job


def test_a_regression_in_dollars_predicts_dollars(houses: Job, cluster: Cluster, command: Command) -> None:
    rows = {"garden": [0, 1], "rooms": [1, 5]}
    predicted = houses.predict(rows)
    assert predicted.shape == (2, 1)
    assert predicted.ravel().tolist() == pytest.approx([100_000, 550_000], rel=0.02)
    # Columns are found by name, in files, too; the target and what the job ignores may be there or not.
    Path("new.csv").write_text("price,garden,id,rooms\n0,0,7,1\n0,1,8,5\n")
    printed = command("predict", houses.id, "new.csv", "--json", "--server", cluster.address)
    assert printed.json["outputs"] == predicted.tolist()
    Path("none.csv").write_text("garden,rooms\n")
    assert command("predict", houses.id, "none.csv", "--server", cluster.address).out == ""
    assert command("predict", houses.id, "none.csv", "--json", "--server", cluster.address).json["outputs"] == []
    own = command("predict", houses.id, "--json", "--server", cluster.address).json
    assert len(own["outputs"]) == len(own["targets"]) == 40
    assert own["targets"][:2] == [100_000, 250_000]
    assert np.ravel(own["outputs"]).tolist() == pytest.approx(own["targets"], rel=0.05)


def test_a_category_that_is_new_is_told(houses: Job, cluster: Cluster, command: Command) -> None:
    Path("new.csv").write_text("garden,rooms\n2,1\n3,2\n1,1\n")
    printed = command("predict", houses.id, "new.csv", "--server", cluster.address)
    assert len(printed.out.splitlines()) == 3
    notice = "column 'garden': 2 cells with categories that were not in the training data, '2', '3'; the model knows none of them"
    assert f"new.csv: {notice}" in printed.err
    with pytest.warns(UserWarning, match="2 cells with categories"):
        houses.predict({"garden": [2, 3, 1], "rooms": [1, 2, 1]})


def test_columns_that_are_missing_or_unknown_are_told(houses: Job, cluster: Cluster, command: Command) -> None:
    with pytest.raises(ThalwegError, match=r"^x: lacks the column 'rooms' \(did you mean 'Rooms'\?\) and has"):
        houses.predict({"garden": [1], "Rooms": [1]})
    Path("new.csv").write_text("garden,room\n2,1\n")
    printed = command("predict", houses.id, "new.csv", "--server", cluster.address)
    assert printed.code != 0
    assert "'new.csv' lacks the column 'rooms' (did you mean 'room'?)" in printed.err


def test_the_recipe_is_in_files_of_parameters(houses: Job) -> None:
    houses.save("houses.safetensors")
    rows = {"garden": [0, 1], "rooms": [1, 5]}
    assert prepare("houses.safetensors", rows).tolist() == houses.prepare(rows).tolist() == [[0, 1, 0], [1, 0, 1]]
    with safe_open("houses.safetensors", framework="numpy") as file:
        told = json.loads(file.metadata()["preprocessing"])
    assert told["ignored"] == ["id"]
    assert [column["name"] for column in told["table"]] == ["rooms", "garden"]
    assert told["table"][1] == {"name": "garden", "type": "number", "prepare": "one_hot", "scale": 1.0, "categories": ["0", "1"]}
    assert (told["targets"][0]["name"], told["targets"][0]["prepare"]) == ("price", "standardize")


def test_columns_that_a_job_ignores_may_be_in_rows_for_files_of_parameters(houses: Job, cluster: Cluster) -> None:
    houses.save("houses.safetensors")
    kept = cluster.server.config.data / "jobs" / houses.id / "parameters.safetensors"
    rows = {"id": ["new", None], "price": [0, 0], "garden": [0, 1], "rooms": [1, 5]}
    for file in ("houses.safetensors", kept):
        assert prepare(file, rows).tolist() == houses.prepare(rows).tolist() == [[0, 1, 0], [1, 0, 1]]
        with pytest.raises(ThalwegError, match=r"^x: has the column 'color', which the job was not trained on"):
            prepare(file, {**rows, "color": [1, 1]})
    settings = SETTINGS | {"data.features": ["garden"], "data.ignore": [], "training.epochs": 1}
    job = cluster.client.submit("xor", settings)
    job.wait()
    job.save("garden.safetensors")
    kept = cluster.server.config.data / "jobs" / job.id / "parameters.safetensors"
    for file in ("garden.safetensors", kept):
        assert prepare(file, {**rows, "color": [1, 1]}).tolist() == [[1, 0], [0, 1]]


FLOWERS = "length;width;kind\r\n" + "".join(
    f"{length / 2:.1f};{width / 4:.2f};{'lily' if length > width else 'rose'}\r\n".replace(".", ",")
    for length in range(6)
    for width in range(6)
)


def test_a_table_of_a_spreadsheet_becomes_names_of_classes(cluster: Cluster, command: Command) -> None:
    """Semicolons, decimal commas, another encoding and a compressed file, up to rows for predictions in other formats."""
    Path("flowers.csv.gz").write_bytes(gzip.compress(FLOWERS.replace("rose", "ros\u00e9").encode("windows-1252")))
    settings = {
        "data.csv": "flowers.csv.gz",
        "data.encoding": "windows-1252",
        "data.standardize": True,
        "model.layers": [{"dense": {"units": 2}}],
        "model.loss": "softmax_cross_entropy",
        "training.epochs": 60,
        "optimizer.adam.learning_rate": 0.05,
    }
    job = cluster.client.submit("xor", settings)
    job.wait()
    rows = {"length": [2.5, 0.0], "width": [0.0, 1.25]}
    prediction = job.prediction(rows)
    assert prediction.labels is not None
    assert prediction.labels.tolist() == ["lily", "ros\u00e9"]
    Path("new.csv").write_bytes("width;length\n0,0;2,5\n1,25;0,0\n".encode("windows-1252"))
    Path("new.jsonl").write_text('{"width": 0, "length": 2.5}\n{"length": 0, "width": 1.25}\n')
    for name in ("new.csv", "new.jsonl"):
        assert command("predict", job.id, name, "--server", cluster.address).out.split() == ["lily", "ros\u00e9"]
    Path("new.jsonl").write_text('{"width": 0, "length": {"cm": 2.5}}\n')
    printed = command("predict", job.id, "new.jsonl", "--server", cluster.address)
    assert "INPUT: line 1, column 'length' holds an object" in printed.err
