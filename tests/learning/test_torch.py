"""PyTorch modules: held against PyTorch alone, and the mistakes that they may hold."""

import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from tests.learning.batches import batch, schema_of
from tests.learning.modules import importable
from thalweg.contract import tensors
from thalweg.contract.layout import Slab, layout_of, views
from thalweg.contract.segments import Kind
from thalweg.learning import registry
from thalweg.learning.batch import Batch
from thalweg.learning.data import Arrays
from thalweg.learning.errors import MistakeError
from thalweg.learning.objective import Objective, conversions
from thalweg.learning.objective import layout as layout_of_objective
from thalweg.learning.randomness import Purpose
from thalweg.v1 import job_pb2

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402 - an extra
from torch.nn import functional  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from thalweg.learning.pytorch.randomness import seeded  # noqa: E402 - imports torch
from thalweg.learning.pytorch.settings import settled  # noqa: E402

NETS = "nets_of_test_torch"


@pytest.fixture(autouse=True)
def nets() -> Iterator[ModuleType]:
    """A module for entry points; and the settings that workers have."""
    with importable(NETS) as module, settled(1):
        yield module


def objective_of(module: ModuleType, make: Any, samples: Batch, loss: Any = "mean_squared_error") -> Objective:
    """The objective of a module that `make` makes."""
    vars(module)["make"] = make
    if callable(loss):
        vars(module)["loss"] = loss
        loss = f"{NETS}:loss"
    model = {"torch": {"entrypoint": f"{NETS}:make", "arguments": "{}"}, "loss": loss, "dtype": "float32"}
    spec = json_format.ParseDict({"model": model, "seed": 3}, job_pb2.JobSpec())
    return registry.objective(spec, schema_of(samples))


def initial(objective: Objective) -> Slab:
    at = np.empty(objective.size, objective.dtype)
    objective.initialize(at)
    return at


def images(samples: int = 12) -> Batch:
    rng = np.random.default_rng(0)
    return batch(rng.normal(size=(samples, 1, 6, 6)).astype(np.float32), rng.integers(0, 3, samples))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3)
    )


def test_it_has_the_bits_of_a_plain_loop(nets: ModuleType) -> None:
    samples = images()
    objective = objective_of(nets, convolutional, samples, "softmax_cross_entropy")
    at, out = initial(objective), np.empty(objective.size, np.float32)
    at.flags.writeable = False
    # The loop, with PyTorch alone.
    with seeded(3, Purpose.MODULE_CREATION):
        net = convolutional()
    for step, microbatch in ((0, 0), (5, 1), (5, 2)):
        fields = {name: values[microbatch * 4 : microbatch * 4 + 4] for name, values in samples.items()}
        state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        net.zero_grad()
        with seeded(3, Purpose.MODULE_CALL, step, microbatch):
            outputs = net(torch.tensor(fields["x"]))
        (functional.cross_entropy(outputs, torch.tensor(fields["y"]), reduction="none").sum() / 12).backward()
        expected = {name: parameter.grad for name, parameter in net.named_parameters()}
        expected |= {
            name: (state[name] - buffer) * (4 / 12) for name, buffer in net.named_buffers() if buffer.is_floating_point()
        }
        net.load_state_dict(state)

        sums = objective.gradient(at, fields, 12, (step, microbatch), out)
        assert sums.samples == len(fields["x"])
        found = views(layout_of(objective.segments, objective.dtype), out)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            np.testing.assert_array_equal(found[name], tensor.numpy(), name)


def test_a_running_mean_that_stays_is_a_statistic(nets: ModuleType) -> None:
    samples = batch(np.zeros((4, 2), np.float32), np.zeros((4, 2), np.float32))
    objective = objective_of(nets, lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm1d(2), nn.Linear(2, 2)), samples)
    kinds = {segment.name: segment.kind for segment in objective.segments}
    assert kinds["1.running_mean"] == kinds["1.running_var"] == Kind.STATISTIC


