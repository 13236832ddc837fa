"""Objects in plain Python: what they are held to, and the mistakes that they may hold."""

import random
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from tests.learning.batches import dataset
from tests.learning.kinds.cases import samples, spec_of
from tests.learning.kinds.python_model import Differentiated, Labels, Mean, Numbers, Numerical
from tests.learning.modules import importable
from thalweg.learning import registry
from thalweg.learning.batch import Batch
from thalweg.learning.data import Arrays, Dataset
from thalweg.learning.errors import MistakeError
from thalweg.learning.objective import Objective
from thalweg.server import validation
from thalweg.v1 import job_pb2
from thalweg.workers import needs
from thalweg.workers.differentiator import Differentiator

HERE = "objects_of_test_python_object"
SAMPLES = samples(8)


@pytest.fixture(autouse=True)
def objects() -> Iterator[ModuleType]:
    """A module for entry points."""
    with importable(HERE) as module:
        yield module


def spec_for(made: Any, **training: Any) -> job_pb2.JobSpec:
    """A complete job whose entry point gives an object."""
    vars(sys.modules[HERE])["make"] = lambda: made
    spec = {
        "model": {"python": {"entrypoint": f"{HERE}:make"}},
        "data": {"builtin": "digits"},
        "optimizer": {"sgd": {}},
        "training": training,
    }
    return validation.complete(json_format.ParseDict(spec, job_pb2.JobSpec()))


def objective_of(made: Any) -> Objective:
    return registry.objective(spec_for(made), Arrays(SAMPLES).schema)


def data() -> Dataset:
    return dataset(SAMPLES["x"], SAMPLES["y"])


def gradient(objective: Objective, batch: Batch = SAMPLES) -> Numbers:
    at, out = np.empty(objective.size, objective.dtype), np.empty(objective.size, objective.dtype)
    objective.initialize(at)
    objective.gradient(at, batch, len(batch["y"]), (0, 0), out)
    return out


def test_a_gradient_of_the_mean_and_one_of_the_sum_are_equal() -> None:
    found = [gradient(objective_of(made)) for made in (Differentiated(), Mean(), Numerical())]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-4, atol=1e-6)


def test_parameters_lie_in_the_order_in_which_they_are_given() -> None:
    assert [segment.name for segment in objective_of(Numerical()).segments] == ["weights", "biases"]


def test_pythons_own_random_numbers_follow_from_the_task_too() -> None:
    class Drawing(Numerical):
        def loss(self, parameters: dict[str, Numbers], x: Numbers, y: Labels) -> Numbers:
            return super().loss(parameters, x, y) * random.random()

    objective = objective_of(Drawing())
    at = np.empty(objective.size, np.float32)
    objective.initialize(at)
    found = [objective.measure(at, SAMPLES, (0, microbatch)) for microbatch in (0, 1)]
    random.seed(5)
    before = random.getstate()
    assert [objective.measure(at, SAMPLES, (0, microbatch)) for microbatch in (0, 1)] == found
    assert random.getstate() == before
    assert found[0] != found[1]


def test_arguments_of_the_code_can_only_be_read() -> None:
    class Changing(Numerical):
        def loss(self, parameters: dict[str, Numbers], x: Numbers, y: Labels) -> Numbers:
            parameters["biases"] += 1
            return super().loss(parameters, x, y)

    with pytest.raises(MistakeError, match=r'model\.python: ValueError: .*read-only \(at .*parameters\["biases"\] \+= 1\)'):
        objective_of(Changing()).check(Arrays(SAMPLES))


def test_workers_take_differences_where_there_is_no_gradient() -> None:
    differentiator = Differentiator(spec_for(Numerical(), microbatches=2), data())
    assert differentiator.numerical
    assert not Differentiator(spec_for(Differentiated()), data()).numerical
    assert Differentiator(spec_for(Differentiated(), gradient="numerical_forward"), data()).numerical
    spec = spec_for(Numerical())
    need = needs.of_worker(spec, differentiator.objective, 8, 256, shared=True)
    assert need == 2 * 4 * differentiator.objective.size


