"""Weights: what a safetensors file holds, and that a file is whole or not there."""

import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.client.conftest import Command
from tests.client.helpers import Cluster, names_in
from thalweg.client import LocalError, ThalwegError, prepare
from thalweg.client.files import write_whole
from thalweg.client.weights import save_weights
from thalweg.contract import layout as layouts
from thalweg.contract import tensors
from thalweg.server.storage import initial
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
    header.preprocessing.shape.append(2)
    header.preprocessing.columns.extend(["a", "ü"])
    header.preprocessing.target = "label"
    header.preprocessing.dtype = "float64"
    model = job_pb2.Model(dtype="float64")
    spec = job_pb2.JobSpec(name="small", model=model, data=job_pb2.Data(validation_fraction=0.2))
    save_weights(path, job_pb2.Job(id="small-1", spec=spec), header, SLAB)


def test_a_file_holds_the_tensors_by_name(tmp_path: Path) -> None:
    save(tmp_path / "w.safetensors")
    tensors = load_file(tmp_path / "w.safetensors")
    assert set(tensors) == {"1.weight", "0.bias"}
    assert tensors["1.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["0.bias"].tolist() == [6, 7]
    assert tensors["0.bias"].dtype == np.float64


def test_a_file_holds_counters(tmp_path: Path) -> None:
    layout = job_pb2.Layout()
    layout.CopyFrom(LAYOUT)
    layout.counters.add(name="0.num_batches_tracked")
    layout.counters.add(name="1.counts", shape=[2, 1])
    header = pb.ParametersHeader(layout=layout, version=12, sha256=layouts.digest(SLAB))
    path = tmp_path / "w.safetensors"
    save_weights(path, job_pb2.Job(id="small-1", spec=job_pb2.JobSpec(model=job_pb2.Model(dtype="float64"))), header, SLAB)
    found = load_file(path)
    assert set(found) == {"1.weight", "0.bias", "0.num_batches_tracked", "1.counts"}
    assert found["0.num_batches_tracked"].dtype == found["1.counts"].dtype == np.int64
    assert found["0.num_batches_tracked"].shape == ()
    assert found["0.num_batches_tracked"] == 12
    assert found["1.counts"].tolist() == [[12], [12]]
    # A job may start from it: its model has them too.
    assert initial.initial_slab(layout, initial.read(path)).tolist() == SLAB.tolist()
    initial.check(path, "float64")


def test_a_file_says_what_it_is(tmp_path: Path) -> None:
    save(tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "numpy") as file:
        metadata = file.metadata()
    assert metadata["job"] == "small-1"
    assert metadata["version"] == "12"
    assert metadata["weights_sha256"] == layouts.digest(SLAB)
    assert json.loads(metadata["preprocessing"]) == {
        "shape": [2],
        "mean": [0.5, 1],
        "scale": [2, 1],
        "columns": ["a", "ü"],
        "target": "label",
        "dtype": "float64",
    }
    assert json.loads(metadata["spec"]) == {"name": "small", "model": {"dtype": "float64"}, "data": {"validation_fraction": 0.2}}


def test_samples_are_prepared_as_a_file_says(tmp_path: Path) -> None:
    save(tmp_path / "w.safetensors")
    prepared = prepare(tmp_path / "w.safetensors", [[2.5, 1], [0.5, 3]])
    assert prepared.dtype == np.float64
    assert prepared.tolist() == [[1, 0], [0, 2]]
    assert prepare(str(tmp_path / "w.safetensors"), np.empty((0, 2))).shape == (0, 2)
    for x, message in (
        (
            [2.5, 1],
            "x: has the shape (2,); the job was trained on samples of shape (2,), so x must have the shape (samples, 2)",
        ),
        ([[1, 2, 3]], "x: has the shape (1, 3); the job was trained on samples of shape (2,)"),
        ([[1, np.nan]], "x: holds NaN or infinite values, 1 in all, the first at sample 0, feature 1"),
    ):
        with pytest.raises(ThalwegError) as caught:
            prepare(tmp_path / "w.safetensors", x)
        assert str(caught.value).startswith(message)


def test_a_file_of_the_first_release_says_how_samples_are_prepared(tmp_path: Path) -> None:
    spec = json.dumps({"model": {"dtype": "float32"}})
    preprocessing = json.dumps({"mean": [0.5, 1], "scale": [2, 1]})
    metadata = {"job": "a", "version": "3", "weights_sha256": "", "preprocessing": preprocessing, "spec": spec}
    save_file({"0.bias": np.zeros(1, np.float32)}, tmp_path / "w.safetensors", metadata)
    assert prepare(tmp_path / "w.safetensors", [[2.5, 1]]).tolist() == [[1, 0]]


def test_a_servers_own_file_says_how_samples_are_prepared(cluster: Cluster, tmp_path: Path) -> None:
    """The one that `thalweg train` names at its end."""
    kept = cluster.server.config.data / "jobs" / "digits" / "parameters.safetensors"
    cluster.digits.save(tmp_path / "w.safetensors")
    x = np.random.default_rng(0).uniform(size=(5, 64))
    expected = cluster.digits.prepare(x)
    with safe_open(kept, "numpy") as file, safe_open(tmp_path / "w.safetensors", "numpy") as written:
        assert json.loads(file.metadata()["preprocessing"]) == json.loads(written.metadata()["preprocessing"])
    assert not np.array_equal(expected, x.astype(np.float32))
    assert np.array_equal(prepare(kept, x), expected)
    assert np.array_equal(prepare(tmp_path / "w.safetensors", x), expected)


def test_a_file_of_others_does_not_say_how_samples_are_prepared(tmp_path: Path) -> None:
    save_file({"0.bias": np.zeros(1, np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(ThalwegError, match=r"^weights: .* has no preprocessing metadata: it was not written by Thalweg"):
        prepare(tmp_path / "w.safetensors", [[1]])
    with pytest.raises(ThalwegError, match=r"^weights: cannot read nowhere: No such file"):
        prepare("nowhere", [[1]])


@pytest.mark.parametrize("name", ["model.onnx", "model.pt", "w.npz", "w.bin", "w.safetensor"])
def test_a_name_of_another_format_is_refused(name: str, cluster: Cluster, command: Command, tmp_path: Path) -> None:
    problem = f"{name}: weights are written in the safetensors format; end the name in .safetensors"
    with pytest.raises(ThalwegError, match=f"^path: {re.escape(problem)}"):
        save(Path(name))
    with pytest.raises(ThalwegError, match=f"^path: {re.escape(problem)}"):
        cluster.gate.save(name)
    assert command("weights", "gate", "-o", name, "--server", cluster.address) == (2, "", f"thalweg: --output: {problem}\n")
    assert command("train", "xor", "--weights", name, "--server", cluster.address) == (2, "", f"thalweg: --weights: {problem}\n")
    assert names_in(tmp_path) == []


def test_a_name_without_an_ending_will_do(cluster: Cluster, command: Command) -> None:
    assert command("weights", "gate", "-o", "w", "--server", cluster.address).code == 0
    assert command("weights", "gate", "-o", "W.SafeTensors", "--server", cluster.address).code == 0
    assert set(load_file("w")) == set(load_file("W.SafeTensors"))


def test_weights_of_standardized_data_say_so(cluster: Cluster, command: Command) -> None:
    assert "thalweg.client.prepare(FILE, x)" in command("weights", "digits", "--server", cluster.address).out
    assert "prepare" not in command("weights", "gate", "--server", cluster.address).out


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


def test_equal_parameters_give_equal_files(tmp_path: Path) -> None:
    for name in "abcd":
        save(tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in "abcd"}) == 1


def test_a_link_stays_and_the_file_that_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "w.safetensors").write_text("before")
    (tmp_path / "link").symlink_to("far/w.safetensors")
    (tmp_path / "dangling").symlink_to("far/new.safetensors")
    for link in ("link", "dangling"):
        save(tmp_path / link)
        assert (tmp_path / link).is_symlink()
        assert len(load_file(tmp_path / link)) == 2
    assert names_in(tmp_path) == ["dangling", "far", "link"]
    assert names_in(tmp_path / "far") == ["new.safetensors", "w.safetensors"]


def test_a_pipe_holds_no_weights(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ThalwegError, match=r"^weights: .*/pipe is a pipe; give the path of a file$"):
        prepare(tmp_path / "pipe", [[0, 1]])


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "device").symlink_to("/dev/null")
    before = {name: (tmp_path / name).lstat() for name in names_in(tmp_path)}
    for name, kind in (("pipe", "a pipe"), ("loop", "a loop of links"), ("device", "a device")):
        with pytest.raises(LocalError) as caught:
            save(tmp_path / name)
        assert str(caught.value) == f"cannot write {tmp_path / name}: it is {kind}"
    assert {name: (tmp_path / name).lstat() for name in names_in(tmp_path)} == before


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
        ("pieces", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        ("pieces", OSError("something else"), "something else"),
    ],
)
def test_what_cannot_be_written_leaves_the_file_before(
    place: str, error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    path.write_text("before")
    owner: object = {"touch": Path, "fsync": os, "pieces": tensors}[place]
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
    [("nowhere/w.safetensors", "there is no folder nowhere"), ("folder", "it is a folder")],
)
def test_a_place_that_will_not_do_is_told(path: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(LocalError) as caught:
        save(Path(path))
    assert str(caught.value) == f"cannot write {path}: {message}"
    assert names_in(tmp_path) == ["folder"]
