"""Models of each kind, and training them as a user would with PyTorch, JAX or NumPy alone, in a plain loop.

Thalweg says which samples are in a microbatch, seeds random numbers, and gives the order in which gradients are added. Nothing
else of it is used.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.learning.kinds.cases import require, spec_of
from thalweg.client import load_job
from thalweg.contract import tree
from thalweg.contract.layout import Slab
from thalweg.learning import data, randomness, registry
from thalweg.learning.batch import Batch
from thalweg.learning.data.order import Order
from thalweg.learning.randomness import Draw, Purpose, generator
from thalweg.server import validation
from thalweg.v1 import job_pb2

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
# The folders that workers import the code of these jobs from.
PATHS = [ROOT, EXAMPLES / "cnn", EXAMPLES / "gpt"]
RATE, MOMENTUM = 0.05, 0.9
TRAINING = {"microbatches": 7, "epochs": 2}


class Model(Protocol):
    """A model that is trained in a plain loop."""

    # What is descended, and what changes by itself, by name.
    values: dict[str, Any]
    statistics: frozenset[str]

    def gradient(self, batch: Batch, denominator: int, draw: Draw) -> Mapping[str, Any]:
        """The gradient of the sum of the samples' losses divided by `denominator`, and the falls of statistics."""

    def state(self, steps: int) -> dict[str, Slab]:
        """All that is kept of it after some steps."""


class Case(NamedTuple):
    """A job: the kind of its model, its complete specification, and how its model is made for a plain loop."""

    kind: str
    spec: Callable[[], job_pb2.JobSpec]
    model: Callable[[job_pb2.JobSpec], Model]
    # Names of tied weights, which the server's file does not have.
    aliases: frozenset[str] = frozenset()


def entry_of(spec: job_pb2.JobSpec) -> job_pb2.EntryPoint:
    """The entry point of a job's model."""
    entry: job_pb2.EntryPoint = getattr(spec.model, str(spec.model.WhichOneof("kind")))
    return entry


def _made(spec: job_pb2.JobSpec) -> Any:
    """What the entry point of a job's model gives."""
    entry = entry_of(spec)
    module, name = entry.entrypoint.split(":")
    return getattr(import_module(module), name)(**json.loads(entry.arguments))


class TorchModel:
    """A module. `loss` gives a loss for each sample."""

    def __init__(self, loss: Callable[[Any, Any], Any], spec: job_pb2.JobSpec) -> None:
        from thalweg.learning.pytorch.randomness import seeded

        self._loss = loss
        self._seeded = partial(seeded, spec.seed)
        with self._seeded(Purpose.MODULE_CREATION):
            self._net = _made(spec)
        buffers = {name: buffer for name, buffer in self._net.named_buffers() if buffer.is_floating_point()}
        parameters = {name: parameter for name, parameter in self._net.named_parameters() if parameter.requires_grad}
        self.values = {name: parameter.detach() for name, parameter in parameters.items()} | buffers
        self.statistics = frozenset(buffers)

    def gradient(self, batch: Batch, denominator: int, draw: Draw) -> dict[str, Any]:
        import torch

        x, y = (torch.tensor(batch[field]) for field in ("x", "y"))
        before = {name: self.values[name].clone() for name in self.statistics}
        self._net.zero_grad()
        with self._seeded(Purpose.MODULE_CALL, *draw):
            (self._loss(self._net(x.float() if x.is_floating_point() else x), y).sum() / denominator).backward()
        found = {}
        for name in self.statistics:
            found[name] = (before[name] - self.values[name]) * (len(x) / denominator)
            self.values[name].copy_(before[name])
        for name, parameter in self._net.named_parameters():
            if parameter.requires_grad:
                found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        return found

    def state(self, steps: int) -> dict[str, Slab]:
        for name, buffer in self._net.named_buffers():
            if name not in self.statistics:
                buffer.fill_(steps)
        return {name: tensor.numpy() for name, tensor in self._net.state_dict().items()}


