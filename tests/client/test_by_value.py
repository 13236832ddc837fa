"""Models by value: modules of this process that workers train."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.client.helpers import fleet_of_threads
from tests.end_to_end.cluster import running_server
from thalweg.client import Client, JobFailedError, ThalwegError, by_value, load_job

torch = pytest.importorskip("torch")
pytest.importorskip("cloudpickle")
from safetensors.torch import load_file  # noqa: E402 - needs torch
from torch import nn  # noqa: E402 - an extra

JOB: dict[str, Any] = {
    "training": {"epochs": 3, "batch_size": 32, "workers": 1},
    "optimizer": {"sgd": {"learning_rate": 0.1}},
    "model": {"loss": "mean_squared_error"},
}
X = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
Y = (X @ np.array([[1.0], [-2.0], [0.5]], np.float32)).astype(np.float32)


class Beside(nn.Module):
    """A module of a file that is not installed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: Any) -> Any:
        return self.linear(x)


class WithoutSuper(nn.Module):
    def __init__(self) -> None:
        """Makes what is no module yet."""


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """A client of a server whose workers, threads of this process, run code."""
    with (
        running_server(tmp_path / "server", allow_code=True) as server,
        fleet_of_threads(server, slots=1, allow_code=True),
        Client(server.address) as client,
    ):
        yield client


@pytest.fixture
def lonely(tmp_path: Path) -> Iterator[Client]:
    """A client of a server that accepts code, and has no fleet."""
    with running_server(tmp_path / "server", allow_code=True) as server, Client(server.address) as client:
        yield client


def trained(net: Any, epochs: int = 3) -> dict[str, Any]:
    """What PyTorch alone makes of a module."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(epochs):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(torch.from_numpy(X)), torch.from_numpy(Y)).backward()
        optimizer.step()
    return dict(net.state_dict())


def told(model: Any, loss: Any = None, job: Any = None, folder: Path | None = None) -> str:
    with pytest.raises(ThalwegError) as caught:
        by_value.with_model(load_job(job or JOB), model, loss, folder or Path())
    return str(caught.value)


def test_a_module_of_a_function_is_trained_from_where_it_is(client: Client) -> None:
    scale = 2.0

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1)
            self.register_buffer("offset", torch.zeros(1))

        def forward(self, x: Any) -> Any:
            return scale * self.linear(x) + self.offset

    net = Net()
    with torch.no_grad():
        net.linear.weight.fill_(0.25)
        net.offset.fill_(0.5)
    job = client.submit(JOB, model=net, data=(X, Y))
    assert job.wait().state == "SUCCEEDED"
    found = job.parameters()
    for name, tensor in trained(net).items():
        np.testing.assert_allclose(found[name], tensor, rtol=1e-5, atol=1e-6)
    assert found["offset"] == 0.5


def test_a_loss_may_be_a_function_and_the_model_be_made(client: Client) -> None:
    def make() -> Any:
        return nn.Linear(3, 1)

    def absolute(outputs: Any, targets: Any) -> Any:
        return (outputs - targets).abs().mean(1)

    job = client.submit(JOB, model=make, loss=absolute, data=(X, Y))
    result = job.wait()
    found = job.parameters()
    outputs = X @ found["weight"].T + found["bias"]
    assert result.train
    assert result.train.loss == pytest.approx(np.abs(outputs - Y).mean(), rel=1e-5)
    assert job.spec.model.loss == job.spec.model.torch.entrypoint.replace(":made", ":loss") == f"{job.spec.code.path}:loss"
    # The job's own specification can be submitted again, with another model.
    again = client.submit(job.spec, model=nn.Linear(3, 1, bias=False), loss="mean_squared_error", data=(X, Y))
    assert again.wait().state == "SUCCEEDED"
    assert again.parameters().keys() == {"weight"}


def test_a_packaged_job_gets_another_model(lonely: Client) -> None:
    job = lonely.submit("digits", model=nn.Linear(64, 10))
    model = job.spec.model
    assert (model.loss, len(model.layers)) == ("softmax_cross_entropy", 0)
    assert re.fullmatch(r"thalweg_by_value_[0-9a-f]{12}:model", model.torch.entrypoint)
    assert job.spec.data.builtin == "digits"


class Tied(nn.Module):
    """Tied weights, batch norm, a constant and a mask: all that a state has."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 3, bias=False)
        self.norm = nn.BatchNorm1d(3)
        self.down = nn.Linear(3, 3, bias=False)
        self.down.weight = self.up.weight
        self.register_buffer("offset", torch.full((3,), 0.5))
        self.register_buffer("mask", torch.tensor([True, False, True]))

    def forward(self, x: Any) -> Any:
        return (self.down(self.norm(self.up(x))) * self.mask + self.offset).sum(1, keepdim=True)


