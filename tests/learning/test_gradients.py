"""Backpropagation of every layer and loss, held against numerical differentiation in double precision."""

from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.learning.batches import dataset as dataset_of
from tests.learning.batches import schema
from thalweg.contract import rules
from thalweg.learning.data import Dataset
from thalweg.learning.gradcheck import TOLERANCE, gradcheck
from thalweg.learning.sequential import initializers as initializers_module
from thalweg.learning.sequential.initializers import INITIALIZERS
from thalweg.learning.sequential.layers import LAYERS
from thalweg.learning.sequential.losses import LOSSES
from thalweg.learning.sequential.model import Sequential
from thalweg.server import validation
from thalweg.v1 import job_pb2

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "dense": [{"units": 3}, {"units": 3, "bias": False}],
    "gelu": [{}, {"approximate": "tanh"}],
    "dropout": [{"p": 0.3}],
    "sequence": [
        {"layers": [{"tanh": {}}, {"dense": {"units": 3}}, {"gelu": {}}]},
        {"layers": [{"dense": {"units": 3}}, {"sequence": {"layers": [{"dropout": {}}, {"sigmoid": {}}]}}]},
        {"layers": [{"softmax": {}}, {"tanh": {}}]},
    ],
}
EACH_LAYER = [(kind, options) for kind in LAYERS for options in OPTIONS.get(kind, [{}])]


def job(layers: list[dict[str, Any]], loss: str, **data: Any) -> job_pb2.JobSpec:
    """A complete specification with some layers and a loss."""
    spec = job_pb2.JobSpec(data=job_pb2.Data(builtin="xor", **data), optimizer=job_pb2.Optimizer(sgd=job_pb2.Sgd()))
    spec.model.loss = loss
    for layer in layers:
        json_format.ParseDict(layer, spec.model.layers.add())
    return validation.complete(spec)


def samples(x_shape: tuple[int, ...], y: NDArray[Any]) -> Dataset:
    x = np.random.default_rng(5).normal(size=(len(y), *x_shape))
    return dataset_of(x, y)


def targets(loss: str, n: int, width: int, seed: int = 6) -> NDArray[Any]:
    generator = np.random.default_rng(seed)
    if loss == "softmax_cross_entropy":
        return generator.integers(0, width, n)
    if loss == "binary_cross_entropy":
        return generator.integers(0, 2, (n, width)).astype(np.float64)
    return generator.normal(size=(n, width))


def check(layers: list[dict[str, Any]], loss: str, dataset: Dataset, tensors: int) -> None:
    rows = gradcheck(job(layers, loss), dataset)
    assert len(rows) == tensors
    assert TOLERANCE == 1e-6
    for row in rows:
        assert row.passed, row
        assert row.absolute_error > 0 or row.relative_error == 0


@pytest.mark.parametrize(("kind", "options"), EACH_LAYER)
@pytest.mark.parametrize("x_shape", [(4,), (2, 4)])
def test_every_layer(kind: str, options: dict[str, Any], x_shape: tuple[int, ...]) -> None:
    """Between two dense layers, so that its derivative by its input matters."""
    layers: list[dict[str, Any]] = [{"dense": {"units": 4}}, {kind: options}, {"flatten": {}}, {"dense": {"units": 2}}]
    tensors = 4 + 2 * str((kind, options)).count("dense") - (1 if options.get("bias") is False else 0)
    check(layers, "mean_squared_error", samples(x_shape, targets("mean_squared_error", 6, 2)), tensors)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("width", [1, 3])
def test_every_loss(loss: str, width: int) -> None:
    last: list[dict[str, Any]] = [{"sigmoid": {}}] if loss == "binary_cross_entropy" else []
    layers: list[dict[str, Any]] = [{"dense": {"units": 5}}, {"tanh": {}}, {"dense": {"units": width}}, *last]
    check(layers, loss, samples((4,), targets(loss, 6, width)), 4)


def test_probabilities_as_targets() -> None:
    y = np.random.default_rng(0).dirichlet(np.ones(3), 6)
    check([{"dense": {"units": 3}}], "softmax_cross_entropy", samples((4,), y), 2)


@settings(max_examples=15)
@given(
    st.lists(st.sampled_from(["dense", "relu", "sigmoid", "tanh", "softmax", "gelu", "dropout"]), min_size=1, max_size=5),
    st.integers(1, 8),
)
def test_any_stack(kinds: list[str], n: int) -> None:
    layers = [{"dense": {"units": 4, "initializer": "xavier_normal"}}]
    layers += [{kind: {"units": 4} if kind == "dense" else {}} for kind in kinds]
    layers.append({"dense": {"units": 3}})
    dataset = samples((4,), targets("softmax_cross_entropy", n, 3))
    check(layers, "softmax_cross_entropy", dataset, 4 + 2 * kinds.count("dense"))


def test_a_mistake_in_backpropagation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LAYERS["tanh"]
    right = layer.backward
    monkeypatch.setattr(layer, "backward", lambda *a: right(*a) * 1.00001)
    dataset = samples((4,), targets("mean_squared_error", 6, 2))
    rows = gradcheck(job([{"dense": {"units": 4}}, {"tanh": {}}, {"dense": {"units": 2}}], "mean_squared_error"), dataset)
    assert [row.passed for row in rows] == [True, True, False, False]


def test_registries_are_the_contracts() -> None:
    assert list(LAYERS) == rules.alternatives(job_pb2.Layer, "kind")
    assert [*LOSSES, "model"] == list(rules.rules_of(job_pb2.Model.DESCRIPTOR.fields_by_name["loss"]).one_of)
    initializers = rules.rules_of(job_pb2.Dense.DESCRIPTOR.fields_by_name["initializer"]).one_of
    assert list(INITIALIZERS) == list(initializers)


@pytest.mark.parametrize(
    ("name", "variance"),
    [("he_normal", 2 / 300), ("he_uniform", 2 / 300), ("xavier_normal", 2 / 500), ("xavier_uniform", 2 / 500)],
)
def test_initializers_have_their_variance(name: str, variance: float) -> None:
    spec = job([{"dense": {"units": 200, "initializer": name}}], "mean_squared_error")
    slabs = []
    for seed in (0, 0, 1):
        spec.seed = seed
        model = Sequential(spec, schema((300,)))
        slabs.append(np.empty(model.size, np.float32))
        model.initialize(slabs[-1])
    assert slabs[0][:-200].var() == pytest.approx(variance, rel=0.05)
    assert not slabs[0][-200:].any()
    assert slabs[0].tobytes() == slabs[1].tobytes() != slabs[2].tobytes()


def test_blocks_of_a_weight_are_drawn_as_the_whole_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, initialize in INITIALIZERS.items():
        monkeypatch.setattr(initializers_module, "_BLOCK", 1 << 30)
        whole, blocks = np.empty((7, 5), np.float32), np.empty((7, 5), np.float32)
        initialize(np.random.Generator(np.random.Philox(3)), whole)
        monkeypatch.setattr(initializers_module, "_BLOCK", 3)
        initialize(np.random.Generator(np.random.Philox(3)), blocks)
        assert blocks.tobytes() == whole.tobytes(), name