class JaxModel:
    """The functions of `jax_model`, whose parameters are lists of dictionaries."""

    statistics: frozenset[str] = frozenset()

    def __init__(self, spec: job_pb2.JobSpec) -> None:
        import jax

        self._seed = spec.seed
        functions = _made(spec)

        def total(values: dict[str, Any], x: Any, y: Any, key: Any) -> Any:
            layers = [{name: values[f"layers.{layer}.{name}"] for name in ("w", "b")} for layer in range(2)]
            return functions.loss({"layers": layers}, x, y, key).sum()

        self._gradient = jax.jit(jax.grad(total))
        layers = functions.init(self._key(Purpose.INITIALIZATION))["layers"]
        self.values = {
            f"layers.{layer}.{name}": np.array(values) for layer, each in enumerate(layers) for name, values in each.items()
        }

    def _key(self, purpose: Purpose, *ids: int) -> Any:
        import jax

        words = generator(self._seed, purpose, *ids).integers(0, 2**32, 2, dtype=np.uint32)
        return jax.random.wrap_key_data(words, impl="threefry2x32")

    def gradient(self, batch: Batch, denominator: int, draw: Draw) -> dict[str, Any]:
        found = self._gradient(self.values, batch["x"], batch["y"], self._key(Purpose.MODULE_CALL, *draw))
        # NumPy divides; XLA would multiply by the reciprocal.
        return {name: np.asarray(values) / denominator for name, values in found.items()}

    def state(self, steps: int) -> dict[str, Slab]:
        return self.values


class PythonModel:
    """An object with a method `gradient`, or with `loss` alone, which is then differentiated by central differences."""

    statistics: frozenset[str] = frozenset()

    def __init__(self, spec: job_pb2.JobSpec) -> None:
        self._seeded = partial(randomness.seeded, spec.seed, Purpose.MODULE_CALL)
        self._object = _made(spec)
        initial = self._object.initial(generator(spec.seed, Purpose.INITIALIZATION))
        self.values = {name: values.astype(np.float32) for name, values in initial.items()}

    def gradient(self, batch: Batch, denominator: int, draw: Draw) -> dict[str, Any]:
        if not len(batch["x"]):
            return {name: np.zeros_like(values) for name, values in self.values.items()}
        if not hasattr(self._object, "gradient"):
            return self._differences(batch["x"].astype(np.float64), batch["y"], denominator, draw)
        with self._seeded(*draw):
            found = self._object.gradient(self.values, batch["x"], batch["y"])
        return {name: values * (1 / denominator) for name, values in found.items()}

    def _differences(self, x: Any, y: Any, denominator: int, draw: Draw) -> dict[str, Any]:
        at = {name: values.astype(np.float64) for name, values in self.values.items()}

        def loss() -> float:
            with self._seeded(*draw):
                return float(self._object.loss(at, x, y).sum())

        found = {}
        for name, values in at.items():
            found[name] = np.empty_like(self.values[name])
            for index in np.ndindex(values.shape):
                value = float(values[index])
                step = np.finfo(np.float64).eps ** (1 / 3) * max(1.0, abs(value))
                above, below = value + step, value - step
                values[index] = above
                rise = loss()
                values[index] = below
                rise -= loss()
                values[index] = value
                found[name][index] = rise / (above - below) / denominator
        return found

    def state(self, steps: int) -> dict[str, Slab]:
        return self.values


def _entropy(outputs: Any, y: Any) -> Any:
    from torch.nn import functional

    return functional.cross_entropy(outputs, y, reduction="none")


def _entropy_of_characters(outputs: Any, y: Any) -> Any:
    return _entropy(outputs.movedim(-1, 1), y).mean(1)


def _example(folder: str, settings: dict[str, Any], arguments: dict[str, Any], of_data: dict[str, Any]) -> job_pb2.JobSpec:
    """The job of an example, with less to compute. Its code can be imported as it is."""
    spec = load_job(
        EXAMPLES / folder / "job.toml", {f"training.{name}": value for name, value in TRAINING.items()} | settings
    ).spec
    spec.ClearField("code")
    spec.model.torch.arguments = json.dumps(arguments)
    if of_data:
        spec.data.python.arguments = json.dumps(of_data)
    spec.optimizer.CopyFrom(job_pb2.Optimizer(momentum=job_pb2.Momentum(learning_rate=RATE, momentum=MOMENTUM)))
    return validation.complete(spec)


