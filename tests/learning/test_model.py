"""Models: held against PyTorch 2.13, and their errors."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from numpy.typing import NDArray

from tests.learning.batches import batch, schema
from thalweg.contract import layout as layouts
from thalweg.learning.data import Arrays
from thalweg.learning.errors import NodeError
from thalweg.learning.sequential.model import ModelError, Sequential
from thalweg.server import validation
from thalweg.v1 import job_pb2

REFERENCE = np.load(Path(__file__).parents[1] / "data" / "torch_models.npz")
SPECS: dict[str, dict[str, Any]] = json.loads(str(REFERENCE["specs"]))


def complete(model: dict[str, Any], seed: int = 0) -> job_pb2.JobSpec:
    """The specification of a job with a model, with its defaults filled in."""
    job = {"model": model, "seed": seed, "data": {"builtin": "xor"}, "optimizer": {"sgd": {}}}
    return validation.complete(json_format.ParseDict(job, job_pb2.JobSpec()))


@pytest.mark.parametrize("name", SPECS)
def test_follows_pytorch(name: str) -> None:
    x, y = REFERENCE[f"{name}/x"], REFERENCE[f"{name}/y"]
    model = Sequential(complete(SPECS[name] | {"dtype": "float64"}), schema(x.shape[1:]))
    model.check(Arrays(batch(x, y)))
    slab, gradient = np.empty(model.size), np.empty(model.size)
    names = {key.rpartition(" ")[2] for key in REFERENCE.files if key.startswith(f"{name}/parameter")}
    tensors = layouts.views(layouts.layout_of(model.segments, model.dtype), slab)
    assert set(tensors) == names
    for tensor, view in tensors.items():
        view[...] = REFERENCE[f"{name}/parameter {tensor}"]
    np.testing.assert_allclose(model.predict(slab, {"x": x}).values, REFERENCE[f"{name}/output"], rtol=1e-12, atol=1e-12)
    sums = model.gradient(slab, batch(x, y), len(x), None, gradient)
    assert sums.loss / sums.samples == pytest.approx(float(REFERENCE[f"{name}/loss"]), rel=1e-12)
    for tensor, view in layouts.views(layouts.layout_of(model.segments, model.dtype), gradient).items():
        np.testing.assert_allclose(view, REFERENCE[f"{name}/gradient {tensor}"], rtol=1e-9, atol=1e-12, err_msg=tensor)


def test_the_last_layer_comes_first_in_the_slab() -> None:
    layers: list[dict[str, Any]] = [{"dense": {"units": 2}}, {"relu": {}}, {"dense": {"units": 3}}]
    model = Sequential(complete({"layers": layers, "loss": "mean_squared_error"}), schema((4,)))
    assert [segment.name for segment in model.segments] == ["2.weight", "2.bias", "0.weight", "0.bias"]
    assert [list(segment.shape) for segment in model.segments] == [[3, 2], [3], [2, 4], [2]]
    assert model.order == ("0.weight", "0.bias", "2.weight", "2.bias")


def test_names_are_known_in_the_order_of_pytorchs_sequential() -> None:
    dense = {"dense": {"units": 2}}
    layers = [*[dense] * 9, {"sequence": {"layers": [dense, {"tanh": {}}, dense]}}, dense]
    model = Sequential(complete({"layers": layers, "loss": "mean_squared_error"}), schema((4,)))
    wanted = [*(str(index) for index in range(9)), "9.0", "9.2", "10"]
    assert [name for name in model.order if name.endswith("weight")] == [f"{layer}.weight" for layer in wanted]
    assert sorted(model.order) == sorted(segment.name for segment in model.segments)


def test_bits_do_not_depend_on_what_was_computed_before() -> None:
    spec = complete(
        {
            "layers": [{"dense": {"units": 9}}, {"gelu": {}}, {"dropout": {}}, {"dense": {"units": 4}}],
            "loss": "softmax_cross_entropy",
        },
        seed=3,
    )
    generator = np.random.default_rng(0)
    x = generator.normal(size=(16, 6)).astype(np.float32)
    y = generator.integers(0, 4, 16)

    def gradient(before: list[int]) -> bytes:
        model = Sequential(spec, schema((6,)))
        slab, out = np.empty(model.size, np.float32), np.empty(model.size, np.float32)
        model.initialize(slab)
        for n in before:
            model.gradient(slab, batch(x[:n], y[:n]), 16, (0, n), out)
        model.gradient(slab, batch(x, y), 16, (1, 2), out)
        return out.tobytes()

    assert gradient([]) == gradient([16, 3, 0, 16, 5])


def test_what_is_finished_is_final() -> None:
    """Layers are, the last one first, and of a large one some rows."""
    layers: list[dict[str, Any]] = [{"dense": {"units": 5}}, {"relu": {}}, {"dense": {"units": 5000}}, {"dense": {"units": 4}}]
    model = Sequential(complete({"layers": layers, "loss": "mean_squared_error"}), schema((3,)))
    slab, out = np.empty(model.size, np.float32), np.full(model.size, np.nan, np.float32)
    model.initialize(slab)
    generator = np.random.default_rng(0)
    x, y = (generator.normal(size=(6, width)).astype(np.float32) for width in (3, 4))
    told: list[tuple[int, bytes]] = []
    model.gradient(slab, batch(x, y), 6, (0, 0), out, lambda elements: told.append((elements, out[:elements].tobytes())))
    last = 5000 * 4 + 4
    assert [elements for elements, _ in told] == [last, last + 2048 * 5, last + 4096 * 5, last + 5000 * 6, model.size]
    assert np.isfinite(out).all()
    assert all(out.tobytes().startswith(prefix) for _, prefix in told)


def test_a_sequence_within_is_as_its_layers_are() -> None:
    """The same functions, named and shaped alike; their random numbers are others, for their places are."""
    inner: list[dict[str, Any]] = [{"dense": {"units": 5}}, {"tanh": {}}, {"dense": {"units": 700}}, {"relu": {}}]
    last: list[dict[str, Any]] = [{"dense": {"units": 3}}]
    flat = Sequential(complete({"layers": inner + last, "loss": "mean_squared_error"}), schema((4,)))
    nested = Sequential(
        complete({"layers": [{"sequence": {"layers": inner}}, *last], "loss": "mean_squared_error"}), schema((4,))
    )
    names = ["1.weight", "1.bias", "0.2.weight", "0.2.bias", "0.0.weight", "0.0.bias"]
    assert [segment.name for segment in nested.segments] == names
    assert [segment.shape for segment in nested.segments] == [segment.shape for segment in flat.segments]
    assert nested.activations == flat.activations
    slab = np.random.default_rng(0).normal(size=flat.size).astype(np.float32)
    x, y = np.ones((6, 4), np.float32), np.zeros((6, 3), np.float32)
    found = []
    for model in (flat, nested):
        out, told = np.full(model.size, np.nan, np.float32), list[int]()
        sums = model.gradient(slab, batch(x, y), 6, (0, 0), out, told.append)
        found.append((sums, out.tobytes(), told))
    assert found[0] == found[1]


def test_what_is_wrong_with_a_layer_of_a_sequence_names_its_place() -> None:
    layers = [{"sequence": {"layers": [{"relu": {}}, {"dense": {"units": 2}}]}}]
    with pytest.raises(ModelError, match=r"model\.layers\[0\]\.sequence\.layers\[1\]\.dense: needs inputs"):
        Sequential(complete({"layers": layers, "loss": "mean_squared_error"}), schema(()))


def test_no_samples_give_no_gradient() -> None:
    model = Sequential(complete({"layers": [{"dense": {"units": 2}}], "loss": "mean_squared_error"}), schema((3,)))
    out = np.full(model.size, np.nan, np.float32)
    sums = model.gradient(out, batch(np.empty((0, 3), np.float32), np.empty((0, 2), np.float32)), 4, (0, 0), out)
    assert not out.any()
    assert (sums.loss, sums.samples) == (0, 0)


def test_dropout_depends_on_the_task_alone() -> None:
    model = Sequential(complete({"layers": [{"dropout": {"p": 0.5}}], "loss": "mean_squared_error"}, seed=4), schema((1000,)))
    x = np.ones((3, 1000), np.float32)
    drawn = [model._forward(x, task).copy() for task in [(0, 0), (0, 1), (1, 0), (0, 0)]]
    assert drawn[0].tobytes() == drawn[3].tobytes()
    assert len({values.tobytes() for values in drawn}) == 3
    assert set(np.unique(drawn[0])) == {0.0, 2.0}
    assert drawn[0].mean() == pytest.approx(1, abs=0.1)
    assert model.predict(np.empty(0, np.float32), {"x": x}).values.tobytes() == x.tobytes()


DENSE: dict[str, Any] = {"dense": {"units": 3}}
WRONG: list[tuple[list[dict[str, Any]], str, tuple[int, ...], NDArray[Any], str]] = [
    ([DENSE], "softmax_cross_entropy", (2,), np.array([0, 3]), r"model\.layers: .* 3 outputs, so labels must be 0 to 2, .* 3"),
    ([DENSE], "softmax_cross_entropy", (2,), np.array([0, -1]), r"has -1"),
    ([DENSE], "softmax_cross_entropy", (2, 2), np.array([0, 1]), r"model\.loss: .* one axis of outputs"),
    ([DENSE], "mean_squared_error", (2,), np.zeros((2, 4)), r"model\.layers: .*\(3,\).*\(4,\)"),
    ([DENSE], "mean_squared_error", (2,), np.zeros(2), r"model\.layers: .*\(3,\).*\(\)"),
    ([DENSE, {"sigmoid": {}}], "binary_cross_entropy", (2,), np.full((2, 3), 2.0), r"targets from 0 to 1, .* has 2"),
    ([DENSE], "mean_squared_error", (), np.zeros((2, 3)), r"model\.layers\[0\]\.dense: "),
    ([{"relu": {}}, DENSE], "mean_squared_error", (0,), np.zeros((2, 3)), r"model\.layers\[1\]\.dense: has no inputs"),
]


@pytest.mark.parametrize(("layers", "loss", "shape", "y", "message"), WRONG)
def test_what_does_not_fit_is_refused(
    layers: list[dict[str, Any]], loss: str, shape: tuple[int, ...], y: NDArray[Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        Sequential(complete({"layers": layers, "loss": loss}), schema(shape)).check(Arrays({"y": y}))


def test_outputs_that_are_no_probabilities_are_refused() -> None:
    model = Sequential(complete({"layers": [{"dense": {"units": 1}}], "loss": "binary_cross_entropy"}), schema((2,)))
    slab = np.full(model.size, 5, np.float32)
    with pytest.raises(ModelError, match="end the model with a sigmoid"):
        model.measure(slab, batch(np.ones((2, 2), np.float32), np.ones(2, np.float32)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sigmoid_keeps_its_lower_tail(dtype: str) -> None:
    """A sample that is badly wrong goes on being learnt from."""
    spec = complete({"layers": [{"dense": {"units": 1}}, {"sigmoid": {}}], "loss": "binary_cross_entropy", "dtype": dtype})
    model = Sequential(spec, schema((1,)))
    slab, gradient = np.array([1, 0], dtype), np.empty(2, dtype)
    for x in (-1.0, -10.0, -20.0, -25.0):
        sums = model.gradient(slab, batch(np.array([[x]], dtype), np.array([1], dtype)), 1, None, gradient)
        assert sums.loss == pytest.approx(np.log1p(np.exp(x)) - x, rel=1e-5)
        assert gradient[1] == pytest.approx(1 / (1 + np.exp(-x)) - 1, rel=1e-4)
    assert model.predict(slab, {"x": np.array([[-1000.0], [1000.0]], dtype)}).values.tolist() == [[0], [1]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_without_scipy_gelu_takes_the_error_function_of_the_c_library_where_that_is_allowed(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers: list[dict[str, Any]] = [{"dense": {"units": 64}}, {"sequence": {"layers": [{"gelu": {}}]}}]
    spec = complete({"layers": layers, "loss": "mean_squared_error", "dtype": dtype})
    x = np.random.default_rng(0).normal(0, 3, (50, 4)).astype(dtype)

    def outputs(model: Sequential) -> NDArray[Any]:
        slab = np.empty(model.size, model.dtype)
        model.initialize(slab)
        return model.predict(slab, {"x": x}).values

    with_scipy = outputs(Sequential(spec, schema((4,))))
    assert np.array_equal(outputs(Sequential(spec, schema((4,)), substitutes=True)), with_scipy), "SciPy is there, and used"
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(NodeError, match=r"model\.layers\[1\]\.sequence\.layers\[0\]\.gelu: needs SciPy"):
        Sequential(spec, schema((4,)))
    without = outputs(Sequential(spec, schema((4,)), substitutes=True))
    assert without.dtype == np.dtype(dtype)
    few_bits = 8 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(without, with_scipy, rtol=few_bits, atol=few_bits)
