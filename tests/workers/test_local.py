"""Lanes: local steps of one microbatch of each step, held against plain loops."""

import math
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from tests.end_to_end.reference import reference
from thalweg.contract import tree
from thalweg.contract.layout import Slab
from thalweg.contract.sums import Sums
from thalweg.contract.tree import Node
from thalweg.learning import data, optimizers
from thalweg.learning.data.order import Order
from thalweg.learning.sequential.model import Sequential
from thalweg.server import validation
from thalweg.v1 import job_pb2
from thalweg.workers.differentiator import Differentiator

LAYERS = [{"dense": {"units": 6}}, {"tanh": {}}, {"dropout": {"p": 0.3}}, {"dense": {"units": 10}}]
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"sgd": {"learning_rate": 0.1}},
    "adam": {"adam": {"learning_rate": 0.01}},
    "clipped momentum": {"momentum": {"learning_rate": 0.1, "momentum": 0.8}, "clip_global_norm": 0.3},
    "scheduled": {"sgd": {"learning_rate": 0.2}, "schedule": {"step": {"step_size": 1, "gamma": 0.5}}},
}


def make(optimizer: dict[str, Any], dtype: str = "float64", builtin: str = "digits", **training: Any) -> job_pb2.JobSpec:
    """A complete specification."""
    synchrony = {"local": {"steps": training.pop("steps", 5), "outer": training.pop("outer", {"sgd": {"learning_rate": 1}})}}
    document = {
        "model": {"layers": LAYERS, "loss": "softmax_cross_entropy", "dtype": dtype},
        "data": {"builtin": builtin},
        "training": {"epochs": 3, "batch_size": 300, "microbatches": 3, **training, "synchrony": synchrony},
        "optimizer": optimizer,
    }
    return validation.complete(json_format.ParseDict(document, job_pb2.JobSpec()))


def prepare(spec: job_pb2.JobSpec) -> tuple[Differentiator, Slab]:
    differentiator = Differentiator(spec, data.load(spec, lambda _: pytest.fail("nothing is fetched")))
    parameters = np.empty(differentiator.objective.size, differentiator.objective.dtype)
    differentiator.objective.initialize(parameters)
    return differentiator, parameters


def contribution(differentiator: Differentiator, parameters: Slab, node: Node, step: int, steps: int) -> tuple[Slab, Sums]:
    whole = slice(0, parameters.size)
    slab, sums = differentiator.gradient(parameters, 0, step, node, whole, steps)
    copied = slab.copy()
    differentiator.release(slab)
    return copied, sums


