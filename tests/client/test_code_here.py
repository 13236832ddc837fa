"""Code of jobs in the client's own process: only what its user allows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.client.conftest import Command
from tests.client.helpers import fleet_of_threads
from tests.end_to_end.cluster import running_server
from thalweg.client import Client, Job, ThalwegError, load_job
from thalweg.client.embedded import Embedded
from thalweg.client.folder_server import attached
from thalweg.client.models import read_own_samples

torch = pytest.importorskip("torch")

NETS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("offset", torch.full((3,), 0.5))
        self.up = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.down = nn.Linear(3, 2)
        self.down.bias.requires_grad_(False)
        self.empty = nn.Parameter(torch.zeros(0, 2))

    def forward(self, x):
        return self.down(self.norm(self.up(x) + self.offset))


class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return 2 * x

    @staticmethod
    def backward(context, gradient):
        return gradient


class WrongNet(Net):
    def forward(self, x):
        return Wrong.apply(super().forward(x))
"""
TOML = """
[model]
torch = "nets:Net"
loss = "softmax_cross_entropy"
[code]
path = "nets.py"
[data]
npz = "data.npz"
validation_fraction = 0.25
[training]
epochs = 2
batch_size = 8
workers = 1
[optimizer]
sgd = { learning_rate = 0.1 }
"""
X = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "job.toml").write_text(TOML)
    np.savez(tmp_path / "data.npz", x=X, y=(X.sum(1) > 0).astype(np.int64))
    return tmp_path / "job.toml"


@pytest.fixture
def job(job_file: Path, tmp_path: Path) -> Iterator[Job]:
    """A job with code of its own that has ended, on another's server."""
    with (
        running_server(tmp_path / "server", allow_code=True) as server,
        fleet_of_threads(server, slots=1, allow_code=True),
        Client(server.address) as client,
    ):
        job = client.submit(job_file, id="mine")
        job.wait()
        yield job


def expected(job: Job) -> Any:
    names: dict[str, Any] = {}
    exec(NETS, names)
    net = names["Net"]()
    net.load_state_dict(job.state_dict())
    net.eval()
    with torch.no_grad():
        return net(torch.from_numpy(X)).numpy()


def test_a_model_that_is_code_predicts_if_it_may(job: Job) -> None:
    with pytest.raises(ThalwegError) as caught:
        job.predict(X)
    assert str(caught.value) == (
        "model.torch.entrypoint: nets:Net is code, which workers run and this process does not: it could do anything that you "
        "can do; if you trust who wrote it, use thalweg predict --allow-code, or job.predict(x, allow_code=True)"
    )
    outputs = expected(job)
    np.testing.assert_allclose(job.predict(X, allow_code=True), outputs, rtol=1e-5, atol=1e-6)
    found = job.prediction(X, allow_code=True)
    assert found.classes is not None
    assert found.classes.tolist() == outputs.argmax(1).tolist()
    with pytest.raises(ThalwegError, match=r"x: has the shape \(1, 2\)"):
        job.predict(X[:1, :2], allow_code=True)


def test_integers_are_converted_for_a_model_of_real_numbers(job: Job) -> None:
    whole = np.rint(X * 10)
    wanted = job.predict(whole, allow_code=True)
    assert np.array_equal(job.predict(whole.astype(np.int64), allow_code=True), wanted)


def test_real_numbers_for_a_model_of_integers_are_refused(job: Job, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    folder.mkdir()
    net = "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Embedding(4, 2), nn.Flatten(), nn.Linear(6, 2))\n"
    (folder / "nets.py").write_text(net)
    (folder / "job.toml").write_text(TOML.replace("nets:Net", "nets:make"))
    tokens = np.arange(96).reshape(32, 3) % 4
    np.savez(folder / "data.npz", x=tokens, y=tokens[:, 0] % 2)
    with Client(job._connection.address) as client:
        other = client.submit(folder / "job.toml")
        other.wait()
        assert other.predict(tokens, allow_code=True).shape == (32, 2)
        with pytest.raises(ThalwegError) as caught:
            other.predict(tokens.astype(np.float32), allow_code=True)
    problem = 'x: holds real numbers, but the job was trained on int64; convert it, x.astype("int64") ('
    assert str(caught.value).startswith(problem)
    assert caught.value.__suppress_context__


def test_the_command_has_an_option(job: Job, command: Command, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    server = job._connection.address
    printed = command("predict", "mine", tmp_path / "x.npy", "--server", server)
    assert printed.code == 1
    assert "thalweg predict --allow-code" in printed.err
    found = command("predict", "mine", tmp_path / "x.npy", "--server", server, "--allow-code", "--json").json
    np.testing.assert_allclose(found["outputs"], expected(job), rtol=1e-5, atol=1e-6)
    own = command("predict", "mine", "--server", server, "--allow-code", "--json").json
    assert len(own["targets"]) == len(own["classes"]) == 8


def test_code_of_this_users_own_jobs_needs_no_flag(job: Job, tmp_path: Path) -> None:
    with Client(job._connection.address, own=True) as client:
        np.testing.assert_allclose(client.job("mine").predict(X), expected(job), rtol=1e-5, atol=1e-6)
    embedded = Embedded(tmp_path / "folder")
    try:
        assert embedded.client.submit("xor").is_own
        with attached(tmp_path / "folder") as joined:
            assert [each.is_own for each in joined.jobs()] == [True]
    finally:
        embedded.close()
    with attached(tmp_path / "folder") as client:
        assert [each.is_own for each in client.jobs()] == [True]


def test_jobs_of_a_servers_folder_are_not_this_users_own(job: Job, tmp_path: Path) -> None:
    with attached(tmp_path / "server") as client:
        assert not client.job("mine").is_own


def test_data_that_is_code_is_not_read_for_predictions(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    entry = {"entrypoint": "pathlib:Path.touch", "arguments": {"self": str(mark)}}
    job = {"model": {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"}, "data": {"python": entry}}
    with pytest.raises(ThalwegError, match="is code, which workers run and this process does not"):
        read_own_samples(load_job(job).spec, lambda _: Path())
    assert not mark.exists()


def test_gradients_of_code_are_checked(job_file: Path, command: Command) -> None:
    found = command("gradcheck", job_file, "--json")
    assert found.code == 0, found.err
    tensors = {row["tensor"]: row["passed"] for row in found.json["tensors"]}
    assert tensors == dict.fromkeys(["up.weight", "up.bias", "norm.weight", "norm.bias", "down.weight", "empty"], True)
    wrong = command("gradcheck", job_file, "--set", "model.torch=nets:WrongNet", "--json")
    assert wrong.code == 1
    assert not json.loads(wrong.out)["passed"]