@pytest.mark.parametrize(
    ("dtypes", "words"),
    [
        ([torch.float32] * 3, ""),
        (
            [torch.float64] * 3,
            "model.dtype: the code makes 0.weight and 5 more tensors of type float64, which the job converts to float32; "
            'to train with float64, set model.dtype = "float64"',
        ),
        (
            [torch.bfloat16, torch.float32, torch.float16],
            "model.dtype: the code makes 0.weight and 0.bias of type bfloat16, which the job converts to float32; "
            "the code makes 2.weight and 2.bias of type float16, which the job converts to float32",
        ),
    ],
)
def test_tensors_that_are_converted_are_named(nets: ModuleType, dtypes: list[Any], words: str) -> None:
    samples = batch(np.zeros((4, 2), np.float32), np.zeros((4, 2), np.float32))
    objective = objective_of(nets, lambda: nn.Sequential(*(nn.Linear(2, 2, dtype=each) for each in dtypes)), samples)
    assert conversions(objective) == words
    assert objective.gradient(initial(objective), samples, 4, (0, 0), np.empty(objective.size, np.float32)).samples == 4


def test_parameters_lie_in_memory_that_cannot_be_written(nets: ModuleType, tmp_path: Path) -> None:
    samples = images()
    objective = objective_of(nets, convolutional, samples, "softmax_cross_entropy")
    initial(objective).tofile(tmp_path / "slab")
    at = np.frombuffer(np.memmap(tmp_path / "slab", np.float32, "r"), np.float32)
    for step in range(2):
        objective.gradient(at, samples, 12, (step, 0), np.empty(objective.size, np.float32))
    objective.measure(at, samples)


def test_its_tensors_are_named_as_in_its_state(nets: ModuleType) -> None:
    objective = objective_of(nets, convolutional, images(), "softmax_cross_entropy")
    kinds = {segment.name: segment.kind for segment in objective.segments}
    counters = {counter.name for counter in objective.counters}
    state = convolutional().state_dict()
    assert kinds.keys() | counters == state.keys()
    assert {name for name, kind in kinds.items() if kind == Kind.STATISTIC} == {name for name in state if "running" in name}
    assert counters == {name for name in state if name.endswith("num_batches_tracked")}
    names = [segment.name for segment in objective.segments if segment.kind == Kind.PARAMETER]
    assert names == [name for name, _ in reversed(list(convolutional().named_parameters()))]


def test_the_first_parameters_are_final_while_backpropagation_runs(nets: ModuleType) -> None:
    samples = images()
    objective = objective_of(nets, convolutional, samples, "softmax_cross_entropy")
    at, out, whole = initial(objective), np.empty(objective.size, np.float32), np.empty(objective.size, np.float32)
    objective.gradient(at, samples, 12, (0, 0), whole)
    said: list[int] = []

    def done(elements: int) -> None:
        said.append(elements)
        np.testing.assert_array_equal(out[:elements], whole[:elements])

    objective.gradient(at, samples, 12, (0, 0), out, done)
    assert len(said) > 3
    assert said == sorted(said)
    assert said[-1] == objective.size


class Tied(nn.Module):
    """An embedding that is used at both ends, with a mask, a frozen tensor and one that is not used."""

    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        self.recompute = recompute
        self.embedding = nn.Embedding(7, 5)
        self.inner = nn.Linear(5, 5)
        self.frozen = nn.Parameter(torch.randn(5), requires_grad=False)
        self.unused = nn.Linear(2, 2)
        self.out = nn.Linear(5, 7, bias=False)
        self.out.weight = self.embedding.weight
        self.register_buffer("mask", torch.tensor([0.0, 0.0, float("-inf")]))

    def forward(self, ids: Any) -> Any:
        def run(values: Any) -> Any:
            values = torch.tanh(self.inner(values)) * self.frozen
            return self.out(values + torch.softmax(self.mask, 0).sum())

        hidden = self.embedding(ids)
        return checkpoint(run, hidden, use_reentrant=True) if self.recompute else run(hidden)


