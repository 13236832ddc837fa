"""Weights: what a safetensors file holds, and that a file is whole or not there."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from tests.client.helpers import Cluster, names_in
from thalweg.client import LocalError, weights
from thalweg.client.weights import save_weights, write_whole
from thalweg.contract import layout as layouts
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

LAYOUT = job_pb2.Layout(
    tensors=[job_pb2.Tensor(name="1.weight", shape=[2, 3]), job_pb2.Tensor(name="0.bias", shape=[2])], dtype="float64"
)
SLAB: NDArray[np.float64] = np.arange(8.0)


def save(path: Path) -> None:
    header = pb.ParametersHeader(layout=LAYOUT, version=12, sha256=layouts.digest(SLAB))
    header.preprocessing.mean.extend([0.5, 1])
    header.preprocessing.scale.extend([2, 1])
    spec = job_pb2.JobSpec(name="small", data=job_pb2.Data(validation_fraction=0.2))
    save_weights(path, job_pb2.Job(id="small-1", spec=spec), header, SLAB)


def test_a_file_holds_the_tensors_by_name(tmp_path: Path) -> None:
    save(tmp_path / "w.safetensors")
    tensors = load_file(tmp_path / "w.safetensors")
    assert set(tensors) == {"1.weight", "0.bias"}
    assert tensors["1.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["0.bias"].tolist() == [6, 7]
    assert tensors["0.bias"].dtype == np.float64


def test_a_file_says_what_it_is(tmp_path: Path) -> None:
    save(tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "numpy") as file:
        metadata = file.metadata()
    assert metadata["job"] == "small-1"
    assert metadata["version"] == "12"
    assert metadata["weights_sha256"] == layouts.digest(SLAB)
    assert json.loads(metadata["preprocessing"]) == {"mean": [0.5, 1], "scale": [2, 1]}
    assert json.loads(metadata["spec"]) == {"name": "small", "data": {"validation_fraction": 0.2}}


def test_a_jobs_file_holds_what_the_server_has(cluster: Cluster, tmp_path: Path) -> None:
    header = cluster.digits.save(tmp_path / "w.safetensors")
    tensors = load_file(tmp_path / "w.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "0.weight": (16, 64),
        "0.bias": (16,),
        "3.weight": (10, 16),
        "3.bias": (10,),
    }
    slab = np.concatenate([tensors[tensor.name].ravel() for tensor in header.layout.tensors])
    assert layouts.digest(slab) == header.sha256 == cluster.digits.result().weights_sha256
    assert all(np.array_equal(tensors[name], tensor) for name, tensor in cluster.digits.parameters().items())


def test_a_file_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_text("before")
    save(path)
    assert len(load_file(path)) == 2
    assert names_in(tmp_path) == ["w.safetensors"]


def test_a_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save(tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def refuse(error: Exception) -> "type[Exception]":
    raise error


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("touch", OSError(errno.EACCES, os.strerror(errno.EACCES)), "Permission denied"),
        ("fsync", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        ("save_file", SafetensorError("Error while serializing: I/O error: ... (os error 28)"), "No space left on device"),
        ("save_file", SafetensorError("something else"), "something else"),
    ],
)
def test_what_cannot_be_written_leaves_the_file_before(
    place: str, error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    path.write_text("before")
    owner: object = {"touch": Path, "fsync": os, "save_file": weights}[place]
    monkeypatch.setattr(owner, place, lambda *_, **__: refuse(error))
    with pytest.raises(LocalError) as caught:
        save(path)
    assert str(caught.value) == f"cannot write {path}: {message}"
    assert names_in(tmp_path) == ["w.safetensors"]
    assert path.read_text() == "before"


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def write(aside: Path) -> None:
        aside.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", write)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "message"),
    [("nowhere/w.safetensors", "there is no folder nowhere"), ("folder", "Is a directory")],
)
def test_a_place_that_will_not_do_is_told(path: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(LocalError) as caught:
        save(Path(path))
    assert str(caught.value) == f"cannot write {path}: {message}"
    assert names_in(tmp_path) == ["folder"]
