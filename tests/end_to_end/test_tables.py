"""From a table with text, classes with names and missing values to predictions for raw rows, as a user does it."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.end_to_end.command import thalweg
from thalweg.client import Job, local

pytestmark = pytest.mark.ray

JOB = """
data.csv = "flowers.csv"
data.target = "species"
data.ignore = ["id"]
data.missing = "median"
data.standardize = true
data.validation_fraction = 0.2
model.layers = [{ dense = { units = 16 } }, { relu = {} }, { dense = { units = 3 } }]
model.loss = "softmax_cross_entropy"
training.epochs = 30
optimizer.adam.learning_rate = 0.02
"""
COLUMNS = ("id", "place", "height", "wild", "seen", "species")
RAW = """species,wild,seen,place,height
,true,2024-06-01,meadow,2
,false,2024-06-01,pond,12.5
,false,2024-01-01,,30
"""


def flowers(rows: int = 400) -> dict[str, list[Any]]:
    """Flowers whose species follows from the place and the height; in some rows values are missing."""
    generator = np.random.default_rng(0)
    table: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for number in range(rows):
        species = ("daisy", "lily", "rose")[number % 3]
        place = {"daisy": "meadow", "lily": "pond", "rose": "garden"}[species]
        height = {"daisy": 2.0, "lily": 12.0, "rose": 30.0}[species] + generator.normal()
        day = np.datetime64("2024-01-01") + int(generator.integers(0, 300))
        row = (number, place, height, bool(generator.random() < 0.5), day.item(), species)
        holes = generator.random(len(COLUMNS)) < 0.05
        for name, cell, hole in zip(COLUMNS, row, holes, strict=True):
            table[name].append(None if hole and name in ("place", "height", "wild") else cell)
    return table


def write(path: Path, table: dict[str, list[Any]]) -> None:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([[*table], *zip(*table.values(), strict=True)])
        return
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(table), path, row_group_size=100)


def test_classes_are_predicted_by_name_for_raw_rows_after_two_commands(tmp_path: Path) -> None:
    write(tmp_path / "flowers.csv", flowers())
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "new.csv").write_text(RAW)
    trained = thalweg(tmp_path, "train", "job.toml", "--json")
    assert trained.code == 0, trained.stderr
    assert trained.answer["validation"]["accuracy"] > 0.95
    job = trained.answer["job"]
    predicted = thalweg(tmp_path, "predict", job, "new.csv")
    assert predicted.code == 0, predicted.stderr
    assert predicted.stdout.split() == ["daisy", "lily", "rose"]
    write(tmp_path / "new.parquet", {"place": ["pond"], "height": [12.5], "wild": [False], "seen": flowers()["seen"][:1]})
    assert thalweg(tmp_path, "predict", job, "new.parquet").stdout.split() == ["lily"]
    answer = thalweg(tmp_path, "predict", job, "new.csv", "--json", "-o", "out.csv").answer
    assert answer["labels"] == predicted.stdout.split()
    assert answer["class_names"] == ["daisy", "lily", "rose"]
    assert np.argmax(answer["probabilities"], 1).tolist() == answer["classes"]
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == answer["labels"]
    assert float(rows[0]["probability_daisy"]) > 0.5
    # The job's own rows, and their species where they differ.
    own = thalweg(tmp_path, "predict", job, "--json").answer
    assert len(own["labels"]) == len(own["targets"]) == 80
    assert np.mean(np.array(own["labels"]) == own["targets"]) == trained.answer["validation"]["accuracy"]


def test_the_bits_are_those_of_any_number_of_workers(tmp_path: Path) -> None:
    write(tmp_path / "flowers.csv", flowers())
    write(tmp_path / "flowers.parquet", flowers())
    (tmp_path / "job.toml").write_text(JOB)
    settings: dict[str, Any] = {"training.epochs": 3, "training.microbatches": 7}
    parquet = settings | {"data.parquet": str(tmp_path / "flowers.parquet")}
    with local(workers=7, data=tmp_path / "data") as client:

        def jobs(settings: dict[str, Any], *workers: int) -> list[Job]:
            return [client.submit(tmp_path / "job.toml", settings | {"training.workers": count}) for count in workers]

        for same in (jobs(settings, 1, 2, 3, 7), jobs(parquet, 1, 3)):
            assert len({job.wait().weights_sha256 for job in same}) == 1


def test_a_regression_in_dollars_predicts_dollars_from_a_data_frame(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    generator = np.random.default_rng(1)
    rooms, city = generator.integers(1, 6, 500), generator.choice(["Ulm", "Bonn"], 500)
    price = 100_000.0 * rooms + np.where(city == "Bonn", 50_000, 0)
    frame = pandas.DataFrame({"rooms": rooms, "city": city, "price": price})
    frame.loc[::20, "city"] = None
    job = {
        "data": {
            "columns": {"price": {"prepare": "standardize"}, "rooms": {"prepare": "standardize"}, "city": {"missing": "Ulm"}},
        },
        "model": {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"},
        "training": {"epochs": 60},
        "optimizer": {"adam": {"learning_rate": 0.02}},
    }
    with local(workers=2, data=tmp_path / "data") as client:
        trained = client.submit(job, data=frame)
        trained.wait()
        # The same cells give the same file, whatever brings them.
        again = client.submit(job, data={name: frame[name] for name in frame})
        assert again.wait().weights_sha256 == trained.result().weights_sha256
        found = trained.predict(pandas.DataFrame({"city": ["Bonn", "Ulm"], "rooms": [2, 5]}))
    assert found.ravel().tolist() == pytest.approx([250_000, 500_000], rel=0.05)
