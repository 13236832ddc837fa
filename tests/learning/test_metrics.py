"""Metrics: their values, what they refuse, and that sums of parts add up to the whole."""

from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from tests.learning.batches import batch, schema
from thalweg.contract import rules
from thalweg.contract.sums import ACCURACY, Sums
from thalweg.learning.data import Arrays
from thalweg.learning.metrics import METRICS
from thalweg.learning.sequential.model import ModelError, Sequential
from thalweg.server import validation
from thalweg.v1 import job_pb2


def objective(width: int, units: int, loss: str, *metrics: str) -> Sequential:
    """A dense layer, for samples of a width."""
    model = {"layers": [{"dense": {"units": units}}], "loss": loss, "metrics": list(metrics)}
    document = {"model": model, "data": {"builtin": "xor"}, "optimizer": {"sgd": {}}}
    return Sequential(validation.complete(json_format.ParseDict(document, job_pb2.JobSpec())), schema((width,)))


def test_the_registry_is_the_contracts() -> None:
    assert list(METRICS) == list(rules.rules_of(job_pb2.Model.DESCRIPTOR.fields_by_name["metrics"]).one_of)
    assert ACCURACY not in METRICS


def test_the_mean_absolute_error() -> None:
    outputs, targets = np.array([[1.0, 2.0], [0.0, -4.0]], np.float32), np.array([[1.0, 0.0], [1.0, 1.0]], np.float32)
    assert METRICS["mean_absolute_error"].sum(outputs, targets) == 1.0 + 3.0
    assert METRICS["mean_absolute_error"].sum(outputs[:, :1], targets[:, 0]) == 1.0


def test_a_label_among_the_largest_outputs_counts() -> None:
    outputs = np.array([[6, 5, 4, 3, 2, 1, 0], [6, 5, 4, 3, 2, 1, 0], [0, 0, 0, 0, 0, 0, 0]], np.float32)
    metric = METRICS["top_5_accuracy"]
    assert [metric.sum(outputs[:1], np.array([label])) for label in range(7)] == [1, 1, 1, 1, 1, 0, 0]
    assert [metric.sum(outputs[2:], np.array([label])) for label in range(7)] == [1, 1, 1, 1, 1, 0, 0]
    assert metric.sum(outputs, np.array([4, 5, 6])) == 1


@pytest.mark.parametrize(
    ("units", "loss", "metrics"),
    [
        (3, "mean_squared_error", ("mean_absolute_error",)),
        (9, "softmax_cross_entropy", (ACCURACY, "top_5_accuracy")),
        (9, "softmax_cross_entropy", (ACCURACY,)),
        (3, "mean_squared_error", ()),
    ],
)
def test_sums_of_parts_are_those_of_the_whole(units: int, loss: str, metrics: tuple[str, ...]) -> None:
    model = objective(4, units, loss, *(name for name in metrics if name != ACCURACY))
    assert model.metrics == metrics
    generator = np.random.default_rng(0)
    x = generator.normal(size=(12, 4)).astype(np.float32)
    y: Any = generator.integers(0, units, 12) if "softmax" in loss else generator.normal(size=(12, units)).astype(np.float32)
    at = np.empty(model.size, np.float32)
    model.initialize(at)
    whole = model.measure(at, batch(x, y))
    parts = [model.measure(at, batch(x[part], y[part])) for part in (slice(0, 5), slice(5, 5), slice(5, 12))]
    added = parts[0] + parts[1] + parts[2]
    assert len(whole.metrics) == len(metrics)
    assert added.samples == whole.samples == 12
    np.testing.assert_allclose(added.metrics, whole.metrics, rtol=1e-6)
    assert Sums() + whole == whole + Sums() == whole


def test_what_a_metric_cannot_measure_is_refused() -> None:
    model = objective(4, 3, "mean_squared_error", "top_5_accuracy")
    with pytest.raises(ModelError, match=r"^model\.metrics: top_5_accuracy needs labels for targets"):
        model.check(Arrays(batch(np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float32))))
    model = objective(4, 3, "softmax_cross_entropy", "mean_absolute_error")
    with pytest.raises(ModelError, match=r"^model\.metrics: mean_absolute_error needs a target for each of the 3 outputs"):
        model.check(Arrays(batch(np.zeros((2, 4), np.float32), np.zeros(2, np.int64))))
