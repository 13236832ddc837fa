"""Predictions from tables in folders and at URLs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.client.conftest import Command
from tests.client.helpers import fleet_of_threads
from tests.end_to_end.cluster import running_server
from tests.learning.parquets import write_folder
from tests.learning.urls import Site, served
from thalweg.client import Client, Job, ThalwegError

SETTINGS: dict[str, Any] = {
    "model": {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"},
    "training": {"epochs": 2, "workers": 1},
    "optimizer": {"sgd": {"learning_rate": 0.01}},
}
ROWS = "size,city,price\n1,Bern,3\n2,Basel,4\n3,Bern,5\n"


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Job]]:
    """Jobs that have ended: of folders of Parquet files and of CSV files, and of arrays."""
    folder = tmp_path_factory.mktemp("data")
    table = write_folder(folder / "trips", 40)
    (folder / "rows").mkdir()
    (folder / "rows" / "1.csv").write_text(ROWS)
    (folder / "rows" / "2.csv").write_text(ROWS)
    with (
        running_server(tmp_path_factory.mktemp("server")) as server,
        fleet_of_threads(server, slots=1),
        Client(server.address) as client,
    ):
        data = {"trips": {"parquet": str(folder / "trips"), "standardize": True}, "rows": {"csv": str(folder / "rows")}}
        found = {name: client.submit(SETTINGS | {"data": each}, id=name) for name, each in data.items()}
        found["arrays"] = client.submit(SETTINGS, data=(np.ones((4, 2)), np.ones(4)), id="arrays")
        for job in found.values():
            assert job.wait().state == "SUCCEEDED"
        pq.write_table(table, folder / "all.parquet")
        yield found


def folder_of(job: Job) -> Path:
    return Path(job.spec.data.parquet or job.spec.data.csv)


def test_a_folder_has_the_columns_of_its_folders(jobs: dict[str, Job], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    trips = jobs["trips"]
    folder = folder_of(trips)
    wanted = trips.predict(pq.read_table(folder.parent / "all.parquet").drop_columns("y"))
    found = [trips.predict(place) for place in (folder, str(folder), folder.parent / "all.parquet", f"file://{folder}")]
    found.append(trips.predict(f"file://{folder}/*/*.parquet"))
    assert all(np.array_equal(each, wanted) for each in found)
    monkeypatch.chdir(folder.parent)
    on = ("--json", "--server", trips._connection.address)
    for place in ("trips", "trips/", f"file://{folder}"):
        assert command("predict", "trips", place, *on).json["outputs"] == wanted.tolist()
    # Of one year alone: its folder is no part of its files' paths then.
    year = command("predict", "trips", "trips/year=2024", *on)
    assert (year.code, "lacks the column 'year'" in year.err) == (2, True)


def test_text_files_in_a_folder_and_at_a_url(jobs: dict[str, Job], monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobs["rows"]
    wanted = job.predict({"size": [1, 2, 3], "city": ["Bern", "Basel", "Bern"]})
    assert np.array_equal(job.predict(folder_of(job)), np.concatenate([wanted, wanted]))
    monkeypatch.setenv("no_proxy", "*")
    with served(Site(ROWS.encode())) as site:
        assert np.array_equal(job.predict(f"{site.url}/rows.csv?token=secret"), wanted)


def test_what_is_wrong_is_told(jobs: dict[str, Job], tmp_path: Path) -> None:
    with pytest.raises(ThalwegError, match=r"^INPUT: there is no file below .* whose name ends in \.parquet"):
        jobs["trips"].predict(tmp_path)
    with pytest.raises(ThalwegError, match=r"^INPUT: file:///nowhere/a\.parquet cannot be read on this node: No such file"):
        jobs["trips"].predict("file:///nowhere/a.parquet")
    with pytest.raises(ThalwegError, match=r"^INPUT: .* for jobs that have learned from tables, .* data\.npz"):
        jobs["arrays"].predict(tmp_path)
    pq.write_table(pa.table({"a": [1.0]}), tmp_path / "a.parquet")
    with pytest.raises(ThalwegError, match=r"^INPUT: .* lacks the columns 'year', 'b'"):
        jobs["trips"].predict(tmp_path)