def rule(name: str, w: Slab, g: Slab, memory: dict[str, Slab], t: int, step: int) -> Slab:
    """The parameters after a step of an optimizer, from its textbook. `t` counts from 1, `step` from the job's beginning."""
    match name:
        case "sgd":
            return w - 0.1 * g
        case "scheduled":
            # Six steps make an epoch.
            return w - 0.2 * math.pow(0.5, step // 6) * g
        case "adam":
            memory["m"] = 0.9 * memory.get("m", np.zeros_like(w)) + 0.1 * g
            memory["v"] = 0.999 * memory.get("v", np.zeros_like(w)) + 0.001 * g * g
            deviation: Slab = np.sqrt(memory["v"] / (1 - math.pow(0.999, t)))
            return w - 0.01 * memory["m"] / (1 - math.pow(0.9, t)) / (deviation + 1e-8)
        case _:
            g = g * min(1.0, 0.3 / (float(np.linalg.norm(g)) + 1e-6))
            memory["v"] = g if t == 1 else 0.8 * memory["v"] + g
            return w - 0.1 * memory["v"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_lane_is_a_plain_loop(name: str) -> None:
    spec = make(OPTIMIZERS[name])
    differentiator, start = prepare(spec)
    train = differentiator.dataset.train
    model = Sequential(spec, train.schema)
    order = Order(spec, len(train))
    assert order.steps_per_epoch == 6
    w, loss, correct, samples = start, 0.0, 0.0, 0
    memory: dict[str, Slab] = {}
    for t, step in enumerate(range(4, 9), 1):
        indices, _ = order.microbatch(step, 1)
        gradient = np.empty_like(start)
        sums = model.gradient(w, train.take(indices), len(indices), (step, 1), gradient)
        loss, correct, samples = loss + sums.loss, correct + sums.metrics[0], samples + sums.samples
        w = rule(name, w, gradient, memory, t, step)
    moved, found = contribution(differentiator, start, Node(0, 1), 4, 5)
    np.testing.assert_allclose(moved, (start - w) / 3, rtol=1e-9, atol=1e-12)
    assert np.abs(moved).max() > 1e-4
    assert found.loss == pytest.approx(loss, rel=1e-12)
    assert (found.metrics, found.samples) == ((correct,), samples)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_lane_is_a_pure_function(name: str) -> None:
    """What was computed before, at which parameters and by whom, changes nothing."""
    spec = make(OPTIMIZERS[name], "float32")
    differentiator, start = prepare(spec)
    kept = start.copy()
    other = start * 2
    first, sums = contribution(differentiator, start, Node(0, 2), 5, 4)
    contribution(differentiator, other, tree.root(3), 0, 5)
    differentiator.evaluate(other, differentiator.dataset.train, range(len(differentiator.dataset.train)))
    again, same = contribution(differentiator, start, Node(0, 2), 5, 4)
    elsewhere, alike = contribution(prepare(spec)[0], start.copy(), Node(0, 2), 5, 4)
    assert first.tobytes() == again.tobytes() == elsewhere.tobytes()
    assert sums == same == alike
    assert start.tobytes() == kept.tobytes()
    assert first.dtype == np.float32


def test_lanes_are_added_along_the_tree() -> None:
    differentiator, start = prepare(make(OPTIMIZERS["adam"], "float32"))
    parts = [contribution(differentiator, start, Node(0, lane), 0, 5) for lane in range(3)]
    whole, sums = contribution(differentiator, start, tree.root(3), 0, 5)
    assert whole.tobytes() == ((parts[0][0] + parts[1][0]) + parts[2][0]).tobytes()
    assert sums == parts[0][1] + parts[1][1] + parts[2][1]
    assert sums.samples == 5 * 300


def test_a_lane_without_samples_stands_still() -> None:
    """Of the four samples, steps take three and one, and so the microbatches hold 0, 1, 1, 1 and 0, 0, 0, 1."""
    layers = [{"dense": {"units": 1}}, {"sigmoid": {}}]
    document = {
        "model": {"layers": layers, "loss": "binary_cross_entropy"},
        "data": {"builtin": "xor"},
        "training": {"epochs": 1, "batch_size": 3, "microbatches": 4, "synchrony": {"local": {"steps": 2}}},
        "optimizer": {"sgd": {"learning_rate": 1.0}},
    }
    differentiator, start = prepare(validation.complete(json_format.ParseDict(document, job_pb2.JobSpec())))
    lanes = [contribution(differentiator, start, Node(0, lane), 0, 2) for lane in range(4)]
    assert [sums.samples for _, sums in lanes] == [0, 1, 1, 2]
    assert not lanes[0][0].any()
    assert lanes[0][1] == Sums()
    assert all(moved.any() for moved, _ in lanes[1:])
    one_step, _ = contribution(differentiator, start, Node(0, 1), 0, 1)
    assert one_step.tobytes() == lanes[1][0].tobytes()


@pytest.mark.parametrize(
    "optimizer",
    [{"adam": {}}, {"adamw": {}}, {"adagrad": {"learning_rate_decay": 0.5}}, {"momentum": {"dampening": 0.5}}],
    ids=lambda optimizer: next(iter(optimizer)),
)
def test_a_step_without_samples_is_not_counted(optimizer: dict[str, Any]) -> None:
    """Of the four samples, steps take three and one: lane 1 has none at the first step of a round, and one at the second."""
    layers = [{"dense": {"units": 1}}, {"sigmoid": {}}]
    document = {
        "model": {"layers": layers, "loss": "binary_cross_entropy", "dtype": "float64"},
        "data": {"builtin": "xor"},
        "training": {"epochs": 2, "batch_size": 3, "microbatches": 4, "synchrony": {"local": {"steps": 2}}},
        "optimizer": optimizer,
    }
    spec = validation.complete(json_format.ParseDict(document, job_pb2.JobSpec()))
    differentiator, start = prepare(spec)
    from_the_empty_step, sums = contribution(differentiator, start, Node(0, 1), 1, 2)
    from_the_next, same = contribution(differentiator, start, Node(0, 1), 2, 1)
    assert sums.samples == same.samples == 1
    assert from_the_empty_step.tobytes() == from_the_next.tobytes()
    rate = optimizers.make(spec.optimizer).learning_rate
    if "adam" in optimizer:
        # Adam's first step: the learning rate times the sign of the gradient (Kingma and Ba 2015, section 2.1).
        np.testing.assert_allclose(np.abs(from_the_next[from_the_next != 0]), rate / 4, rtol=1e-6)


def test_a_lane_that_diverges_is_not_finite() -> None:
    differentiator, start = prepare(make({"sgd": {"learning_rate": 1e300}, "clip_global_norm": 1.0}, "float32"))
    moved, _ = contribution(differentiator, start, Node(0, 0), 0, 5)
    assert not np.isfinite(moved).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["sgd", "momentum"])
def test_rounds_of_lanes_are_the_plain_loop(kind: str, dtype: str) -> None:
    """Three epochs of six steps in rounds of five: rounds end within epochs, and the last one is shorter."""
    check_rounds(make(OPTIMIZERS["adam"], dtype, outer={kind: {"learning_rate": 0.7}}), steps=18)


def test_rounds_of_lanes_with_steps_without_samples_are_the_plain_loop() -> None:
    """Three epochs of two steps, of three samples and one, in rounds of three: two lanes have none at a round's first step."""
    check_rounds(make(OPTIMIZERS["adam"], builtin="xor", batch_size=3, microbatches=3, steps=3), steps=6)


def check_rounds(spec: job_pb2.JobSpec, steps: int) -> None:
    expected, losses = reference(spec)
    differentiator, parameters = prepare(spec)
    local, lanes = spec.training.synchrony.local, spec.training.microbatches
    optimizer = optimizers.make(local.outer)
    state = optimizer.init(parameters.size, parameters.dtype)
    found = []
    for number, first in enumerate(range(0, steps, local.steps)):
        moved, sums = contribution(differentiator, parameters, tree.root(lanes), first, min(local.steps, steps - first))
        optimizers.apply(optimizer, parameters, moved, state, parameters, optimizer.learning_rate, number)
        found.append(sums.loss / sums.samples)
    assert parameters.tobytes() == expected.tobytes()
    assert found == losses


def test_a_round_of_one_step_is_a_step() -> None:
    """Of plain gradient descent, up to rounding, where microbatches are equally large."""
    spec = make(OPTIMIZERS["sgd"], steps=1)
    local, losses = reference(spec)
    spec.training.synchrony.bulk.SetInParent()
    bulk, same = reference(spec)
    np.testing.assert_allclose(local, bulk, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(losses, same, rtol=1e-9)


def test_the_mean_of_lanes_is_plain_averaging() -> None:
    """With sgd at a learning rate of 1 outside, the parameters become the mean of where the lanes end."""
    spec = make(OPTIMIZERS["sgd"], epochs=1, steps=6)
    differentiator, start = prepare(spec)
    ends = [start - 3 * contribution(differentiator, start, Node(0, lane), 0, 6)[0] for lane in range(3)]
    np.testing.assert_allclose(reference(spec)[0], np.mean(ends, axis=0), rtol=1e-9, atol=1e-12)