@pytest.mark.parametrize(
    ("training", "words"),
    [
        (
            {"synchrony": {"local": {"steps": 2}}},
            "training.synchrony: local is not possible without a gradient of the model's own",
        ),
        (
            {"codec": {"int8": {}}},
            "training.codec: int8 is not possible without a gradient of the model's own; give it a method ",
        ),
    ],
)
def test_what_differences_cannot_do_is_refused(training: dict[str, Any], words: str) -> None:
    with pytest.raises(MistakeError, match=f"^{re.escape(words)}"):
        Differentiator(spec_for(Numerical(), **training), data())
    Differentiator(spec_for(Differentiated(), **training), data())


def test_a_kink_is_no_mistake() -> None:
    """Where all is 0, a relu's gradient and differences are not equal; a little beside it they are."""

    class Kink:
        def initial(self, rng: np.random.Generator) -> dict[str, Numbers]:
            return {"w": np.zeros(4)}

        def loss(self, parameters: dict[str, Numbers], x: Numbers, y: Labels) -> Numbers:
            return np.maximum(x @ parameters["w"], 0)

        def gradient(self, parameters: dict[str, Numbers], x: Numbers, y: Labels) -> dict[str, Numbers]:
            return {"w": x.T @ (x @ parameters["w"] > 0)}

    objective_of(Kink()).check(Arrays(SAMPLES))


def test_a_kink_where_a_gradient_is_tried_is_no_mistake() -> None:
    """There, too, gradient and differences are not equal; so it is tried at another place."""

    class Kink:
        at = np.random.default_rng(0).normal(0, 0.01, (2, 4))[0]

        def initial(self, rng: np.random.Generator) -> dict[str, Numbers]:
            return {"w": np.zeros(4)}

        def loss(self, parameters: dict[str, Numbers], x: Numbers, y: Labels) -> Numbers:
            return np.full(len(x), np.maximum(parameters["w"] - self.at, 0).sum())

        def gradient(self, parameters: dict[str, Numbers], x: Numbers, y: Labels) -> dict[str, Numbers]:
            return {"w": len(x) * (parameters["w"] > self.at).astype(float)}

    objective_of(Kink()).check(Arrays(SAMPLES))


def test_a_gradient_in_single_precision_is_no_mistake() -> None:
    class Single(Differentiated):
        def loss(self, parameters: dict[str, Numbers], x: Numbers, y: Labels) -> Numbers:
            return super().loss({name: each.astype("f") for name, each in parameters.items()}, x.astype("f"), y)

    objective_of(Single()).check(Arrays(SAMPLES))


class _Bare:
    initial: Any
    loss: Any


def _with(base: type = Differentiated, **methods: Any) -> Any:
    """An object with some other methods."""
    return type("Model", (base,), methods)()


def _scaled(factor: float) -> Any:
    def method(self: Any, parameters: Any, x: Any, y: Any) -> dict[str, Numbers]:
        return {name: factor * each for name, each in Differentiated.gradient(self, parameters, x, y).items()}

    return method


def _unseeded() -> Any:
    rng = np.random.default_rng()
    return lambda self, parameters, x, y: Differentiated.loss(self, parameters, x, y) * rng.random()


def _raising(*_: Any) -> None:
    raise KeyError("missing")


