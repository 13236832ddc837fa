"""NumPy's files: two arrays in files of their own, and compressed archives that are unpacked."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.learning.batches import inputs, targets
from thalweg.client.parts import UNHASHED, numbered
from thalweg.contract.resources import Memory
from thalweg.learning import data
from thalweg.learning.data import DataError, Temporary
from thalweg.learning.data import memory as data_memory
from thalweg.learning.data.rows import FileRows
from thalweg.learning.data.sources import npy, npz
from thalweg.v1 import job_pb2

X, Y = np.random.default_rng(0).normal(size=(50, 3)), np.arange(50.0)


def given(folder: Path) -> Temporary:
    """The files x.npy and y.npy of a folder, as uploads."""
    return Temporary(numbered({"x": folder / "x.npy", "y": folder / "y.npy"}, folder).__getitem__)


def spec(source: job_pb2.Data) -> job_pb2.JobSpec:
    """A job that learns from a source."""
    made = job_pb2.JobSpec(data=source, seed=7)
    made.data.sha256 = UNHASHED
    made.model.loss, made.model.dtype = "mean_squared_error", "float64"
    return made


NPY = job_pb2.Data(npy=job_pb2.Npy(x="in/x.npy", y="in/y.npy"))
NPZ = job_pb2.Data(npz="a.npz")


@pytest.mark.parametrize("order", ["C", "F"])
def test_two_files_are_samples_and_targets(order: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array(X, order="F" if order == "F" else "C"))
    np.save(tmp_path / "y.npy", Y)
    dataset = data.load(spec(NPY), given(tmp_path))
    assert (inputs(dataset.train) == X).all()
    assert (targets(dataset.train) == Y).all()


def test_they_stay_in_their_files(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    source = npy.source(spec(NPY).data, given(tmp_path))
    assert isinstance(source.x, FileRows)
    assert (source.x[np.array([40, 3])] == X[[40, 3]]).all()
    os.utime(tmp_path / "x.npy", (1, 1))
    with pytest.raises(DataError, match=r"^data.npy.x: 'in/x.npy' has changed while it was used"):
        source.x[slice(0, 1)]


def test_what_is_wrong_is_said_of_its_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    for content, problem in (
        (b"1,2\n", "data.npy.y: 'in/y.npy' is not an array of NumPy's; write one with numpy.save"),
        ((tmp_path / "x.npy").read_bytes()[:200], "data.npy.y: 'in/y.npy' is truncated: an array needs 1,200 bytes but has 200"),
    ):
        (tmp_path / "y.npy").write_bytes(content)
        with pytest.raises(DataError) as caught:
            data.load(spec(NPY), given(tmp_path))
        assert str(caught.value) == problem
    np.save(tmp_path / "y.npy", Y[:40])
    with pytest.raises(DataError, match=r"^data.npy: x has 50 samples but y has 40; the counts must match$"):
        data.load(spec(NPY), given(tmp_path))
    np.save(tmp_path / "y.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match=r"^data.npy.y: 'in/y.npy' holds Python objects in an array"):
        data.load(spec(NPY), given(tmp_path))


def test_another_upload_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(DataError, match=r"^data.npy: the upload is not a manifest of the files x and y"):
        data.load(spec(NPY), lambda _: tmp_path / "x.npy")


def test_large_arrays_of_compressed_archives_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=X, y=Y)
    monkeypatch.setattr(data_memory, "MAX_HELD", Y.nbytes)
    access = Temporary(lambda _: tmp_path / "a.npz")
    asked = spec(NPZ).data
    source = npz.source(asked, access)
    assert isinstance(source.x, FileRows)
    assert isinstance(source.y, np.ndarray)
    monkeypatch.setattr(npz._Archive, "_unpack", lambda *_: pytest.fail("it was unpacked again"))
    again = npz.source(asked, access)
    # What was made is kept open.
    del access
    for each in (source, again):
        assert (each.x[slice(None)] == X).all()
        assert (each.y[slice(None)] == Y).all()


def test_unpacked_arrays_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.zeros((1000, 1000))
    np.savez_compressed(tmp_path / "a.npz", x=x, y=np.zeros(1000))
    monkeypatch.setattr(data_memory, "memory", lambda: Memory(1 << 30, 1 << 20))
    source = npz.source(spec(NPZ).data, Temporary(lambda _: tmp_path / "a.npz"))
    assert not source.x[np.array([5, 999])].any()


def test_a_damaged_archive_is_found_when_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=X, y=Y)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        at = archive.getinfo("x.npy").header_offset
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[at + 600 : at + 610] = bytes(10)
    (tmp_path / "a.npz").write_bytes(content)
    monkeypatch.setattr(data_memory, "MAX_HELD", 0)
    with pytest.raises(DataError, match=r"^data.npz: 'a.npz' cannot be read as a NumPy archive: "):
        npz.source(spec(NPZ).data, Temporary(lambda _: tmp_path / "a.npz"))
