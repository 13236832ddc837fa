"""Models that return several outputs: their predictions have names."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.client.conftest import Command
from tests.client.helpers import fleet_of_threads
from tests.end_to_end.cluster import running_server
from thalweg.client import Client, ThalwegError
from thalweg.client.cli.models.predictions import write_outputs
from thalweg.client.prediction import Prediction

torch = pytest.importorskip("torch")
pytest.importorskip("jax")

FILES = {
    "nets.py": """
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass
class Found:
    logits: Any
    attention: Any = None


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        values = self.linear(x)
        return {"score": values[:, 0], "states": (values, Found(values.argmax(1))), "balance": values.sum(), "file": values}


def loss(outputs, targets):
    return (outputs["score"] - targets) ** 2
""",
    "line.py": """
import numpy


class Line:
    def initial(self, rng):
        return {"slope": numpy.ones(3)}

    def predict(self, parameters, x):
        values = x @ parameters["slope"]
        return values, values > 0

    def loss(self, parameters, x, y):
        return (x @ parameters["slope"] - y) ** 2
""",
    "functions.py": """
from jax import numpy as jnp


def make():
    def init(key):
        return jnp.ones(3)

    def predict(parameters, x):
        return {"z": x @ parameters, "above": x @ parameters > 0, "scale": 2.0}

    def loss(parameters, x, y, key):
        return (x @ parameters - y) ** 2

    return init, loss, predict
""",
}
MODELS: dict[str, Any] = {
    "torch": {"torch": {"entrypoint": "nets:Net"}, "loss": "nets:loss"},
    "python": {"python": {"entrypoint": "line:Line"}},
    "jax": {"jax": {"entrypoint": "functions:make"}},
}
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a server on which a job of each kind has ended."""
    code = tmp_path_factory.mktemp("code")
    for name, text in FILES.items():
        (code / name).write_text(text)
    with (
        running_server(tmp_path_factory.mktemp("server"), allow_code=True) as server,
        fleet_of_threads(server, slots=1, allow_code=True),
        Client(server.address) as client,
    ):
        for name, model in MODELS.items():
            settings = {
                "model": model,
                "code": {"path": str(code)},
                "training": {"epochs": 2, "workers": 1},
                "optimizer": {"sgd": {"learning_rate": 0.01}},
            }
            client.submit(settings, data=(X, X.sum(1)), id=name).wait()
        yield client


def test_outputs_of_a_module_have_their_names(client: Client) -> None:
    job = client.job("torch")
    state = job.parameters()
    values = X @ state["linear.weight"].T + state["linear.bias"]
    with pytest.warns(UserWarning, match="the model also returns 'balance', without the samples on the first axis: left out"):
        found: Any = job.predict(X, allow_code=True)
    assert list(found) == ["score", "states.0", "states.1.logits", "file"]
    np.testing.assert_allclose(found["score"], values[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["states.0"], values, rtol=1e-5, atol=1e-6)
    assert found["states.1.logits"].tolist() == values.argmax(1).tolist()
    prediction = job.prediction(X, allow_code=True)
    assert np.array_equal(prediction.outputs, found["score"])
    assert prediction.classes is None
    assert prediction.probabilities is None


@pytest.mark.parametrize(("kind", "names"), [("python", ("0", "1")), ("jax", ("z", "above"))])
def test_outputs_of_functions_have_their_names(client: Client, kind: str, names: tuple[str, str]) -> None:
    job = client.job(kind)
    (slope,) = job.parameters().values()
    found = job.prediction(X, allow_code=True)
    assert tuple(found.named) == names
    values, above = found.named.values()
    np.testing.assert_allclose(values, X @ slope, rtol=1e-5, atol=1e-6)
    assert values.dtype == np.float32
    assert above.dtype == np.bool_
    assert above.tolist() == (X @ slope > 0).tolist()


def test_blocks_of_samples_are_joined(client: Client) -> None:
    job = client.job("torch")
    many = np.tile(X, (1024, 1))[:4097]
    found, parts = (job.prediction(x, allow_code=True).named for x in (many, X))
    assert found.keys() == parts.keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, np.concatenate([parts[name]] * 513)[:4097], rtol=1e-5, atol=1e-6)


def test_a_command_prints_and_writes_their_names(client: Client, command: Command) -> None:
    job, on = client.job("torch"), ("--server", client.address, "--allow-code")
    np.save("x.npy", X[:2])
    wanted = job.prediction(X[:2], allow_code=True).named
    ran = command("predict", "torch", "x.npy", *on)
    assert ran.err == "thalweg: the model also returns 'balance', without the samples on the first axis: left out\n"
    score, states, logits = wanted["score"][0], wanted["states.0"][0], wanted["states.1.logits"][0]
    both = f"{states[0]:.6g} {states[1]:.6g}"
    assert ran.out.splitlines()[0] == f"score {score:.6g}, states.0 {both}, states.1.logits {logits}, file {both}"
    assert command("predict", "torch", "x.npy", "--json", *on).json == {
        "job": "torch",
        "outputs": {name: values.tolist() for name, values in wanted.items()},
    }
    assert command("predict", "torch", "x.npy", "-o", "found.csv", *on).code == 0
    with Path("found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["score", "states.0_0", "states.0_1", "states.1.logits", "file_0", "file_1"]
    assert [float(row["states.0_1"]) for row in rows] == pytest.approx(wanted["states.0"][:, 1].tolist())
    assert command("predict", "torch", "x.npy", "-o", "found.npz", *on).code == 0
    with np.load("found.npz") as archive:
        assert {name: values.tolist() for name, values in archive.items()} == json.loads(
            json.dumps({name: values.tolist() for name, values in wanted.items()})
        )
    refused = command("predict", "torch", "x.npy", "-o", "found.npy", *on)
    assert refused.code == 2
    assert "the model returns several outputs, score, states.0, states.1.logits, file; end the name in .npz or" in refused.err


def test_outputs_beside_files_of_images_keep_their_names(tmp_path: Path) -> None:
    values = np.arange(2.0)
    prediction = Prediction(values, None, files=("a.png", "b.png"), named={"files": values})
    write_outputs(tmp_path / "found.npz", prediction)
    with np.load(tmp_path / "found.npz") as archive:
        assert {name: found.tolist() for name, found in archive.items()} == {
            "output_files": [0, 1],
            "files": ["a.png", "b.png"],
        }


def test_a_module_without_outputs_for_the_samples_is_told(client: Client, tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text("""
from torch import nn


class Net(nn.Linear):
    def forward(self, x):
        return {"sum": super().forward(x).sum()}


def loss(outputs, targets):
    return outputs["sum"] ** 2
""")
    settings = {
        "model": {"torch": {"entrypoint": "sums:Net", "arguments": {"in_features": 3, "out_features": 1}}, "loss": "sums:loss"},
        "code": {"path": str(tmp_path)},
        "training": {"epochs": 1, "workers": 1},
        "optimizer": {"sgd": {"learning_rate": 0.01}},
    }
    job = client.submit(settings, data=(X, X.sum(1)))
    job.wait()
    with pytest.raises(ThalwegError, match="returned dict, which has 'sum', but no array with the 8 samples on its first axis"):
        job.predict(X, allow_code=True)
