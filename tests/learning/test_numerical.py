"""Numerical differentiation."""

from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from thalweg.contract.layout import Slab
from thalweg.learning import data
from thalweg.learning.batch import Batch
from thalweg.learning.data.samples import ALL
from thalweg.learning.numerical import NumericalDifferentiator
from thalweg.learning.sequential.model import Sequential
from thalweg.server import validation
from thalweg.v1 import job_pb2
from thalweg.workers.differentiator import Differentiator

SPEC: dict[str, Any] = {
    "model": {
        "layers": [{"dense": {"units": 6}}, {"tanh": {}}, {"dropout": {"p": 0.3}}, {"dense": {"units": 1}}, {"sigmoid": {}}],
        "loss": "binary_cross_entropy",
    },
    "data": {"builtin": "xor"},
    "optimizer": {"sgd": {}},
}


def prepare(dtype: str) -> tuple[Sequential, Slab, Batch, Sequential]:
    job = json_format.ParseDict(SPEC, job_pb2.JobSpec())
    job.model.dtype, job.seed = dtype, 1
    job = validation.complete(job)
    dataset = data.load(job, lambda _: pytest.fail("nothing is fetched"))
    model, double = Sequential(job, dataset.schema), Sequential(job, dataset.schema, "float64")
    parameters = np.empty(model.size, dtype)
    model.initialize(parameters)
    return model, parameters, dataset.train.take(ALL), double


@pytest.mark.parametrize(("scheme", "tolerance"), [("numerical", 1e-8), ("numerical_forward", 1e-6)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_agrees_with_backpropagation(scheme: str, tolerance: float, dtype: str) -> None:
    model, parameters, batch, double = prepare(dtype)
    expected, found = np.empty_like(parameters), np.empty_like(parameters)
    sums = model.gradient(parameters, batch, 4, (3, 1), expected)
    numerical = NumericalDifferentiator(double, scheme)
    point = numerical.at(parameters, batch, (3, 1))
    numerical.differentiate(point, 4, slice(0, model.size), found)
    np.testing.assert_allclose(found, expected, atol=tolerance if dtype == "float64" else 1e-6)
    assert point.sums.loss == pytest.approx(sums.loss, rel=1e-6)
    assert point.sums.samples == sums.samples == 4


def test_a_coordinate_does_not_depend_on_the_range_it_is_computed_in() -> None:
    model, parameters, batch, double = prepare("float32")
    numerical = NumericalDifferentiator(double, "numerical")

    def differentiate(where: slice) -> Slab:
        out = np.empty(where.stop - where.start, np.float32)
        numerical.differentiate(numerical.at(parameters, batch, (0, 0)), 4, where, out)
        return out

    whole = differentiate(slice(0, model.size))
    for cut in (1, 7, 13):
        parts = np.concatenate([differentiate(slice(0, cut)), differentiate(slice(cut, model.size))])
        assert parts.tobytes() == whole.tobytes()


def test_the_parameters_are_left_alone() -> None:
    _, parameters, batch, double = prepare("float64")
    before = parameters.tobytes()
    numerical = NumericalDifferentiator(double, "numerical")
    numerical.differentiate(numerical.at(parameters, batch, None), 4, slice(0, 5), np.empty(5))
    assert parameters.tobytes() == before


def test_training_follows_the_same_loss_curve_for_200_steps() -> None:
    """In double precision, from the same seed, numerical and backpropagated training agree to 1e-5."""
    from thalweg.contract.tree import root
    from thalweg.learning import optimizers

    curves = []
    for gradient in ("backpropagation", "numerical"):
        job = json_format.ParseDict(SPEC, job_pb2.JobSpec())
        job.model.dtype, job.training.gradient, job.training.microbatches = "float64", gradient, 3
        job.optimizer.momentum.learning_rate = 0.5
        job = validation.complete(job)
        differentiator = Differentiator(job, data.load(job, lambda _: pytest.fail("nothing is fetched")))
        parameters = np.empty(differentiator.objective.size)
        differentiator.objective.initialize(parameters)
        optimizer = optimizers.make(job.optimizer)
        state = optimizer.init(parameters.size, parameters.dtype)
        losses = []
        for step in range(200):
            slab, sums = differentiator.gradient(parameters, step, step, root(3), slice(0, parameters.size))
            losses.append(sums.loss / sums.samples)
            optimizers.apply(optimizer, parameters, slab, state, parameters, 0.5, step)
            differentiator.release(slab)
        curves.append(losses)
    assert curves[0][-1] < 0.5 * curves[0][0]
    np.testing.assert_allclose(curves[1], curves[0], atol=1e-5, rtol=0)
    assert curves[0] != curves[1]


def test_integers_are_those_of_the_jobs_dtype_also_in_double_precision() -> None:
    """2²⁴ + 1 is no float32: the model that differences are taken of gets what the trained one gets."""
    model, parameters, batch, double = prepare("float32")
    integers = {**batch, "x": np.array([[1, 2**24 + 1]] * 4)}
    for objective in (model, double):
        traced = objective.trace(parameters.astype(objective.dtype), integers, None)[0][0]
        assert traced.dtype == objective.dtype
        assert traced.tolist() == [[1, 2**24]] * 4
