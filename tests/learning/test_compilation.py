"""Modules that `torch.compile` compiles: the bits of one are the same in every process, and near those of the module as it is."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from tests.learning.batches import batch, schema_of
from tests.learning.kinds import cases
from tests.learning.modules import importable
from thalweg.contract.errors import ThalwegError
from thalweg.contract.layout import layout_of, views
from thalweg.contract.segments import Kind
from thalweg.learning import registry
from thalweg.learning.data import Arrays
from thalweg.learning.data.order import Order
from thalweg.learning.errors import MistakeError
from thalweg.learning.objective import Dependent, Objective
from thalweg.server import validation
from thalweg.v1 import job_pb2

torch = pytest.importorskip("torch")
cases.require("torch, compiled")
from torch import nn  # noqa: E402 - an extra

from tests.learning.kinds import compiled  # noqa: E402 - imports torch
from thalweg.learning.pytorch import compilation  # noqa: E402
from thalweg.learning.pytorch.settings import settled  # noqa: E402

NETS = "nets_of_test_compilation"


@pytest.fixture(autouse=True)
def nets() -> Iterator[ModuleType]:
    """A module for entry points; and the settings that workers have."""
    with importable(NETS) as module, settled(1):
        yield module


@pytest.mark.nightly
def test_bits_are_the_same_in_another_order_in_another_process_and_from_other_memory(tmp_path: Path) -> None:
    objectives = {case: compiled.objective_of(case) for case in compiled.LOSSES}
    starts = {case: compiled.start(objective) for case, objective in objectives.items()}
    found = [compiled.digest(objectives[task[0]], starts[task[0]], task) for task in compiled.TASKS]
    assert len(set(found)) == len(found)
    for index in (2, 0, 1):
        case = compiled.TASKS[index][0]
        # Every other version of the parameters is elsewhere; here it does not even begin where memory is aligned.
        other = np.empty(objectives[case].size + 1, np.float32)[1:]
        other[...] = starts[case]
        for at in (other, starts[case]):
            assert compiled.digest(objectives[case], at, compiled.TASKS[index]) == found[index]
    # This process may have found what was compiled before; that one has to compile, and begins with other sizes.
    elsewhere = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "elsewhere"), "PYTHONHASHSEED": "3"}
    program = [sys.executable, "-m", compiled.__name__]
    assert json.loads(subprocess.check_output(program, env={**os.environ, **elsewhere}, text=True)) == found
    assert list((tmp_path / "elsewhere").glob("thalweg-*/**/*.so"))


@pytest.mark.parametrize("case", compiled.LOSSES)
def test_gradients_and_statistics_are_near_those_of_the_module_as_it_is(case: str) -> None:
    """With the same random numbers: those of dropout, too."""
    one, plain = compiled.objective_of(case), compiled.objective_of(case, compile=False)
    assert one.segments == plain.segments
    at = compiled.start(one)
    assert at.tobytes() == compiled.start(plain).tobytes()
    for task in (each for each in compiled.TASKS if each[0] == case):
        (found, sums), (expected, plain_sums) = (compiled.gradient(objective, at, task) for objective in (one, plain))
        assert sums.loss == pytest.approx(plain_sums.loss, rel=1e-5)
        assert sums.samples == plain_sums.samples
        # Were other activations dropped, half of the numbers would be others.
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
        tensors = views(layout_of(one.segments, one.dtype), found)
        for segment in one.segments:
            assert tensors[segment.name].any() == (segment.kind != Kind.CONSTANT and "unused" not in segment.name), segment.name


def test_evaluations_and_predictions_have_the_bits_of_the_module_as_it_is() -> None:
    one, plain = compiled.objective_of("convolutional"), compiled.objective_of("convolutional", compile=False)
    at, samples = compiled.start(one), compiled.samples_of("convolutional", 9)
    assert one.measure(at, samples) == plain.measure(at, samples)
    np.testing.assert_array_equal(one.predict(at, samples).values, plain.predict(at, samples).values)


def test_products_may_be_rounded() -> None:
    rounded = compiled.objective_of("convolutional", precision="bfloat16")
    at, task = compiled.start(rounded), compiled.TASKS[0]
    exact, _ = compiled.gradient(compiled.objective_of("convolutional", compile=False), at, task)
    first, _ = compiled.gradient(rounded, at, task)
    again, _ = compiled.gradient(rounded, at, task)
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != exact.tobytes()
    assert np.linalg.norm(first - exact) < 0.2 * np.linalg.norm(exact)


def test_the_gradient_is_said_to_be_final_at_the_end_at_last() -> None:
    objective = compiled.objective_of("convolutional")
    at, said = compiled.start(objective), list[int]()
    expected, _ = compiled.gradient(objective, at, compiled.TASKS[0])
    out = np.full(objective.size, np.nan, np.float32)

    def done(elements: int) -> None:
        said.append(elements)
        np.testing.assert_array_equal(out[:elements], expected[:elements])

    objective.gradient(at, compiled.samples_of("convolutional", 6), 10, (0, 0), out, done)
    assert said == sorted(said)
    assert said[-1] == objective.size


def objective_of(module: ModuleType, forward: Any) -> Objective:
    """The objective of a module with one weight, whose forward function is given."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.calls = 0

        def forward(self, x: Any) -> Any:
            return forward(self, x)

    vars(module)["make"] = Net
    model = {"torch": {"entrypoint": f"{NETS}:make"}, "loss": "mean_squared_error", "compile": True}
    fields = {"model": model, "data": {"builtin": "xor"}, "optimizer": {"sgd": {}}}
    spec = validation.complete(json_format.ParseDict(fields, job_pb2.JobSpec()))
    return registry.objective(spec, schema_of(ONES))