@pytest.mark.parametrize("recompute", [False, True])
def test_tied_frozen_and_unused_parameters(nets: ModuleType, recompute: bool) -> None:
    rng = np.random.default_rng(1)
    samples = batch(rng.integers(0, 7, (6, 4)), rng.integers(0, 7, (6, 4)))
    objective = objective_of(nets, lambda: Tied(recompute), samples, "softmax_cross_entropy")
    assert [segment.name for segment in objective.segments if segment.kind == Kind.CONSTANT] == ["frozen", "mask"]
    assert [segment.name for segment in objective.segments].count("embedding.weight") == 1
    at = initial(objective)
    outs = [np.full(objective.size, np.nan, np.float32) for _ in range(3)]
    for out in outs:
        objective.gradient(at, samples, 6, (0, 0), out)
    with seeded(3, Purpose.MODULE_CREATION):
        net = Tied(recompute)
    ids, labels = torch.tensor(samples["x"]), torch.tensor(samples["y"])
    (functional.cross_entropy(net(ids).movedim(-1, 1), labels, reduction="none").mean(1).sum() / 6).backward()
    for out in outs:
        found = views(layout_of(objective.segments, objective.dtype), out)
        assert not found["unused.weight"].any()
        assert not found["frozen"].any()
        assert not found["mask"].any()
        for name in ("embedding.weight", "inner.weight", "inner.bias"):
            np.testing.assert_array_equal(found[name], net.get_parameter(name).grad.numpy(), name)


def test_random_numbers_are_those_of_the_task_and_leave_the_process_alone(nets: ModuleType) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: Any) -> Any:
            return x * self.weight * (random.random() + np.random.random() + torch.rand(1))

    samples = batch(np.ones((4, 1), np.float32), np.zeros((4, 1), np.float32))
    objective = objective_of(nets, Noisy, samples)
    at, out = initial(objective), np.empty(objective.size, np.float32)
    states = random.getstate(), torch.get_rng_state(), str(np.random.get_state())
    found: dict[tuple[int, int], float] = {}
    for draw in ((0, 0), (0, 1), (1, 0), (0, 0), (1, 0)):
        objective.gradient(at, samples, 4, draw, out)
        assert found.setdefault(draw, out[0]) == out[0]
    assert len(set(found.values())) == len(found)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert str(np.random.get_state()) == states[2]


def test_a_loss_of_ones_own_is_of_each_sample_or_their_mean(nets: ModuleType) -> None:
    samples = batch(np.arange(8, dtype=np.float32).reshape(4, 2), np.arange(4, dtype=np.float32).reshape(4, 1))
    found = []
    for loss in (
        "mean_squared_error",
        lambda outputs, targets: ((outputs - targets) ** 2).mean(1),
        lambda outputs, targets: ((outputs - targets) ** 2).mean(),
    ):
        objective = objective_of(nets, lambda: nn.Linear(2, 1), samples, loss)
        out = np.empty(objective.size, np.float32)
        objective.gradient(initial(objective), samples, 8, (0, 0), out)
        found.append(out)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-6)


def test_a_module_may_give_its_own_loss(nets: ModuleType) -> None:
    class WithLoss(nn.Linear):
        def forward(self, x: Any, y: Any = None) -> Any:
            outputs = super().forward(x)
            return outputs if y is None else ((outputs - y) ** 2).mean()

    samples = batch(np.arange(8, dtype=np.float32).reshape(4, 2), np.arange(4, dtype=np.float32).reshape(4, 1))
    objective = objective_of(nets, lambda: WithLoss(2, 1), samples, "model")
    at, out = initial(objective), np.empty(objective.size, np.float32)
    sums = objective.gradient(at, samples, 4, (0, 0), out)
    outputs = objective.predict(at, samples).values
    assert sums.loss == pytest.approx(((outputs - samples["y"]) ** 2).sum())