def _small(
    kind: str, inputs: int, classes: int, of_data: dict[str, Any], training: dict[str, Any], entrypoint: str = ""
) -> job_pb2.JobSpec:
    """A job with a small model of a kind, of `tests/learning/kinds`, or with another one of that kind."""
    training = TRAINING | training
    spec = spec_of(
        kind,
        inputs,
        classes,
        data=of_data,
        training=training,
        optimizer={"momentum": {"learning_rate": RATE, "momentum": MOMENTUM}},
    )
    if entrypoint:
        spec.model.torch.entrypoint = entrypoint
    return spec


# Three batches of seven microbatches of 49 samples, and three times 256 for evaluations: each worker compiles what JAX computes
# for each number of samples.
_DIGITS = 64, 10, {"builtin": "digits", "validation_fraction": 0.4274}, {"batch_size": 343}
_XOR = 2, 2, {"builtin": "xor"}, {"batch_size": 3, "epochs": 4}
CASES: dict[str, Case] = {
    "cnn": Case(
        "torch", partial(_example, "cnn", {"training.batch_size": 500}, {"channels": 2}, {}), partial(TorchModel, _entropy)
    ),
    "gpt": Case(
        "torch",
        partial(
            _example,
            "gpt",
            {"training.batch_size": 30, "data.validation_fraction": 0.2},
            {"layers": 2, "width": 16, "heads": 2, "context": 8},
            {"context": 8, "characters": 1000},
        ),
        partial(TorchModel, _entropy_of_characters),
        frozenset({"out.weight"}),
    ),
    "jax": Case("jax", partial(_small, "jax", *_DIGITS), JaxModel),
    "python": Case("python", partial(_small, "python", *_DIGITS), PythonModel),
    "python, numerical": Case("python, numerical", partial(_small, "python, numerical", *_XOR), PythonModel),
}
# All that a module can have, and more parameters than one server has where there are shards.
MIXED = Case(
    "torch",
    partial(_small, "torch", *_DIGITS, "tests.learning.kinds.torch_model:mixed"),
    partial(TorchModel, _entropy),
    frozenset({"again.weight"}),
)


@cache
def plain(case: Case) -> tuple[dict[str, Slab], int]:
    """What a plain loop makes of a case's model: its state, and the number of steps."""
    spec = case.spec()
    train = data.load(spec, lambda _: Path()).train
    order = Order(spec, len(train))
    model = case.model(spec)
    velocity: dict[str, Any] = {}

    def differentiate(step: int, microbatch: int) -> Mapping[str, Any]:
        indices, denominator = order.microbatch(step, microbatch)
        return model.gradient(train.take(indices), denominator, (step, microbatch))

    def add(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
        return {name: one[name] + other[name] for name in one}

    steps, count = order.steps_per_epoch * spec.training.epochs, spec.training.microbatches
    for step in range(steps):
        for name, change in tree.fold(tree.root(count), count, partial(differentiate, step), add).items():
            if name in model.statistics:
                model.values[name] -= change
            else:
                velocity[name] = velocity[name] * MOMENTUM + change if step else change
                model.values[name] -= velocity[name] * RATE
    return model.state(steps), steps


@contextmanager
def settled(case: Case) -> Iterator[None]:
    """The settings of workers, which are threads here; and the code of examples can be imported, and is forgotten afterwards."""
    require(case.kind)
    before = set(sys.modules)
    with registry.kind_of(case.spec()).settings(1), pytest.MonkeyPatch.context() as patch:
        for folder in PATHS:
            patch.syspath_prepend(str(folder))
        yield
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(EXAMPLES)):
            del sys.modules[name]


def check(job: job_pb2.Job, folder: Path, case: Case) -> None:
    """Holds that the parameters in a server's folder have the bits of a plain loop."""
    expected, steps = plain(case)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    assert job.result.steps == steps
    found = load_file(folder / "jobs" / job.id / "parameters.safetensors")
    assert expected.keys() - found.keys() == case.aliases
    for name, values in found.items():
        assert (values.dtype, values.shape) == (expected[name].dtype, expected[name].shape)
        assert values.tobytes() == expected[name].tobytes(), name