ONES = batch(np.ones((4, 1), np.float32), np.zeros((4, 1), np.float32))


def counting(net: Any, x: Any) -> Any:
    net.calls += 1
    return x * net.weight * net.calls


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda net, x: x * net.weight if x.sum() > 0 else x - net.weight, "cannot be compiled: Data-dependent"),
        (lambda net, x: x * net.weight * __import__("random").random(), "draws from Python's or NumPy's generators"),
        (lambda net, x: x * net.weight * np.random.random(), "draws from Python's or NumPy's generators"),
        (counting, "depends on values that change from call to call: it was compiled 2 times; change it, or"),
    ],
)
def test_what_would_depend_on_the_past_is_refused(
    nets: ModuleType, monkeypatch: pytest.MonkeyPatch, forward: Any, words: str
) -> None:
    # As many as there are, and two for this test.
    monkeypatch.setattr(compilation, "_MAX_GRAPHS", 2)
    torch._dynamo.reset()
    objective = objective_of(nets, forward)
    at, out = compiled.start(objective), np.empty(objective.size, np.float32)

    def attempt() -> None:
        objective.check(Arrays(ONES))
        for step in range(4):
            objective.gradient(at, ONES, 4, (step, 0), out)

    with pytest.raises(MistakeError, match=rf"^model\.compile: the module .*{re.escape(words)}.*set model\.compile = false$"):
        attempt()


# Makes an objective and computes with it; prints the error, and that a prediction needs no compiler.
WITHOUT = """
import numpy as np
from tests.learning.batches import schema_of
from tests.learning.kinds import compiled
from thalweg.learning import registry
from thalweg.workers.failures import failure_of
from thalweg.v1 import parameter_service_pb2 as pb
samples = compiled.samples_of("convolutional", 4)
try:
    objective = compiled.objective_of("convolutional")
    compiled.gradient(objective, compiled.start(objective), compiled.TASKS[0])
except Exception as error:
    failure = failure_of(error)
    print(pb.Failure.Scope.Name(failure.scope), failure.problem)
objective = registry.objective(compiled.spec_of("convolutional", compile=True), schema_of(samples), substitutes=True)
print(objective.predict(compiled.start(objective), samples).values.shape)
"""