def test_a_module_takes_the_state_of_a_job(client: Client, tmp_path: Path) -> None:
    net = Tied()
    job = client.submit(JOB, model=net, data=(X, Y))
    job.wait()
    state = job.state_dict()
    assert list(state) == list(net.state_dict())
    assert state["up.weight"] is state["down.weight"]
    assert state["norm.num_batches_tracked"] == 3
    assert not torch.equal(state["up.weight"], net.up.weight)
    net.load_state_dict(state, strict=True)
    net.eval()
    assert net.norm.num_batches_tracked == 3
    result = job.result()
    assert result.train
    with torch.no_grad():
        np.testing.assert_allclose(((net(torch.from_numpy(X)).numpy() - Y) ** 2).mean(), result.train.loss, rtol=1e-5)
    # Its file has the same, and a job may start from it.
    path = tmp_path / "state.safetensors"
    job.save(path)
    written = load_file(path)
    assert written.keys() == state.keys()
    assert all(torch.equal(tensor, written[name]) for name, tensor in state.items())
    Tied().load_state_dict(written)
    settings = {"model.initial.file": str(path), "training.epochs": 0}
    again = client.submit(JOB, settings, model=Tied, data=(X, Y))
    assert again.wait().weights_sha256 == result.weights_sha256


def test_what_is_not_installed_goes_by_value(tmp_path: Path) -> None:
    by_value.with_model(load_job(JOB), Beside(), None, tmp_path)
    assert b"test_by_value" in (tmp_path / "model.pickle").read_bytes()
    # A process in a folder without the tests.
    program = (
        "import pickle, sys; net = pickle.load(open(sys.argv[1], 'rb')); print(type(net).__name__, net.linear.weight.shape[1])"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model.pickle")], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["Beside", "3"]


def test_what_cannot_be_pickled_is_named(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    net[1].guard = threading.Lock()
    assert told(net, folder=tmp_path).startswith("model: its 1.guard cannot be pickled (TypeError: cannot pickle '_thread.lock'")
    lock = threading.Lock()

    def loss(outputs: Any, targets: Any) -> Any:
        with lock:
            return outputs - targets

    assert told(nn.Linear(3, 1), loss, folder=tmp_path).startswith("loss: its lock cannot be pickled (TypeError")

    class Net(nn.Linear):
        def forward(self, x: Any) -> Any:
            with lock:
                return super().forward(x)

    assert told(Net(3, 1), folder=tmp_path).startswith("model: its Net.forward.lock cannot be pickled (TypeError")


def test_a_lazy_module_must_have_been_called(client: Client) -> None:
    net = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    assert told(net) == "model: its tensor 0.weight has no shape yet, as in a lazy module; call the module with a batch first"
    net(torch.from_numpy(X))
    assert client.submit(JOB, model=net, data=(X, Y)).wait().state == "SUCCEEDED"


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_of_tensors_come_with_a_function_that_makes_the_module(kind: str, client: Client) -> None:
    def freeze(tensor: Any) -> Any:
        if kind == "register_hook":
            return torch.zeros_like(tensor)
        tensor.grad.zero_()
        return None

    def make() -> Any:
        net = nn.Linear(3, 1)
        with torch.no_grad():
            net.weight.fill_(0.25)
        getattr(net.weight, kind)(freeze)
        return net

    problem = "model: its tensor weight has a hook, which workers would not have; give a function that makes the module"
    assert told(make()).startswith(problem)
    job = client.submit(JOB, model=make, data=(X, Y))
    assert job.wait().state == "SUCCEEDED"
    assert (job.parameters()["weight"] == 0.25).all()


def test_views_of_what_is_trained_are_told() -> None:
    for make in (
        lambda net: net.register_buffer("head", net.weight.detach()[0]),
        lambda net: setattr(net, "head", net.weight.data[0]),
    ):
        net = nn.Linear(3, 1)
        make(net)
        assert re.match("model: the parameter weight and the (buffer|attribute) head share memory", told(net))
    torch.nn.utils.spectral_norm(net := nn.Linear(3, 1))
    by_value._check_module(net)


def test_a_tensor_must_be_in_memory(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1, device="meta"))
    assert told(net).startswith("model: its tensor 1.weight is on the device meta, which holds no values")
    assert told(nn.Linear(3, 1).eval()).startswith("model: the module is in evaluation mode")


def test_what_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_value, "MAX_ARCHIVE_BYTES", 1 << 20)
    assert told(nn.Linear(1024, 1024), folder=tmp_path).startswith("model: has 4.")


