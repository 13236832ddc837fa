"""Data of several files, from a client's folder to its workers."""

from pathlib import Path

import numpy as np
import pytest

from tests.client.helpers import fleet_of_threads
from tests.end_to_end.cluster import running_server
from tests.learning.parquets import write_folder
from thalweg.client import Client, JobFailedError, load_job
from thalweg.client.local_files import local_files
from thalweg.client.models import gradcheck
from thalweg.learning.data import memory

SETTINGS = {
    "model": {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"},
    "training": {"epochs": 2, "batch_size": 100, "microbatches": 4, "workers": 2},
    "optimizer": {"adam": {}},
}


def uploads(data: Path) -> int:
    return len(list((data / "uploads").iterdir()))


@pytest.mark.parametrize("source", ["parquet", "npy"])
def test_files_are_read_where_they_lie_or_from_copies_to_equal_bits(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that they are read while the job runs, after workers got them.
    monkeypatch.setattr(memory, "MAX_HELD", 0)
    table = write_folder(tmp_path / "trips")
    np.save(tmp_path / "x.npy", np.column_stack([table["a"], table["b"]]))
    np.save(tmp_path / "y.npy", np.array(table["y"]))
    arrays = {"x": str(tmp_path / "x.npy"), "y": str(tmp_path / "y.npy")}
    data = {source: str(tmp_path / "trips") if source == "parquet" else arrays}
    digests = set()
    for local_workers in (True, False):
        place = tmp_path / f"server-{local_workers}"
        with running_server(place, local_workers=local_workers) as server, fleet_of_threads(server):
            client = Client(server.address)
            job = client.submit(SETTINGS | {"data": data})
            digests.add(job.wait().weights_sha256)
            files = 4 if source == "parquet" else 3
            assert uploads(place) == files
            # What is there already is not uploaded again, and is another job's, too.
            again = client.submit(SETTINGS | {"data": data})
            digests.add(again.wait().weights_sha256)
            job.delete()
            assert uploads(place) == files
            again.delete()
            assert uploads(place) == 0
    assert len(digests) == 1


def test_a_file_of_a_folder_that_is_damaged_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "trips")
    damaged = tmp_path / "trips" / "year=2025" / "part-0.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-50])
    with running_server(tmp_path / "server") as server, fleet_of_threads(server):
        job = Client(server.address).submit(SETTINGS | {"data": {"parquet": str(tmp_path / "trips")}})
        with pytest.raises(JobFailedError, match=r"failed: data.parquet: 'year=2025/part-0.parquet' is truncated"):
            job.wait()


def test_gradients_are_checked_on_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "trips")
    loaded = load_job(SETTINGS | {"data": {"parquet": str(tmp_path / "trips")}})
    fetch = local_files(loaded, tmp_path).__getitem__
    assert all(row.passed for row in gradcheck(loaded.spec, fetch))
