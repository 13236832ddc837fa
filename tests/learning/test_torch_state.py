"""PyTorch modules that keep what training does not know: views, what is made in a call, attributes, extra state."""

import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.learning.batches import batch
from tests.learning.modules import importable
from thalweg.learning.errors import MistakeError

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402 - an extra

from tests.learning.test_torch import NETS, initial, objective_of  # noqa: E402 - needs torch
from thalweg.learning.pytorch.settings import settled  # noqa: E402 - imports torch

SAMPLES = batch(np.ones((4, 3), np.float32), np.ones((4, 3), np.float32))


@pytest.fixture(autouse=True)
def nets() -> Iterator[ModuleType]:
    """A module for entry points; and the settings that workers have."""
    with importable(NETS) as module, settled(1):
        yield module


class Square(nn.Linear):
    """A module that `put` changes when it is made."""

    def __init__(self, put: Any) -> None:
        super().__init__(3, 3)
        put(self)


def of_rows(net: Any) -> None:
    net.register_buffer("head", net.weight.detach()[:2])


def of_rows_that_are_not_kept(net: Any) -> None:
    net.register_buffer("head", net.weight.detach()[:2], persistent=False)


def of_an_attribute(net: Any) -> None:
    net.views = {"head": [net.weight.data[1]]}


def of_a_parameter(net: Any) -> None:
    net.head = nn.Parameter(net.weight[0])


def tied_by_data(net: Any) -> None:
    net.head = nn.Linear(3, 3)
    net.head.weight.data = net.weight.data


def of_a_statistic(net: Any) -> None:
    net.norm = nn.BatchNorm1d(3)
    net.register_buffer("head", net.norm.running_mean[:1])


def in_double(net: Any) -> None:
    net.double()
    of_rows(net)


@pytest.mark.parametrize(
    ("put", "words"),
    [
        (of_rows, "the parameter weight and the buffer head share memory"),
        (of_rows_that_are_not_kept, "the parameter weight and the buffer head share memory"),
        (of_an_attribute, "the parameter weight and the attribute views['head'][0] share memory"),
        (of_a_parameter, "the parameter weight and the parameter head share memory"),
        (tied_by_data, "assign it itself, module.head.weight = module.weight"),
        (of_a_statistic, "the buffer norm.running_mean and the buffer head share memory"),
        (in_double, "the parameter weight and the buffer head share memory"),
    ],
)
def test_views_of_what_is_trained_are_refused(nets: ModuleType, put: Any, words: str) -> None:
    with pytest.raises(MistakeError, match=rf"^model\.torch: .*{re.escape(words)}"):
        objective_of(nets, lambda: Square(put), SAMPLES)


def in_one_storage(net: Any) -> None:
    """Parameters that are columns of one matrix, and a view of what is not trained."""
    whole = torch.ones(3, 2)
    net.first, net.second = nn.Parameter(whole[:, 0]), nn.Parameter(whole[:, 1])
    net.register_buffer("mask", torch.ones(3, 3))
    net.register_buffer("rows", net.mask[:2])
    net.list = [net.weight, net.first]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Square(in_one_storage),
        lambda: torch.nn.utils.spectral_norm(nn.Linear(3, 3)),
        lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
        lambda: nn.Sequential(nn.LSTM(3, 3, batch_first=True), First()),
    ],
)
def test_tensors_that_share_no_element_of_a_trained_one_are_right(nets: ModuleType, make: Any) -> None:
    objective = objective_of(nets, make, SAMPLES)
    assert objective.gradient(initial(objective), SAMPLES, 4, (0, 0), np.empty(objective.size, np.float32)).samples == 4


class First(nn.Module):
    def forward(self, found: Any) -> Any:
        return found[0]


class MadeLate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.late: Any = None

    def forward(self, x: Any) -> Any:
        if self.late is None:
            self.late = nn.Linear(3, 3)
        return self.late(self.linear(x))


class MadeEachTime(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3)

    def forward(self, x: Any) -> Any:
        return nn.PReLU()(super().forward(x))


class Replaced(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3)

    def forward(self, x: Any) -> Any:
        if self.training:
            setattr(self, "weight", nn.Parameter(self.weight * 0.9))  # noqa: B010 - of no type that could be known
        return super().forward(x)


def loss_with_a_layer(outputs: Any, targets: Any) -> Any:
    return ((nn.Linear(3, 3)(outputs) - targets) ** 2).mean()


@pytest.mark.parametrize(
    ("make", "loss", "words"),
    [
        (MadeLate, "mean_squared_error", "the parameter weight of a Linear when .* in forward: self.late = nn.Linear"),
        (MadeEachTime, "mean_squared_error", "the parameter weight of a PReLU when .* in forward: return nn.PReLU"),
        (Replaced, "mean_squared_error", "the parameter weight of a Replaced when .* in forward: setattr"),
        (lambda: nn.Linear(3, 3), loss_with_a_layer, "the parameter weight of a Linear when .* in loss_with_a_layer"),
    ],
)
def test_parameters_that_are_made_in_a_call_are_refused_with_the_line(nets: ModuleType, make: Any, loss: Any, words: str) -> None:
    objective = objective_of(nets, make, SAMPLES, loss)
    with pytest.raises(MistakeError, match=rf"^model\.(torch|loss): the code makes {words}.*make it in __init__$"):
        objective.gradient(initial(objective), SAMPLES, 4, (0, 0), np.empty(objective.size, np.float32))
    # Elsewhere modules are made as ever.
    assert nn.Linear(3, 3).weight.requires_grad
