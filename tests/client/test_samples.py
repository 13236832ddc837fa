"""Files of samples to predict from, and of outputs."""

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.client.helpers import names_in
from thalweg.client import ThalwegError
from thalweg.client.cli.models.predictions import check_name, write_outputs
from thalweg.client.inputs import read_samples
from thalweg.client.prediction import Prediction
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

# A model of two features: dense, of four units, then dense again.
HEADER = pb.ParametersHeader(
    layout=job_pb2.Layout(
        tensors=[job_pb2.Tensor(name="2.weight", shape=[1, 4]), job_pb2.Tensor(name="0.weight", shape=[4, 2])], dtype="float32"
    )
)
SAMPLES = np.array([[1.0, 2], [3, -40]])
OUTPUTS = Prediction(
    np.array([[-2, 0.5], [1, 0]], np.float32), np.array([1, 0]), np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)
)


def read(path: str, target: str = "") -> list[list[float]]:
    samples, _ = read_samples(Path(path), job_pb2.JobSpec(data=job_pb2.Data(target=target)), HEADER)
    assert isinstance(samples, np.ndarray)
    found: list[list[float]] = samples.tolist()
    return found


def told(path: str) -> str:
    with pytest.raises(ThalwegError) as caught:
        read(path)
    assert caught.value.reason == "INVALID_ARGUMENT"
    return str(caught.value)


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays(order: str) -> None:
    samples = np.array(SAMPLES, ">f8", order=order)  # type: ignore[call-overload]
    np.save("x.npy", samples)
    np.savez("x.npz", x=samples, y=[0, 1])
    np.savez_compressed("one.npz", whatever=samples)
    Path("x").write_bytes(Path("x.npy").read_bytes())
    assert read("x.npy") == read("x.npz") == read("one.npz") == read("x") == SAMPLES.tolist()


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("a,b\n1,2\n3,-4e1\n", ""),
        ("\ufeffa, b \n1,2\n\n3,-40\n", ""),
        ("a,b,label\n1,2,9\n3,-40,9\n", ""),
        ("label,a,b\n9,1,2\n9,3,-40\n", "label"),
        ("a,b\n1,2\n3,-40\n", "label"),
    ],
    ids=["features", "a mark, a space, an empty line", "the target is last", "the target has a name", "no target"],
)
def test_a_table_for_a_job_of_the_first_release(text: str, target: str) -> None:
    Path("x.csv").write_text(text, encoding="utf-8")
    assert read("x.csv", target) == SAMPLES.tolist()


def test_a_bad_file_is_told() -> None:
    Path("text.npy").write_text("no array")
    Path("empty.npy").touch()
    Path("latin.csv").write_bytes(b"\xe9,b\n1,2\n")
    np.save("objects.npy", np.array([{}, {}]), allow_pickle=True)
    Path("cut.npy").write_bytes(Path("objects.npy").read_bytes()[:20])
    np.save("short.npy", SAMPLES)
    Path("short.npy").write_bytes(Path("short.npy").read_bytes()[:-1])
    np.save("words.npy", ["a", "b"])
    Path("new.csv.gz").write_bytes(b"\x1f\x8b\x08")
    np.savez("two.npz", a=SAMPLES, b=SAMPLES)
    np.savez("none.npz")
    for name, message in {
        "text.npy": "'text.npy' is not a NumPy file; write one with numpy.save",
        "empty.npy": "'empty.npy' is not a NumPy file; write one with numpy.save",
        "latin.csv": "'latin.csv' is not UTF-8 text: line 1 has the byte 0xe9; save it as UTF-8",
        "objects.npy": "'objects.npy' holds Python objects in an array; it must hold numbers",
        "words.npy": "'words.npy' holds elements of type <U1 in an array; it must hold real numbers",
        "cut.npy": "'cut.npy' cannot be read as a NumPy array: EOF: reading array header, expected 118 bytes got 10",
        "short.npy": "'short.npy' is truncated: an array needs 32 bytes but has 31",
        "new.csv.gz": "'new.csv.gz' cannot be decompressed: Compressed file ended before the end-of-stream marker was "
        "reached; it is damaged, "
        "write or copy it again",
        "two.npz": "'two.npz' has no array x; it has 'a', 'b'",
        "none.npz": "'none.npz' has no array x; it has nothing",
        "nowhere.npy": "there is no file nowhere.npy",
        ".": ". is a folder; give the path of a file",
    }.items():
        assert told(name) == f"INPUT: {message}"


def test_a_package_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    Path("new.csv.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    problem = "'new.csv.zst' is compressed with Zstandard: pyarrow is not installed on this machine; pip install 'thalweg[data]'"
    assert told("new.csv.zst") == f"INPUT: {problem}"


def test_a_damaged_archive_is_told() -> None:
    np.savez_compressed("x.npz", x=np.random.default_rng(0).normal(size=1000))
    with zipfile.ZipFile("x.npz") as archive:
        member = archive.infolist()[0]
    content = bytearray(Path("x.npz").read_bytes())
    for position in range(member.header_offset + 60, member.header_offset + 90):
        content[position] ^= 0xFF
    Path("x.npz").write_bytes(content)
    assert told("x.npz").startswith("INPUT: 'x.npz' cannot be read as a NumPy archive: Error -3 while decompressing data")


@pytest.mark.parametrize("name", ["out.npy", "OUT.NPY"])
def test_outputs_as_an_array(name: str, tmp_path: Path) -> None:
    write_outputs(Path(name), OUTPUTS)
    assert np.load(name).tolist() == OUTPUTS.outputs.tolist()
    assert names_in(tmp_path) == [name]


@pytest.mark.parametrize("name", ["out.npz", "OUT.NPZ"])
def test_outputs_as_an_archive(name: str, tmp_path: Path) -> None:
    write_outputs(Path(name), OUTPUTS)
    with np.load(name) as archive:
        assert {key: archive[key].tolist() for key in archive.files} == {
            "outputs": OUTPUTS.outputs.tolist(),
            "classes": [1, 0],
            "probabilities": [[0.25, 0.75], [0.5, 0.5]],
        }
    assert names_in(tmp_path) == [name]


def table(prediction: Prediction) -> list[str]:
    write_outputs(Path("out.csv"), prediction)
    return Path("out.csv").read_text().splitlines()


def test_outputs_as_a_table() -> None:
    assert table(OUTPUTS) == [
        "class,probability_0,probability_1,output0,output1",
        "1,0.25,0.75,-2.0,0.5",
        "0,0.5,0.5,1.0,0.0",
    ]
    assert table(Prediction(OUTPUTS.outputs.reshape(2, 1, 2), None)) == ["output0,output1", "-2.0,0.5", "1.0,0.0"]
    assert table(Prediction(OUTPUTS.outputs, OUTPUTS.classes)) == ["class,output0,output1", "1,-2.0,0.5", "0,1.0,0.0"]
    several = np.array([[0.25, 0.75]], np.float32)
    assert table(Prediction(several, np.array([[0, 1]]), several)) == [
        "class_0,class_1,probability_0,probability_1,output0,output1",
        "0,1,0.25,0.75,0.25,0.75",
    ]


def test_an_unknown_ending_is_told() -> None:
    check_name(Path("a.CSV"))
    with pytest.raises(ThalwegError, match=r"--output: out\.txt: the name must end in one of \.npy, \.npz, \.csv"):
        check_name(Path("out.txt"))
