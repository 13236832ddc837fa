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
from thalweg.learning.objective import notices

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


class Counting(nn.Linear):
    """Counts its calls, and keeps what follows from the samples alone."""

    def __init__(self, kind: str) -> None:
        super().__init__(3, 3)
        self.kind = kind
        self.calls = 0
        self.seen: list[Any] = [torch.zeros(3)]
        self.generator = torch.Generator()
        self.cache: Any = None
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Any) -> Any:
        outputs = self.norm(super().forward(x))
        match self.kind:
            case "count":
                self.calls += 1
            case "mean":
                self.seen[0] = 0.9 * self.seen[0] + 0.1 * x.mean(0)
            case "generator":
                return outputs + torch.rand(3, generator=self.generator)
            case "cache":
                self.cache = x.shape, outputs.detach()
        return outputs


@pytest.mark.parametrize(
    ("kind", "name"), [("count", "'calls'"), ("mean", "'seen'"), ("generator", "'generator'"), ("cache", ""), ("none", "")]
)
def test_attributes_that_each_call_changes_are_named(nets: ModuleType, kind: str, name: str) -> None:
    objective = objective_of(nets, lambda: Counting(kind), SAMPLES)
    (notice,) = notices(objective) or ("",)
    assert notice.startswith(f"model.torch: each call changes attributes of the module, {name}, which workers" if name else "")
    assert bool(notice) == bool(name)
    # Buffers are as if it had been called once.
    plain = objective_of(nets, lambda: Counting("none"), SAMPLES)
    np.testing.assert_array_equal(initial(objective), initial(plain))
    assert [counter.name for counter in objective.counters] == ["norm.num_batches_tracked"]


class InList(nn.Linear):
    def __init__(self, frozen: bool) -> None:
        super().__init__(3, 3)
        self.layers = [nn.Linear(3, 3)]
        self.layers[0].requires_grad_(not frozen)

    def forward(self, x: Any) -> Any:
        return self.layers[0](super().forward(x))


def test_parameters_that_are_used_and_not_trained_are_named(nets: ModuleType) -> None:
    (notice,) = notices(objective_of(nets, lambda: InList(frozen=False), SAMPLES))
    lacking = (
        "the module does not have, and that are not trained: 'layers[0].bias', 'layers[0].weight'; keep modules in nn.ModuleList"
    )
    assert lacking in notice or lacking.replace("bias', 'layers[0].weight", "weight', 'layers[0].bias") in notice
    assert not notices(objective_of(nets, lambda: InList(frozen=True), SAMPLES))


class WithExtra(nn.Linear):
    def __init__(self, grows: bool) -> None:
        super().__init__(3, 3)
        self.scale, self.grows = 2.0, grows

    def get_extra_state(self) -> Any:
        return {"scale": self.scale}

    def set_extra_state(self, state: Any) -> None:
        self.scale = state["scale"]

    def forward(self, x: Any) -> Any:
        self.scale += self.grows
        return super().forward(x) * self.scale


def test_extra_state_is_named_and_must_not_change(nets: ModuleType) -> None:
    (notice,) = notices(objective_of(nets, lambda: nn.Sequential(WithExtra(grows=False)), SAMPLES))
    assert notice == (
        "model.torch: the extra state (get_extra_state) of 0 is not kept, and job.state_dict() lacks it; "
        "load that with strict=False"
    )
    with pytest.raises(
        MistakeError, match=r"the extra state \(get_extra_state\) of the module changes when the module is called"
    ):
        objective_of(nets, lambda: WithExtra(grows=True), SAMPLES)


def classes(outputs: Any, targets: Any) -> Any:
    return (outputs.argmax(1) - targets[:, 0].long()).sum()


def likelihood(outputs: Any, _: Any) -> Any:
    return nn.functional.log_softmax(outputs, 1).mean()


class Classes(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3)

    def forward(self, x: Any) -> Any:
        return super().forward(x).round().long()


@pytest.mark.parametrize(
    ("make", "loss", "words"),
    [
        (
            Classes,
            "mean_squared_error",
            "model.torch: the module returned numbers of type int64, which have no gradient; return real",
        ),
        (Classes, likelihood, "the module returned numbers of type int64, which have no gradient; return real"),
        (
            lambda: nn.Linear(3, 3),
            classes,
            "model.loss: returned a loss of type int64, which has no gradient; compute it from real",
        ),
    ],
)
def test_integers_have_no_gradient(nets: ModuleType, make: Any, loss: Any, words: str) -> None:
    objective = objective_of(nets, make, SAMPLES, loss)
    with pytest.raises(MistakeError, match=re.escape(words)):
        objective.measure(initial(objective), SAMPLES)
