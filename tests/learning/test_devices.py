"""Devices with memory of their own: held to the bits of the processor, by one whose copies arrive late. And rounding."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from tests.learning.batches import batch, schema_of
from tests.learning.kinds import cases
from thalweg.contract.errors import ThalwegError
from thalweg.contract.layout import Slab
from thalweg.contract.process import prepare
from thalweg.contract.sums import Sums
from thalweg.learning import registry
from thalweg.learning.batch import Batch
from thalweg.learning.errors import MistakeError, NodeError
from thalweg.learning.objective import Dependent
from thalweg.learning.randomness import Purpose
from thalweg.server import validation
from thalweg.v1 import job_pb2
from thalweg.workers import premises

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402 - an extra

from thalweg.learning.pytorch import devices, objective  # noqa: E402 - imports torch
from thalweg.learning.pytorch.randomness import seeded  # noqa: E402
from thalweg.learning.pytorch.settings import settled  # noqa: E402

CHUNK = 50


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Those that workers have."""
    with settled(1):
        yield


class LateCopy:
    """A copy that arrives when it has been asked for a few times, or is waited for."""

    def __init__(self, device: Any, host: Any) -> None:
        # The device may write there again at once.
        self._values = device.clone()
        self._host = host
        self._asked = 0
        host.fill_(torch.nan)

    def query(self) -> bool:
        self._asked += 1
        if self._asked > 2:
            self.synchronize()
        return self._asked > 2

    def synchronize(self) -> None:
        self._host.copy_(self._values)


class LateLink:
    """A device that is the processor, but has its own memory. What is sent must not change before it is settled."""

    place = torch.device("cpu")
    premises: Mapping[str, str] = MappingProxyType({"GPU": "a late one"})

    def __init__(self) -> None:
        self.sent: list[tuple[Any, Any]] = []
        self.fetched = 0

    def staging(self, size: int, kind: Any) -> Any:
        return torch.full((size,), torch.nan, dtype=kind)

    def send(self, host: Any, device: Any) -> None:
        device.copy_(host)
        self.sent.append((host, host.clone()))

    def fetch(self, device: Any, host: Any) -> LateCopy:
        self.fetched += 1
        return LateCopy(device, host)

    def settle(self) -> None:
        self.sent.clear()


