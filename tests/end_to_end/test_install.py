"""The base install: a client that is small, and that says which extra a command needs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import json_format

from tests.end_to_end.cluster import running_server, train
from tests.end_to_end.command import thalweg
from thalweg.client import Client
from thalweg.v1 import job_pb2

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.install


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment without extras."""
    folder = tmp_path_factory.mktemp("base")
    source = shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(".*", "node_modules"))
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    programs = folder / "venv" / "bin"
    subprocess.run([programs / "pip", "install", "-q", "-c", source / "constraints.txt", source], check=True, capture_output=True)
    return programs


def test_it_is_small(base: Path) -> None:
    listed = subprocess.run([base / "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True).stdout
    names = {line.partition("==")[0].lower() for line in listed.splitlines()}
    assert {"thalweg", "numpy", "grpcio", "protobuf", "safetensors", "typer", "rich"} <= names
    assert not names & {"ray", "torch", "scipy", "matplotlib", "grpcio-health-checking", "grpcio-reflection", "threadpoolctl"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("train", "digits"), "Ray is not installed: pip install 'thalweg[workers]'"),
        (("fleet",), "Ray is not installed: pip install 'thalweg[workers]'"),
        (("serve",), "the server is not installed (grpc_health is missing): pip install 'thalweg[server]'"),
    ],
)
def test_what_is_missing_is_told(base: Path, arguments: tuple[str, ...], problem: str, tmp_path: Path) -> None:
    ended = thalweg(tmp_path, *arguments, program=base / "thalweg")
    assert ended.code == 1
    assert ended.stderr == f"thalweg: {problem}\n"
    assert ended.stdout == ""


# The arguments are a server, a job, and a file for the data of a slice.
PROGRAM = """
import json, sys, tempfile
from pathlib import Path
import numpy as np
from thalweg.client import Client
from thalweg.client.models import Landscape
from thalweg.client.plotting.slices import locate, measure, most_moved
with Client(sys.argv[1]) as client, tempfile.TemporaryDirectory() as folder:
    job = client.job(sys.argv[2])
    trajectory = job.trajectory()
    landscape = Landscape(job.spec, lambda sha256: job.download_data(sha256, Path(folder)))
    found = measure(landscape, trajectory, locate(trajectory.layout, most_moved(trajectory)))
    print(json.dumps([job.predict([[0, 1], [1, 1]]).tolist(), found.losses.tolist()]))
assert "scipy" not in sys.modules
"""


def test_it_predicts_checks_gradients_and_measures_slices(base: Path, tmp_path: Path) -> None:
    """With NumPy alone, also where the model has a layer for which workers need SciPy."""
    samples = tmp_path / "samples.npy"
    np.save(samples, [[0.0, 1.0], [1.0, 1.0]])
    job = json_format.ParseDict(
        {
            "model": {
                "layers": [{"dense": {"units": 4}}, {"gelu": {}}, {"dense": {"units": 1}}],
                "loss": "mean_squared_error",
                "dtype": "float64",
            },
            "data": {"builtin": "xor"},
            "optimizer": {"sgd": {"learning_rate": 0.1}},
        },
        job_pb2.JobSpec(),
    )
    with running_server(tmp_path / "server") as server:
        ended = train(server, job)
        assert ended.state == job_pb2.JOB_STATE_SUCCEEDED, ended.error
        address = str(server.address)
        with Client(address) as client:
            with_scipy = client.job(ended.id).predict(np.load(samples))
        place = ("--server", address, "--json")
        predicted = thalweg(tmp_path, "predict", ended.id, str(samples), *place, program=base / "thalweg")
        assert predicted.code == 0, predicted.stderr
        np.testing.assert_allclose(predicted.answer["outputs"], with_scipy, rtol=1e-12)
        python = subprocess.run(
            [base / "python", "-c", PROGRAM, address, ended.id], check=True, capture_output=True, text=True, cwd=tmp_path
        )
        outputs, losses = json.loads(python.stdout)
        np.testing.assert_allclose(outputs, with_scipy, rtol=1e-12)
        assert losses[-1] == pytest.approx(ended.result.train.loss, rel=1e-12)
    checked = thalweg(tmp_path, "gradcheck", "xor", "--set", "model.layers[1].gelu={}", program=base / "thalweg")
    assert checked.code == 0, checked.stderr


def test_it_submits_jobs_and_gets_help(base: Path, tmp_path: Path) -> None:
    assert "submit" in thalweg(tmp_path, "--help", program=base / "thalweg").stdout
    with running_server(tmp_path / "server") as server:
        place = ("--server", str(server.address), "--json")
        submitted = thalweg(tmp_path, "submit", "digits", *place, program=base / "thalweg")
        assert submitted.code == 0, submitted.stderr
        cancelled = thalweg(tmp_path, "cancel", submitted.answer["job"], *place, program=base / "thalweg")
        assert cancelled.answer["state"] == "CANCELLED"
        plotted = thalweg(tmp_path, "plot", submitted.answer["job"], *place, program=base / "thalweg")
        assert plotted.code == 1
        assert plotted.stderr == "thalweg: matplotlib is not installed (matplotlib is missing): pip install 'thalweg[plot]'\n"