@pytest.mark.parametrize(
    ("job", "field"),
    [
        (JOB | {"model": {"torch": "nets:net", "loss": "mean_squared_error"}}, "model.torch: the job has the model nets:net"),
        (JOB | {"code": {"path": "."}}, "code.path: not allowed with model=; put the code in an installed package"),
        (JOB | {"model": {"loss": "model", "initial": {"job": "a"}}}, "model.initial: training starts from the module's own"),
    ],
)
def test_contradictions_are_told(job: Any, field: str) -> None:
    assert told(nn.Linear(3, 1), job=job).startswith(field)


def test_what_is_neither_a_module_nor_a_function_is_told(tmp_path: Path) -> None:
    assert told(3) == "model: must be a torch.nn.Module, or a function that makes one, not int"
    problem = "called without arguments: missing a required argument: 'in_features'; give lambda: Linear(...)"
    assert problem in told(nn.Linear)
    assert told(WithoutSuper()) == "model: WithoutSuper.__init__ does not call super().__init__()"
    assert told(nn.Linear(3, 1), nn.MSELoss).startswith("loss: is the class MSELoss; give MSELoss(), or a function")
    assert told(nn.Linear(3, 1), 3, folder=tmp_path) == "loss: must be a name, or a function of (outputs, targets), not int"


def test_an_error_names_the_authors_file_and_line(client: Client) -> None:
    class Net(nn.Linear):
        def forward(self, x: Any) -> Any:
            raise ValueError("wrong")

    def loss(outputs: Any, targets: Any) -> Any:
        raise ValueError("wrong")

    for job, function, first in (
        (client.submit(JOB, model=Net(3, 1), data=(X, Y)), "forward", Net.forward.__code__.co_firstlineno),
        (client.submit(JOB, model=nn.Linear(3, 1), loss=loss, data=(X, Y)), "loss", loss.__code__.co_firstlineno),
    ):
        with pytest.raises(JobFailedError, match=rf"wrong \(at (tests/client/)?test_by_value\.py:{first + 1} in {function}\)$"):
            job.wait()


def test_a_model_by_value_is_named_as_it_was_given(tmp_path: Path) -> None:
    with (
        running_server(tmp_path / "server") as server,
        Client(server.address) as client,
        pytest.raises(ThalwegError) as caught,
    ):
        client.submit(JOB, model=nn.Linear(3, 1), data=(X, Y))
    assert str(caught.value).startswith("model.torch.entrypoint: the module given as model= is code, and this server accepts no")


def test_a_module_of_another_type(lonely: Client, tmp_path: Path) -> None:
    double = nn.Linear(3, 1).double()
    assert lonely.submit(JOB, model=double, data=(X, Y)).spec.model.dtype == "float64"
    assert lonely.submit(JOB, {"model.dtype": "float32"}, model=double, data=(X, Y)).spec.model.dtype == "float32"
    assert lonely.submit(JOB, model=nn.Linear(3, 1), data=(X, Y)).spec.model.dtype == "float32"
    assert told(nn.Linear(3, 1).half()).startswith(
        "model: its parameter weight is float16, but parameters are float32 or float64;"
    )
    assert told(nn.Linear(3, 1).bfloat16()).endswith('set model.precision = "bfloat16" to compute in bfloat16')


def test_data_sets_and_loaders_are_told_what_to_give(lonely: Client) -> None:
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    for data, hint in (
        (dataset, "of a TensorDataset give data=dataset.tensors, if it has two"),
        (torch.utils.data.DataLoader(dataset), "name a function that makes its data set as data.python"),
        (torch.utils.data.Subset(dataset, [0, 1]), "name a function that makes its data set as data.python"),
    ):
        with pytest.raises(ThalwegError, match=f"^data: must be a pair of arrays: .*{hint}$"):
            lonely.submit(JOB, model=nn.Linear(3, 1), data=data)
    assert lonely.submit(JOB, model=nn.Linear(3, 1), data=dataset.tensors).spec.data.npz == "arrays.npz"


def test_a_loss_comes_with_a_model(lonely: Client) -> None:
    with pytest.raises(ThalwegError, match="loss: comes with a model by value"):
        lonely.submit("xor", loss="mean_squared_error")


def test_a_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    assert told(nn.Linear(3, 1), folder=tmp_path).endswith("(cloudpickle is missing): pip install 'thalweg[torch]'")


def test_another_python_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_value.with_model(load_job(JOB), nn.Linear(3, 1), None, tmp_path)
    (file,) = tmp_path.glob("*.py")
    names: dict[str, Any] = {"__file__": str(file)}
    exec(file.read_text(), names)
    assert isinstance(names["model"](), nn.Linear)
    names["VERSION"] = (3, 2)
    with pytest.raises(RuntimeError, match=r"the model was pickled by Python 3\.2, but workers have"):
        names["model"]()