def test_a_buffer_that_a_module_replaces_is_a_statistic(nets: ModuleType) -> None:
    class Replacing(nn.Linear):
        seen: Any

        def __init__(self) -> None:
            super().__init__(2, 1)
            self.register_buffer("seen", torch.zeros(2))

        def forward(self, x: Any) -> Any:
            if self.training:
                self.seen = 0.5 * self.seen + 0.5 * (x + 1).mean(0)
            return super().forward(x)

    samples = batch(np.ones((4, 2), np.float32), np.ones((4, 1), np.float32))
    objective = objective_of(nets, Replacing, samples)
    out = np.empty(objective.size, np.float32)
    for _ in range(2):
        objective.gradient(initial(objective), samples, 8, (0, 0), out)
        found = views(layout_of(objective.segments, objective.dtype), out)["seen"]
        np.testing.assert_array_equal(found, np.full(2, -0.5, np.float32))


def bad_parameters() -> nn.Module:
    class Changing(nn.Linear):
        def forward(self, x: Any) -> Any:
            with torch.no_grad():
                self.weight.mul_(0.9)
            return super().forward(x)

    return Changing(2, 1)


def bad_counter() -> nn.Module:
    class Jumping(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 1)
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))

        def forward(self, x: Any) -> Any:
            self.count += 2
            return super().forward(x)

    return Jumping()


def raising() -> nn.Module:
    raise ValueError("no width given")


class WithoutSuper(nn.Module):
    def __init__(self) -> None:
        """Makes what is no module yet."""


