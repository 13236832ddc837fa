"""`thalweg doctor`: what makes bits differ is found, and named; what is well is said to be."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.client.conftest import Command
from tests.learning.kinds.cases import require
from thalweg.client import doctor

pytest.importorskip("torch")

NETS = """
import concurrent.futures
import functools
import random
import time

import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, middle):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.middle = middle
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(4 * 16, 3)

    def forward(self, x):
        x = self.middle(self.norm(self.first(x.unsqueeze(1))).relu())
        return self.last(self.drop(x.flatten(1)))


class Healthy(nn.Module):
    def forward(self, x):
        return x + torch.rand(1) + random.random() + np.random.rand()


class Plain(nn.Identity):
    pass


class OwnGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()
        self.generator.seed()

    def forward(self, x):
        return x + torch.rand(x.shape, generator=self.generator)


class OrderOfASet(nn.Module):
    def forward(self, x):
        for name in {f"factor {number}" for number in range(9)}:
            x = x * 0.5 + len(name) + int(name[-1])
        return x


class Kept(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = torch.zeros(1)

    def forward(self, x):
        self.seen = self.seen + x.detach().mean()
        return x + self.seen


class Threads(nn.Module):
    def forward(self, x):
        # Sums of parts are added as they come, and rounded otherwise in another order.
        parts = torch.chunk(x.flatten(1), 16, 1)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            def part(values):
                time.sleep(random.SystemRandom().random() / 100)
                return values.sum()
            futures = [pool.submit(part, values.detach()) for values in parts]
            total = functools.reduce(torch.add, [future.result() for future in concurrent.futures.as_completed(futures)])
        return x + total


class Clock(nn.Module):
    def forward(self, x):
        return x * (1 + time.time() % 1)


MIDDLES = {middle.__name__: middle for middle in (Healthy, Plain, OwnGenerator, OrderOfASet, Kept, Threads, Clock)}


def net(middle):
    return Net(MIDDLES[middle]())


def double(middle):
    return net(middle).double()


class Drawn:
    \"\"\"Samples with noise that nobody seeds.\"\"\"

    def __init__(self, noisy):
        rng = np.random.default_rng(0)
        self.x, self.y = rng.normal(size=(32, 6, 6)).astype(np.float32), rng.integers(0, 3, 32)
        self.noise = np.random.default_rng() if noisy else None

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        x = self.x[index]
        if self.noise is not None:
            x = x + self.noise.normal(size=x.shape).astype(np.float32)
        return x, self.y[index]
"""
TOML = """
[model]
torch = { entrypoint = "nets:net", arguments = { middle = "Healthy" } }
loss = "softmax_cross_entropy"
[code]
path = "nets.py"
[data]
npz = "data.npz"
[training]
batch_size = 8
epochs = 2
[optimizer]
sgd = { learning_rate = 0.1 }
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "job.toml").write_text(TOML)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(32, 6, 6)).astype(np.float32), y=rng.integers(0, 3, 32))
    return tmp_path / "job.toml"


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a load beside the second process, for what is found without one."""
    monkeypatch.setattr(doctor, "_load", nullcontext)


def examined(command: Command, job: Path, *settings: str) -> tuple[int, Any]:
    """The exit code and the answer of the command."""
    found = command("doctor", job, *(part for setting in settings for part in ("--set", setting)), "--json")
    assert found.out, found.err
    return found.code, found.json


def test_a_healthy_network_has_the_same_bits(command: Command, job: Path) -> None:
    """With dropout, batch normalization, and random numbers of all three generators that the job's seed sets."""
    code, found = examined(command, job, "model.torch.entrypoint=nets:double")
    assert found["notice"].startswith(
        "model.dtype: the code makes first.weight and 7 more tensors of type float64, which the job"
    )
    assert (code, found["same_bits"], found["difference"]) == (0, True, None)
    assert found["tasks"] > 1
    assert found["times"] == 4


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("fault", ["OwnGenerator", "OrderOfASet", "Kept", "Threads", "Clock"])
def test_a_fault_is_found_in_its_module(command: Command, job: Path, fault: str) -> None:
    code, found = examined(command, job, f"model.torch.arguments.middle={fault}")
    assert (code, found["same_bits"]) == (1, False)
    assert (found["difference"]["what"], found["difference"]["name"]) == ("output", f"middle ({fault})")
    # Only another process has another order of sets.
    assert ("in another process" in found["difference"]["when"]) or fault != "OrderOfASet"
    # A second process is not needed for what differs in one.
    assert fault == "Threads" or found["times"] == (4 if fault == "OrderOfASet" else 2)


@pytest.mark.nightly
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("middle", ["Plain", "Kept"])
def test_a_compiled_module_is_examined_as_a_whole(command: Command, job: Path, middle: str) -> None:
    require("torch, compiled")
    code, found = examined(command, job, f"model.torch.arguments.middle={middle}", "model.compile=true")
    assert not found["notice"]
    if middle == "Plain":
        assert (code, found["same_bits"], found["times"]) == (0, True, 4)
    else:
        assert (code, found["difference"]["what"], found["difference"]["name"]) == (1, "output", "the module (Net)")


@pytest.mark.usefixtures("quiet")
def test_random_numbers_in_a_data_set_are_found(command: Command, job: Path) -> None:
    text = job.read_text().replace('npz = "data.npz"', 'python = { entrypoint = "nets:Drawn", arguments = { noisy = true } }')
    job.write_text(text)
    code, found = examined(command, job)
    assert (code, found["difference"]["what"], found["difference"]["name"]) == (1, "samples", "x")