MISTAKES: dict[str, tuple[Any, str]] = {
    "no loss": (_with(_Bare, initial=lambda self, rng: {}, loss=None), "Model, which has no method loss(parameters, x, y)"),
    "no initial": (object(), "the entry point gave object, which has no method initial(rng)"),
    "nothing": (_with(initial=lambda self, rng: {}), "initial(rng) gave no parameters"),
    "no dict": (_with(initial=lambda self, rng: np.zeros(3)), "initial(rng) gave ndarray, not a dict of arrays by name"),
    "a list": (_with(initial=lambda self, rng: {"w": [1.0]}), "initial(rng), for w, gave list, not an array of NumPy's"),
    "integers": (_with(initial=lambda self, rng: {"w": np.arange(3)}), "initial(rng), for w, gave an array of type int64"),
    "NaN": (_with(initial=lambda self, rng: {"w": np.array([np.nan])}), "initial(rng) gave values for w that are not finite"),
    "a number as a name": (_with(initial=lambda self, rng: {3: np.zeros(3)}), "initial(rng) gave a parameter with the name 3"),
    "a loss that raises": (_with(loss=_raising), "KeyError: 'missing' (at "),
    "a loss of another shape": (_with(loss=lambda self, p, x, y: np.zeros((len(x), 2))), "gave the shape (4, 2) for 4 samples"),
    "a loss of integers": (
        _with(loss=lambda self, p, x, y: np.zeros(len(x), int)),
        "(parameters, x, y) gave an array of type int64",
    ),
    "a loss that is text": (_with(loss=lambda self, p, x, y: "low"), "loss(parameters, x, y) gave str, not an array"),
    "a loss that is NaN": (_with(loss=lambda self, p, x, y: np.nan * x[:, 0]), "the loss of the first samples is nan"),
    "a loss that is not a function": (_with(loss=_unseeded()), "gave two results for the same arguments"),
    "a loss in single precision": (
        _with(Numerical, loss=lambda self, p, x, y: np.ones(len(x), "f")),
        "gave float32 for arguments of type float64; without gradient(parameters, x, y)",
    ),
    "half the gradient": (_with(gradient=_scaled(0.5)), "but sum(loss(parameters, x, y)) has the derivative"),
    "the gradient of the mean": (_with(gradient=_scaled(1 / 4)), "gradient(parameters, x, y) gave "),
    "another sign": (_with(gradient=_scaled(-1)), "by differences, for the first 4 samples"),
    "a gradient that is NaN": (_with(gradient=_scaled(np.nan)), "gave values for weights that are not finite"),
    "a gradient for less": (_with(gradient=lambda self, p, x, y: {"weights": p["weights"]}), "gave nothing for biases"),
    "a gradient for more": (
        _with(gradient=lambda self, p, x, y: {**p, "w": 0.0}),
        "gave an array for 'w', which is not a parameter",
    ),
    "a gradient of another shape": (
        _with(gradient=lambda self, p, x, y: {"weights": p["weights"].T, "biases": p["biases"]}),
        "gave the shape (3, 4) for weights, which has the shape (4, 3)",
    ),
    "no gradient at all": (_with(gradient=lambda self, p, x, y: None), "gave NoneType, not a dict of arrays by name"),
    "predictions of another length": (
        _with(predict=lambda self, p, x: p["biases"], _probabilities=lambda self, p, x: np.ones((len(x), 3)), gradient=None),
        "gave the shape (3,) for 4 samples",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake: str) -> None:
    made, words = MISTAKES[mistake]
    with pytest.raises(MistakeError, match=rf"^model\.python: .*{re.escape(words)}"):
        objective_of(made).check(Arrays(SAMPLES))


def test_without_predict_there_are_no_predictions() -> None:
    objective = objective_of(_with(Numerical, predict=None, _probabilities=lambda self, p, x: np.ones((len(x), 3)) / 3))
    objective.check(Arrays(SAMPLES))
    with pytest.raises(MistakeError, match=r"^model\.python: the object has no method predict\(parameters, x\)"):
        objective.predict(np.zeros(objective.size, np.float32), SAMPLES)


@pytest.mark.parametrize("kind", ["python", "jax"])
def test_metrics_are_refused(kind: str) -> None:
    spec = spec_of(kind)
    spec.model.metrics.append("mean_absolute_error")
    if kind == "jax":
        pytest.importorskip("jax")
    with pytest.raises(MistakeError, match=rf"^model\.metrics: mean_absolute_error is not possible with model\.{kind}"):
        registry.objective(spec, Arrays(SAMPLES).schema)
