"""Prepared samples that a node keeps in files: the same ones, made once, and given up where there is no room."""

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from google.protobuf import json_format

from tests.learning.parquets import numbers
from thalweg.learning import data
from thalweg.learning.data import DataError, Dataset, memory
from thalweg.learning.data.samples import Arrays
from thalweg.learning.data.sources.text_tables import reading
from thalweg.server import validation
from thalweg.v1 import job_pb2
from thalweg.workers.data_access import DataPolicy, NodeAccess

PARTS = {"validation": {"fraction": 0.2}, "test": {"fraction": 0.1}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this test. No samples are small enough to be held in memory."""
    monkeypatch.setenv("THALWEG_DATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(memory, "MAX_HELD", 0)
    return tmp_path / "cache"


@pytest.fixture
def trips(tmp_path: Path) -> Path:
    path = tmp_path / "trips.parquet"
    pq.write_table(numbers(1000), path, row_group_size=130)
    return path


def job(path: Path, more: dict[str, Any] | None = None) -> job_pb2.JobSpec:
    document = {
        "model": {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"},
        "data": {path.suffix.removeprefix("."): path.name, "standardize": True, **PARTS, **(more or {})},
        "optimizer": {"sgd": {}},
    }
    spec = json_format.ParseDict(document, job_pb2.JobSpec())
    spec.data.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return validation.complete(spec)


def samples(dataset: Dataset) -> list[list[Any]]:
    parts = (dataset.train, dataset.validation, dataset.test)
    return [values.tolist() for part in parts for values in part.take(slice(0, len(part))).values()]


def as_they_are(spec: job_pb2.JobSpec, path: Path) -> list[list[Any]]:
    return samples(data.load(spec, lambda _: path))


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_samples_that_are_kept_are_the_same(
    ending: str, trips: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_HELD_FILE", -1)
    path = trips if ending == "parquet" else tmp_path / "trips.csv"
    if ending == "csv":
        pa.csv.write_csv(numbers(1000), path)
    spec = job(path)
    wanted = as_they_are(spec, path)
    assert not cache.exists()
    with NodeAccess(lambda _: path) as access:
        dataset = data.load(spec, access)
        assert len(list(cache.glob("*/content/?-x"))) == 3
        assert samples(dataset) == wanted
        order = np.random.default_rng(0).permutation(700)
        assert dataset.train.take(order)["x"].tolist() == np.array(wanted[0])[order].tolist()


def test_samples_are_prepared_once_for_all_workers_of_a_node(trips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, taken = job(trips), []

    def take(self: Arrays, *given: Any) -> Any:
        taken.append(len(self))
        return original(self, *given)

    original = Arrays.take
    with NodeAccess(lambda _: trips) as first, NodeAccess(lambda _: trips) as second:
        wanted = samples(data.load(spec, first))
        monkeypatch.setattr(Arrays, "take", take)
        dataset = data.load(spec, second)
        assert not taken
        assert samples(dataset) == wanted
        assert taken
        # Other samples, by one field of the job.
        assert samples(data.load(job(trips, {"validation": {"fraction": 0.3}}), second)) != wanted


def test_what_is_prepared_is_said(trips: Path) -> None:
    said: list[str] = []

    class Saying(NodeAccess):
        def doing(self, what: str, progress: Any = None) -> Any:
            said.append(what)
            return super().doing(what, progress)

    with Saying(lambda _: trips) as access:
        data.load(job(trips), access)
    assert said == ["preparing 1,000 samples (0.01 MiB), once for this node"]


def test_a_node_whose_cache_may_keep_too_little_takes_samples_as_they_are(trips: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = job(trips)
    with NodeAccess(lambda _: trips, DataPolicy(cache_bytes=10)) as access:
        assert samples(data.load(spec, access)) == as_they_are(spec, trips)
    assert "not kept on this node, so that each step takes longer: the cache keeps at most 0.00 MiB" in caplog.text


def test_a_node_whose_disk_is_full_takes_samples_as_they_are(
    trips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = job(trips)
    wanted = as_they_are(spec, trips)

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    with NodeAccess(lambda _: trips) as access:
        assert samples(data.load(spec, access)) == wanted
        # Not in a temporary folder either, which may be in memory.
        assert not list((tmp_path / "temporary").iterdir())
    assert "each step takes longer: [Errno 28] No space left on device" in caplog.text


def test_an_error_in_the_data_is_one_of_the_job_as_where_nothing_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "trips.parquet"
    table = numbers(100)
    pq.write_table(table.set_column(0, "a", pa.array([None, *table["a"].to_pylist()[1:]])), path)
    spec = job(path)
    with pytest.raises(DataError) as wanted:
        data.load(spec, lambda _: path)
    with NodeAccess(lambda _: path) as access, pytest.raises(DataError) as caught:
        data.load(spec, access)
    assert str(caught.value) == str(wanted.value)


def test_a_file_of_the_cache_that_becomes_shorter_is_an_error_that_says_so(trips: Path, cache: Path) -> None:
    with NodeAccess(lambda _: trips) as access:
        dataset = data.load(job(trips), access)
        [path] = cache.glob("*/content/0-x")
        os.truncate(path, 100)
        with pytest.raises(DataError, match="what this node made of it has changed while it was used"):
            dataset.train.take(slice(0, 700))