@pytest.mark.parametrize(
    ("make", "loss", "words"),
    [
        (lambda: 3, "mean_squared_error", "returned int, not a torch.nn.Module"),
        (nn.Linear(2, 1), "mean_squared_error", "make is a module; name a class, or a function that makes it"),
        (raising, "mean_squared_error", "ValueError: no width given"),
        (lambda: nn.LazyLinear(1), "mean_squared_error", "has no shape yet"),
        (lambda: nn.Linear(2, 1, device="meta"), "mean_squared_error", "weight has no values"),
        (WithoutSuper, "mean_squared_error", "AttributeError: 'WithoutSuper' object has no attribute"),
        (bad_parameters, "mean_squared_error", "changes its parameter weight"),
        (bad_counter, "mean_squared_error", "changes its buffer count"),
        (lambda: nn.Linear(3, 1), "mean_squared_error", "RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        (lambda: nn.Linear(2, 3), "mean_squared_error", "shape (3,) for each sample, but the data's y has (1,)"),
        (lambda: nn.Linear(2, 1), lambda outputs, _: outputs, "returned a tensor of type float32 and shape (4, 1) for 4 samples"),
        (lambda: nn.Linear(2, 1), lambda *_: 1.0, "returned float, not a tensor"),
        (lambda: nn.Linear(2, 1), lambda *_: sys.exit(3), "SystemExit: 3"),
        (lambda: nn.Linear(2, 1), lambda *_: torch.zeros(4), "the loss does not depend on any parameter"),
        (
            lambda: nn.Sequential(nn.Linear(2, 1), nn.Flatten(0, 0), nn.Unflatten(0, (2, 2))),
            "mean_squared_error",
            "shape (2, 2, 1) for 4",
        ),
        (lambda: nn.LSTM(2, 1), "mean_squared_error", "the module returned tuple, not a tensor"),
    ],
)
def test_mistakes(nets: ModuleType, make: Any, loss: Any, words: str) -> None:
    samples = batch(np.ones((4, 2), np.float32), np.ones((4, 1), np.float32))

    def attempt() -> None:
        objective = objective_of(nets, make, samples, loss)
        objective.gradient(initial(objective), samples, 4, (0, 0), np.empty(objective.size, np.float32))

    with pytest.raises(MistakeError, match=rf"^model\.(torch|loss).*{re.escape(words)}"):
        attempt()


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_integers_that_meet_real_numbers_are_named(nets: ModuleType, kind: Any) -> None:
    samples = batch(np.ones((4, 2), kind), np.ones((4, 1), np.float32))
    objective = objective_of(nets, lambda: nn.Linear(2, 1), samples)
    problem = rf"in the data x is {kind.__name__}, y is float32: convert it there, as x\.astype"
    with pytest.raises(MistakeError, match=problem):
        objective.gradient(initial(objective), samples, 4, (0, 0), np.empty(objective.size, np.float32))


def test_real_numbers_that_meet_an_embedding_are_named(nets: ModuleType) -> None:
    samples = batch(np.ones((4, 2), np.float32), np.ones((4, 2, 3), np.float32))
    objective = objective_of(nets, lambda: nn.Embedding(2, 3), samples)
    with pytest.raises(MistakeError, match="in the data x is float32"):
        objective.measure(initial(objective), samples)


@pytest.mark.parametrize(
    ("outputs", "targets", "words"),
    [
        (5, np.array([0, 1, 4, 9]), "model.torch: the model has 5 outputs, so labels must be 0 to 4, but the data's y has 9"),
        (5, np.array([0, 1, 4, -1]), "model.torch: the model has 5 outputs, so labels must be 0 to 4, but the data's y has -1"),
        (5, np.zeros(4, np.float32), "model.loss: softmax_cross_entropy needs labels, whole numbers of shape (samples,), or"),
        (5, np.zeros((4, 2), np.int64), "model.loss: softmax_cross_entropy needs labels, whole numbers of shape (samples,), or"),
    ],
)
def test_labels_that_do_not_fit_are_told(nets: ModuleType, outputs: int, targets: Any, words: str) -> None:
    samples = batch(np.ones((4, 2), np.float32), targets)
    objective = objective_of(nets, lambda: nn.Linear(2, outputs), samples, "softmax_cross_entropy")
    with pytest.raises(MistakeError, match=rf"^{re.escape(words)}"):
        objective.check(Arrays(samples))
    # Samples that are not in memory are looked at when they are computed with.
    with pytest.raises(MistakeError, match=rf"^{re.escape(words)}"):
        objective.measure(initial(objective), samples)


def test_labels_of_validation_samples_are_looked_at(nets: ModuleType) -> None:
    x = np.ones((4, 2), np.float32)
    right, wrong = batch(x, np.array([0, 1, 2, -100])), batch(x, np.array([0, 1, 2, 3]))
    objective = objective_of(nets, lambda: nn.Linear(2, 3), right, "softmax_cross_entropy")
    objective.check(Arrays(right))
    with pytest.raises(MistakeError, match="labels must be 0 to 2"):
        objective.check(Arrays(wrong))


def test_labels_in_a_column_are_labels(nets: ModuleType) -> None:
    x, y = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32), np.array([0, 1, 2, 0])
    objective = objective_of(nets, lambda: nn.Linear(2, 3), batch(x, y), "softmax_cross_entropy")
    at = initial(objective)
    assert objective.measure(at, batch(x, y[:, None])) == objective.measure(at, batch(x, y))


@pytest.mark.parametrize(
    ("bias", "target", "words"),
    [
        (
            1.5,
            1,
            "model.loss: binary_cross_entropy needs outputs from 0 to 1, but the module gives 1.5; end the module with a sigmoid",
        ),
        (0.5, 2, "model.loss: binary_cross_entropy needs targets from 0 to 1, but the data's y has 2"),
    ],
)
def test_what_is_no_probability_is_told(nets: ModuleType, bias: float, target: float, words: str) -> None:
    def make() -> nn.Module:
        linear = nn.Linear(2, 1)
        nn.init.zeros_(linear.weight)
        nn.init.constant_(linear.bias, bias)
        return linear

    samples = batch(np.ones((4, 2), np.float32), np.full(4, target, np.float32))
    with pytest.raises(MistakeError, match=rf"^{re.escape(words)}"):
        objective_of(nets, make, samples, "binary_cross_entropy").check(Arrays(samples))