class Net(nn.Module):
    """Parameters of several sizes, one without a gradient and one that is frozen; statistics, a constant and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.Tanh(), nn.Dropout(0.3), nn.Linear(20, 3))
        self.unused = nn.Parameter(torch.ones(7))
        self.scale = nn.Parameter(torch.full((3,), 2.0), requires_grad=False)
        self.register_buffer("shift", torch.arange(3.0))

    def forward(self, x: Any) -> Any:
        return self.layers(x) * self.scale + self.shift


def make() -> nn.Module:
    return Net()


def spec_of(**fields: Any) -> job_pb2.JobSpec:
    model = {"torch": {"entrypoint": f"{__name__}:make", "arguments": "{}"}, "loss": "softmax_cross_entropy"} | fields
    return json_format.ParseDict({"model": {"dtype": "float32", **model}, "seed": 3}, job_pb2.JobSpec())


def samples(count: int = 8) -> Batch:
    rng = np.random.default_rng(count)
    return batch(rng.normal(size=(count, 6)).astype(np.float32), rng.integers(0, 3, count))


def pair(monkeypatch: pytest.MonkeyPatch, link: Any, **fields: Any) -> tuple[Any, Any]:
    """The objective on the processor, and on a device, with small chunks."""
    monkeypatch.setattr(objective, "Accelerator", partial(devices.Accelerator, chunk=CHUNK))
    spec, schema = spec_of(**fields), schema_of(samples())
    return objective.TorchObjective(spec, schema), objective.TorchObjective(spec, schema, None, link)


def gradient(of: Any, at: Slab, draw: tuple[int, int], count: int = 8) -> tuple[Slab, Sums, list[int]]:
    out: Slab = np.full(of.size, np.nan, np.float32)
    progress: list[int] = []
    sums = of.gradient(at, samples(count), 24, draw, out, progress.append)
    return out, sums, progress


@pytest.mark.parametrize("fields", [{}, {"precision": "bfloat16"}])
def test_a_device_has_the_bits_of_the_processor(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]) -> None:
    link = LateLink()
    plain, device = pair(monkeypatch, link, **fields)
    assert device.segments == plain.segments
    slabs: list[Slab] = [np.empty(plain.size, np.float32) for _ in range(2)]
    other = slabs[0].copy()
    for slab, each in ((slabs[0], plain), (other, device)):
        each.initialize(slab)
    np.testing.assert_array_equal(other, slabs[0])
    # Versions lie in two slabs in turn, whose contents change.
    for step in range(5):
        at = slabs[step % 2]
        at[...] = other
        other -= 0.1
        for microbatch in range(2):
            expected, found = (gradient(each, at, (step, microbatch)) for each in (plain, device))
            np.testing.assert_array_equal(found[0], expected[0])
            assert found[1] == expected[1]
        assert device.measure(at, samples()) == plain.measure(at, samples())
        assert device.measure(at, samples(), (step, 0)) == plain.measure(at, samples(), (step, 0))
        for one, same in zip(device.predict(at, samples()), plain.predict(at, samples()), strict=True):
            np.testing.assert_array_equal(one, same)
    assert all(torch.equal(host, values) for host, values in link.sent)
    out, sums, progress = gradient(device, at, (0, 0), 0)
    assert not out.any()
    assert sums == Sums()
    assert progress == [device.size]


def test_what_is_said_to_be_final_has_arrived_while_backpropagation_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, device = pair(monkeypatch, link := LateLink())
    at: Slab = np.empty(plain.size, np.float32)
    plain.initialize(at)
    expected = gradient(plain, at, (1, 0))[0]
    # The first time only counts.
    gradient(device, at, (0, 0))
    fetched = link.fetched
    out: Slab = np.full(device.size, np.nan, np.float32)
    progress: list[int] = []
    during: list[bool] = []

    def done(elements: int) -> None:
        np.testing.assert_array_equal(out[:elements], expected[:elements])
        assert np.isnan(out[elements:]).all()
        progress.append(elements)

    write_changes = device._write_changes

    def after(*arguments: Any) -> None:
        during.append(link.fetched > fetched)
        write_changes(*arguments)

    monkeypatch.setattr(device, "_write_changes", after)
    device.gradient(at, samples(), 24, (1, 0), out, done)
    assert progress == sorted(set(progress))
    assert progress[-1] == device.size
    assert len(progress) >= device.size // CHUNK
    assert during == [True]


def test_a_gradient_that_failed_leaves_nothing_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, device = pair(monkeypatch, LateLink())
    at: Slab = np.empty(plain.size, np.float32)
    plain.initialize(at)
    expected = gradient(plain, at, (1, 0))[0]
    gradient(device, at, (0, 0))

    def fail(_: int) -> None:
        raise ConnectionError

    with pytest.raises((ConnectionError, MistakeError)):
        device.gradient(at, samples(), 24, (1, 0), np.empty(device.size, np.float32), fail)
    np.testing.assert_array_equal(gradient(device, at, (1, 0))[0], expected)


def test_other_constants_are_others_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, device = pair(monkeypatch, LateLink())
    one: Slab = np.empty(plain.size, np.float32)
    plain.initialize(one)
    other = one.copy()
    other[-6:] += 1
    for at in (one, other, one):
        assert device.measure(at, samples()) == plain.measure(at, samples())
    assert device.measure(one, samples()) != device.measure(other, samples())


def test_rounding_leaves_parameters_and_gradients_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, _ = pair(monkeypatch, LateLink())
    rounded, _ = pair(monkeypatch, LateLink(), precision="bfloat16")
    at: Slab = np.empty(exact.size, np.float32)
    exact.initialize(at)
    (expected, sums, _), (found, near, _) = (gradient(each, at, (0, 0)) for each in (exact, rounded))
    assert found.dtype == rounded.dtype == np.float32
    assert (found != expected).any()
    assert near.loss != sums.loss
    np.testing.assert_allclose(found, expected, rtol=0.1, atol=0.02)
    assert near.loss == pytest.approx(sums.loss, rel=0.02)
    values = rounded.predict(at, samples()).values
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, exact.predict(at, samples()).values, rtol=0.05, atol=0.05)


def test_rounding_is_what_autocast_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded, _ = pair(monkeypatch, LateLink(), precision="bfloat16")
    at: Slab = np.empty(rounded.size, np.float32)
    rounded.initialize(at)
    found, sums, _ = gradient(rounded, at, (2, 1))
    with seeded(3, Purpose.MODULE_CREATION):
        net = make()
    fields = samples()
    with seeded(3, Purpose.MODULE_CALL, 2, 1), torch.autocast("cpu", torch.bfloat16):
        outputs = net(torch.from_numpy(fields["x"]))
    loss = nn.functional.cross_entropy(outputs.float(), torch.from_numpy(fields["y"]), reduction="none").sum()
    (loss / 24).backward()
    assert sums.loss == float(loss.detach())
    last = dict(net.named_parameters())["layers.4.bias"].grad
    where = [segment.name for segment in rounded.segments].index("layers.4.bias")
    start = sum(segment.size for segment in rounded.segments[:where])
    np.testing.assert_array_equal(found[start : start + 3], last)


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({"model": {"precision": "bfloat16"}}, "model.precision", "'bfloat16' is possible with model.torch only; leave it out"),
        (
            {"training": {"resources": {"gpus": 1}}},
            "training.resources.gpus",
            "1 is not allowed: only model.torch computes on GPUs",
        ),
    ],
)
def test_only_modules_round_and_compute_on_gpus(changes: dict[str, Any], field: str, problem: str) -> None:
    for kind in ("sequential", "jax", "python"):
        spec = cases.spec_of(kind)
        json_format.ParseDict(changes, spec)
        assert problems(spec) == {field: problem}


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({"model": {"precision": "bfloat16", "dtype": "float64"}}, "model.precision", "'bfloat16' needs model.dtype float32"),
        (
            {"training": {"resources": {"gpus": 1.5}}},
            "training.resources.gpus",
            "1.5 is not possible; give a whole number, or a part of one GPU",
        ),
    ],
)
def test_what_cannot_be_rounded_or_granted_is_refused(changes: dict[str, Any], field: str, problem: str) -> None:
    spec = cases.spec_of("torch")
    json_format.ParseDict(changes, spec)
    assert problems(spec) == {field: problem}


def problems(spec: job_pb2.JobSpec) -> dict[str, str]:
    with pytest.raises(ThalwegError) as caught:
        validation.complete(spec)
    return {violation.field: violation.problem for violation in caught.value.violations}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_worker_without_a_gpu_says_so_and_a_prediction_does_without() -> None:
    spec = spec_of()
    spec.training.resources.gpus = 0.5
    with pytest.raises(NodeError, match=r"^training\.resources\.gpus: this machine has no GPU for this worker: its PyTorch"):
        registry.objective(spec, schema_of(samples()))
    assert registry.objective(spec, schema_of(samples()), substitutes=True).size


def test_a_gpu_is_a_premise(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, device = pair(monkeypatch, LateLink())
    assert isinstance(plain, Dependent)
    both: tuple[Any, Any] = plain, device
    without, told = ({each.name: each.value for each in premises.of_objective(of)} for of in both)
    assert told == without | {"GPU": "a late one"}


def test_the_settings_of_a_process_are_those_that_equal_bits_need_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    with settled(1):
        assert torch.are_deterministic_algorithms_enabled()
        assert (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32) == (True, False, False, False)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    prepare()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_the_generator_of_the_device_is_seeded_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    @contextmanager
    def recorded(devices: list[int]) -> Iterator[None]:
        asked.append(devices)
        yield

    monkeypatch.setattr(torch.random, "fork_rng", recorded)
    with seeded(0, Purpose.MODULE_CALL, 0, 0, place=SimpleNamespace(type="cuda", index=2)):
        pass
    assert asked == [[2]]
