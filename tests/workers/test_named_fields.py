"""Samples with several inputs by name, integers among them, and targets of any shape: all that is between a file and a model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from numpy.typing import NDArray

from tests.client.helpers import fleet_of_threads
from tests.end_to_end.cluster import running_server
from thalweg.client import Client
from thalweg.contract import tree
from thalweg.contract.layout import Slab
from thalweg.contract.segments import Segment, elements
from thalweg.contract.sums import Sums
from thalweg.learning import data, registry
from thalweg.learning.batch import Batch, Field, Schema, size
from thalweg.learning.data import Arrays, Dataset
from thalweg.learning.data.order import Order
from thalweg.learning.data.preparation import split
from thalweg.learning.data.rows import Selected
from thalweg.learning.data.samples import ALL, Samples, held
from thalweg.learning.data.sources.npz import load_rows
from thalweg.learning.errors import MistakeError
from thalweg.learning.objective import Objective, Outputs, Progress, ignore
from thalweg.learning.randomness import Draw
from thalweg.server import validation
from thalweg.v1 import job_pb2
from thalweg.workers.differentiator import Differentiator

TOKENS, KINDS, SAMPLES = 11, 4, 240
SCHEMA = {
    "tokens": Field(np.dtype(np.int64), (5,)),
    "kind": Field(np.dtype(np.uint8), ()),
    "target": Field(np.dtype(np.float32), (2, 3)),
}


class Bag:
    """A bag of tokens: the sum of the tokens' vectors and of the kind's, as a matrix, against a target by squares."""

    metrics = ()
    activations = 12
    packages: frozenset[str] = frozenset()
    counters: tuple[Segment, ...] = ()
    numerical = False
    segments = (Segment("token", (TOKENS, 6)), Segment("kind", (KINDS, 6)))
    size = elements(segments)

    def __init__(self, schema: Schema, dtype: str) -> None:
        assert schema == SCHEMA
        self.dtype: np.dtype[np.floating] = np.dtype(dtype)

    def check(self, samples: Samples) -> None:
        batch = samples.take(ALL)
        # What numerical differentiation computes in double precision is the target alone.
        assert {name: (values.dtype, values.shape[1:]) for name, values in batch.items()} == {**SCHEMA}
        if batch["tokens"].max() >= TOKENS:
            raise MistakeError(f"data: there are {TOKENS} tokens, but the data has the token {batch['tokens'].max()}")

    def initialize(self, out: Slab) -> None:
        out[...] = np.random.default_rng(3).normal(size=self.size)

    def _tables(self, slab: Slab) -> tuple[Slab, Slab]:
        return slab[: TOKENS * 6].reshape(TOKENS, 6), slab[TOKENS * 6 :].reshape(KINDS, 6)

    def _errors(self, at: Slab, batch: Batch) -> Slab:
        return self.predict(at, batch).values.reshape(size(batch), 6) - batch["target"].reshape(size(batch), 6)

    def gradient(self, at: Slab, batch: Batch, denominator: int, draw: Draw | None, out: Slab, done: Progress = ignore) -> Sums:
        out[...] = 0
        errors = self._errors(at, batch)
        token, kind = self._tables(out)
        for position in range(5):
            np.add.at(token, batch["tokens"][:, position], errors / denominator)
        np.add.at(kind, batch["kind"], errors / denominator)
        done(self.size)
        return self.measure(at, batch, draw)

    def measure(self, at: Slab, batch: Batch, draw: Draw | None = None) -> Sums:
        return Sums(float(np.sum(self._errors(at, batch) ** 2, dtype=np.float64) / 2), size(batch))

    def predict(self, at: Slab, batch: Batch) -> Outputs:
        token, kind = self._tables(at)
        return Outputs((token[batch["tokens"]].sum(1) + kind[batch["kind"]]).reshape(-1, 2, 3))


def fields() -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(1)
    return {
        "tokens": generator.integers(0, TOKENS, (SAMPLES, 5)),
        "kind": generator.integers(0, KINDS, SAMPLES, np.uint8),
        "target": generator.normal(size=(SAMPLES, 2, 3)).astype(np.float32),
    }


@pytest.fixture(params=[True, False])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    """From an archive of named arrays, held in memory or read when they are needed."""
    # The shapes of the others do not matter, as only what is asked for is read.
    np.savez(tmp_path / "a.npz", **fields(), names=np.array(["a", "b"]))  # type: ignore[arg-type]
    rows = dict(zip(SCHEMA, load_rows(tmp_path / "a.npz", "data.npz", "a.npz", [*SCHEMA]), strict=True))
    train, validation = split(1, SAMPLES, 0.25)
    parts = [Arrays({name: Selected(values, chosen) for name, values in rows.items()}) for chosen in (train, validation)]
    first, second = [held(part) for part in parts] if request.param else parts
    return Dataset(first, second, Arrays({name: values[:0] for name, values in fields().items()}), job_pb2.Preprocessing())


@pytest.fixture
def bag(monkeypatch: pytest.MonkeyPatch) -> None:
    def objective(spec: job_pb2.JobSpec, schema: Schema, dtype: str | None = None, **_: object) -> Objective:
        return Bag(schema, dtype or spec.model.dtype)

    monkeypatch.setattr(registry, "objective", objective)


def make(**training: Any) -> job_pb2.JobSpec:
    """A complete specification. The contract has no such model and no such data yet."""
    document = {
        "model": {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"},
        "data": {"builtin": "xor"},
        "training": {"epochs": 4, "batch_size": 60, "microbatches": 3, **training},
        "optimizer": {"sgd": {"learning_rate": 0.05}},
    }
    return validation.complete(json_format.ParseDict(document, job_pb2.JobSpec()))


@pytest.mark.usefixtures("bag")
def test_a_gradient_is_that_of_the_named_fields(dataset: Dataset) -> None:
    spec = make()
    differentiator = Differentiator(spec, dataset)
    parameters, wanted = np.empty((2, Bag.size), np.float32)
    differentiator.objective.initialize(parameters)
    gradient, sums = differentiator.gradient(parameters, 0, 2, tree.root(3), slice(0, Bag.size))
    minibatch = dataset.train.take(Order(spec, len(dataset.train)).minibatch(2))
    total = differentiator.objective.gradient(parameters, minibatch, 60, None, wanted)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5)
    assert sums.samples == total.samples == 60
    assert sums.loss == pytest.approx(total.loss)
    assert differentiator.evaluate(parameters, dataset.validation, range(60)).samples == 60


@pytest.mark.usefixtures("bag")
def test_integers_stay_integers_in_numerical_differentiation(dataset: Dataset) -> None:
    parameters = np.empty(Bag.size, np.float32)
    both = [Differentiator(make(gradient=scheme), dataset) for scheme in ("backpropagation", "numerical")]
    both[0].objective.initialize(parameters)
    exact, differences = (each.gradient(parameters, 0, 0, tree.root(3), slice(0, Bag.size))[0] for each in both)
    np.testing.assert_allclose(differences, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("bag")
def test_what_an_objective_finds_wrong_with_the_data_is_a_mistake() -> None:
    wrong = fields()
    wrong["tokens"][100, 3] = TOKENS
    none = {name: values[:0] for name, values in wrong.items()}
    with pytest.raises(MistakeError, match="has the token 11"):
        Differentiator(make(), Dataset(Arrays(wrong), Arrays(none), Arrays(none), job_pb2.Preprocessing()))


@pytest.mark.usefixtures("bag")
def test_a_job_learns_from_named_fields(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server and two workers: the result of one that computes all alone, to the bit."""
    monkeypatch.setattr(data, "load", lambda *_: dataset)
    spec = make(workers=2)
    with running_server(tmp_path / "server") as server, fleet_of_threads(server), Client(server.address) as client:
        job = client.submit(spec)
        result = job.wait()
        _, slab = job.slab()
    alone = Differentiator(spec, dataset)
    parameters = np.empty(Bag.size, np.float32)
    alone.objective.initialize(parameters)
    for step in range(12):
        gradient, _ = alone.gradient(parameters, step, step, tree.root(3), slice(0, Bag.size))
        parameters -= np.float32(0.05) * gradient
        alone.release(gradient)
    assert result.steps == 12
    assert np.array_equal(slab, parameters)
    assert result.validation is not None
    assert result.validation.loss == pytest.approx(alone.evaluate(parameters, dataset.validation, range(60)).loss / 60)
