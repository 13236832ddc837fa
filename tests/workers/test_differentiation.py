"""What a worker does between and within steps: prefetching, and no allocation."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from tests.learning.batches import dataset
from tests.learning.kinds.cases import require, samples, settled, spec_of
from thalweg.contract import tree
from thalweg.contract.tree import Node
from thalweg.learning.data.microbatches import Microbatches
from thalweg.server import validation
from thalweg.v1 import job_pb2
from thalweg.workers.differentiator import Differentiator

LOSSES: dict[str, list[dict[str, Any]]] = {
    "softmax_cross_entropy": [],
    "mean_squared_error": [],
    "binary_cross_entropy": [{"sigmoid": {}}],
}


def make(loss: str = "softmax_cross_entropy", batch_size: int = 50, microbatches: int = 5) -> Differentiator:
    """Of a model of dense layers, for four minibatches of samples."""
    layers = [{"dense": {"units": 8}}, {"relu": {}}, {"dense": {"units": 8}}, {"tanh": {}}, {"dense": {"units": 3}}]
    document = {
        "model": {"layers": layers + LOSSES[loss], "loss": loss},
        "data": {"builtin": "digits"},
        "training": {"epochs": 1, "batch_size": batch_size, "microbatches": microbatches},
        "optimizer": {"sgd": {}},
    }
    spec = validation.complete(json_format.ParseDict(document, job_pb2.JobSpec()))
    generator = np.random.default_rng(0)
    samples = 4 * batch_size
    x = generator.normal(size=(samples, 8)).astype(np.float32)
    y = generator.integers(0, 3, samples) if loss == "softmax_cross_entropy" else generator.random((samples, 3), np.float32)
    return Differentiator(spec, dataset(x, y))


def initial(differentiator: Differentiator) -> np.ndarray[Any, np.dtype[np.floating]]:
    parameters = np.empty(differentiator.objective.size, differentiator.objective.dtype)
    differentiator.objective.initialize(parameters)
    return parameters


@pytest.mark.parametrize("loss", LOSSES)
def test_a_later_step_of_a_dense_model_allocates_no_array(loss: str) -> None:
    differentiator = make(loss, 200_000, 2)
    parameters = initial(differentiator)

    def step(number: int) -> None:
        gradient, _ = differentiator.gradient(parameters, number, number, tree.root(2), slice(0, parameters.size))
        differentiator.release(gradient)
        differentiator.prefetch()

    for number in range(3):
        step(number)
    tracemalloc.start()
    try:
        # The first two of the four steps of an epoch, whose order has been drawn.
        step(4)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        step(5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # An array with one byte for each of a microbatch's samples has 100,000; what NumPy needs to convert numbers, up to 68,000.
    assert peak - before < 80_000


def test_prefetching_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the guess is right or wrong."""
    tasks = [(step, node) for step in range(6) for node in (Node(1, 0), Node(0, 2))]
    tasks[7:9] = [(2, tree.root(5)), (0, Node(0, 4))]
    ahead, plain = make(), make()
    parameters = initial(plain)
    gathered: list[tuple[int, range]] = []
    gather = Microbatches.gather

    def watch(gathering: Microbatches, step: int, span: range) -> None:
        gathered.append((step, span))
        gather(gathering, step, span)

    for number, (step, node) in enumerate(tasks):
        expected, sums = plain.gradient(parameters, step, step, node, slice(0, parameters.size))
        with monkeypatch.context() as patch:
            patch.setattr(Microbatches, "gather", watch)
            found, same = ahead.gradient(parameters, step, step, node, slice(0, parameters.size))
            # From the second step on, what comes next is known.
            assert bool(gathered) == (number not in (3, 4, 5, 6, 10)), (number, gathered)
            ahead.prefetch()
            gathered.clear()
        assert found.tobytes() == expected.tobytes()
        assert sums == same
        plain.release(expected)
        ahead.release(found)


def test_tasks_compile_nothing_after_the_worker_has() -> None:
    """Compiled are all sizes that microbatches have; the last one of an epoch is smaller."""
    require("torch, compiled")
    from torch._dynamo.utils import counters

    training = {"batch_size": 7, "microbatches": 2}
    spec = spec_of("torch, compiled", training=training)
    x, y = samples(18).values()
    with settled(spec):
        differentiator = Differentiator(spec, dataset(x, y))
        before = counters["stats"]["unique_graphs"]
        differentiator.compile()
        compiled = counters["stats"]["unique_graphs"]
        assert compiled - before <= 3
        parameters = initial(differentiator)
        for step in range(3):
            differentiator.gradient(parameters, step, step, tree.root(2), slice(0, parameters.size))
        assert counters["stats"]["unique_graphs"] == compiled > 0