def test_batch_norm_of_one_sample_names_the_settings(nets: ModuleType) -> None:
    samples = batch(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32))
    objective = objective_of(nets, lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), samples)
    with pytest.raises(MistakeError, match=r"raise training\.batch_size, or lower training\.microbatches$"):
        objective.gradient(initial(objective), samples, 1, (0, 0), np.empty(objective.size, np.float32))


def test_settings_are_those_of_before_afterwards() -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with settled(2):
        assert torch.get_num_threads() == 2
        assert torch.are_deterministic_algorithms_enabled()
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


class Causal(nn.Module):
    """Tied weights, a causal mask, and what state has besides."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.again = self.norm
        self.register_buffer("mask", torch.tril(torch.ones(3, 3, dtype=torch.bool)))
        self.register_buffer("positions", torch.arange(3), persistent=False)

    def forward(self, x: Any) -> Any:
        return self.head(self.norm(self.mask.float() @ self.embed(x)))


def test_tied_weights_and_masks_are_known_by_all_names(nets: ModuleType) -> None:
    samples = batch(np.array([[1, 2, 3], [0, 1, 4]]), np.array([[1, 2, 3], [0, 1, 4]]))
    objective = objective_of(nets, Causal, samples, "softmax_cross_entropy")
    layout = layout_of_objective(objective)
    assert {alias.name: alias.tensor for alias in layout.aliases} == {
        "head.weight": "embed.weight",
        **{f"again.{name}": f"norm.{name}" for name in nn.BatchNorm1d(3).state_dict()},
    }
    at = initial(objective)
    found = tensors.state(layout, at, 7)
    net = Causal()
    net.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in found.items()})
    assert list(found) == list(net.state_dict())
    assert net.norm.num_batches_tracked == 7
    np.testing.assert_array_equal(found["mask"], np.tri(3, dtype=bool))
    assert found["mask"].dtype == np.bool_


def test_buffers_of_integers_that_are_too_large_are_told(nets: ModuleType) -> None:
    def make(**settings: Any) -> Any:
        net = nn.Linear(2, 2)
        net.register_buffer("table", torch.zeros(1 << 18, dtype=torch.int64), **settings)
        return net

    samples = batch(np.zeros((4, 2), np.float32), np.zeros((4, 2), np.float32))
    with pytest.raises(MistakeError, match=r"buffers of integers have 2.00 MiB, table is the largest.*persistent=False"):
        objective_of(nets, make, samples)
    objective_of(nets, lambda: make(persistent=False), samples)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (torch.zeros(2, dtype=torch.complex64), "table has complex numbers"),
        (torch.zeros(2, dtype=torch.bits8), "the buffer table has the type bits8"),
    ],
)
def test_buffers_of_other_types_are_told(nets: ModuleType, values: Any, problem: str) -> None:
    def make() -> Any:
        net = nn.Linear(2, 2)
        net.register_buffer("table", values)
        return net

    samples = batch(np.zeros((4, 2), np.float32), np.zeros((4, 2), np.float32))
    with pytest.raises(MistakeError, match=problem):
        objective_of(nets, make, samples)


def test_modules_of_torchscript_are_passed_over_when_outputs_are_recorded(nets: ModuleType) -> None:
    samples = batch(np.ones((4, 3), np.float32), np.ones((4, 1), np.float32))
    found: list[str] = []
    objective: Any = objective_of(nets, lambda: nn.Sequential(torch.jit.script(nn.Linear(3, 2)), nn.Linear(2, 1)), samples)
    with objective.traced(lambda name, _: found.append(name)):
        objective.measure(initial(objective), samples)
    assert found == ["1 (Linear)", "the module (Sequential)"]