@pytest.mark.parametrize(
    ("compiler", "words"),
    [
        ("", "model.compile: this machine has no C++ compiler; install g++, or set model.compile = false"),
        ("echo odd 1.0; [ $1 = --version ] || exit 1", "model.compile: this machine cannot compile: "),
    ],
    ids=["none", "one that fails"],
)
def test_a_machine_that_cannot_compile_says_what_it_lacks(tmp_path: Path, compiler: str, words: str) -> None:
    """It is the node's fault. Predictions need no compiler."""
    if compiler:
        (tmp_path / "g++").write_text(f"#!/bin/sh\n{compiler}\n")
        (tmp_path / "g++").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "CXX"}
    environment |= {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kept")}
    lines = subprocess.check_output([sys.executable, "-c", WITHOUT], env=environment, text=True).splitlines()
    assert lines[0].startswith(f"SCOPE_NODE {words}")
    assert "g++" in lines[0]
    assert lines[1] == "(4, 3)"


# Prints where PyTorch keeps what it compiles.
FOLDER = """
import os
from tests.learning.kinds import compiled
compiled.objective_of("gpt")
print(os.environ["TORCHINDUCTOR_CACHE_DIR"], os.path.isdir(os.environ["TORCHINDUCTOR_CACHE_DIR"]))
"""


def test_a_folder_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    """In one of the user's alone, each compiler has a folder; in place of another one there is a temporary folder."""
    for mode, own in ((0o700, True), (0o777, False)):
        (tmp_path / "kept").mkdir(exist_ok=True)
        (tmp_path / "kept").chmod(mode)
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kept")}
        printed = subprocess.check_output([sys.executable, "-c", FOLDER], env=environment, text=True)
        folder, there = printed.split()
        assert there == "True"
        assert (Path(folder).parent == tmp_path / "kept") == own
        assert Path(folder).exists() == own, "a temporary one is removed"


def test_the_compiler_and_its_settings_are_premises(monkeypatch: pytest.MonkeyPatch) -> None:
    one, plain = compiled.objective_of("gpt"), compiled.objective_of("gpt", compile=False)
    assert isinstance(one, Dependent)
    assert isinstance(plain, Dependent)
    assert not plain.premises
    assert re.search(r"\d+\.\d+", one.premises["C++ compiler"])
    assert one.premises["settings of torch.compile"] == "none"
    monkeypatch.setenv("TORCHINDUCTOR_MAX_AUTOTUNE", "1")
    other = compiled.objective_of("gpt")
    assert isinstance(other, Dependent)
    assert other.premises["settings of torch.compile"] == "TORCHINDUCTOR_MAX_AUTOTUNE=1"


@pytest.mark.parametrize(
    ("kind", "changes", "problem"),
    [
        ("sequential", {}, "is possible with model.torch only; leave it out"),
        ("jax", {}, "is possible with model.torch only; leave it out"),
        ("python", {}, "is possible with model.torch only; leave it out"),
        (
            "torch",
            {"resources": {"gpus": 1}},
            "is for processors, and training.resources.gpus asks for a GPU; leave one of them out",
        ),
        ("torch", {"gradient": "numerical"}, "has no effect with training.gradient numerical; leave one of them out"),
    ],
)
def test_only_modules_on_processors_are_compiled(kind: str, changes: dict[str, Any], problem: str) -> None:
    spec = cases.spec_of(kind)
    json_format.ParseDict({"model": {"compile": True}, "training": changes}, spec)
    with pytest.raises(ThalwegError) as caught:
        validation.complete(spec)
    assert {violation.field: violation.problem for violation in caught.value.violations} == {"model.compile": problem}


@pytest.mark.parametrize("samples", [1, 3, 10, 16, 17])
def test_all_sizes_of_microbatches_are_known(samples: int) -> None:
    for batch_size in (1, 3, 8, 20):
        for microbatches in (1, 2, 3, 8):
            training = {"batch_size": batch_size, "microbatches": microbatches}
            order = Order(cases.spec_of("sequential", training=training), samples)
            steps = range(order.steps_per_epoch)
            found = {len(order.microbatch(step, each)[0]) for step in steps for each in range(microbatches)}
            assert order.sizes == sorted(found - {0}, reverse=True), training
