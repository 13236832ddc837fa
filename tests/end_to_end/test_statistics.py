"""Models with statistics and constants end with the bits of a plain loop, whatever the cluster, the codec and the optimizer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from safetensors.numpy import load_file

from tests.end_to_end import reference as loops
from tests.end_to_end.cluster import running_server, stub_of, train
from tests.end_to_end.reference import reference
from tests.end_to_end.test_shards import notices, sharded
from tests.running_mean import MOMENTUM, RunningMean
from tests.server.test_training_service import upload
from thalweg.client.plotting.slices import most_moved
from thalweg.client.records import Trajectory
from thalweg.contract import codecs
from thalweg.contract import layout as layouts
from thalweg.contract.layout import Slab
from thalweg.contract.segments import Kind
from thalweg.contract.tree import root
from thalweg.learning import data, optimizers, registry
from thalweg.learning.batch import INPUT, Field
from thalweg.learning.data.order import Order
from thalweg.learning.optimizers import OPTIMIZERS, apply, norms
from thalweg.server import validation
from thalweg.server.deciding import plan
from thalweg.server.storage.folder import DataFolder
from thalweg.v1 import job_pb2
from thalweg.workers.differentiator import Differentiator

# Elements. Of the seven chunks, the second holds parameters and statistics, and the fifth statistics and constants.
CHUNK = 40
LOCAL: dict[str, Any] = {"synchrony": {"local": {"steps": 3}}}
LOSSY = [kind for kind in codecs.CODECS if kind != "float32"]
GROUPS = [
    {"pattern": "*.mean", "frozen": True},
    {"pattern": "0.*", "learning_rate_factor": 0.0},
    {"pattern": "hidden", "learning_rate_factor": 7.0},
    {"pattern": "1.bias", "learning_rate_factor": 0.5},
]


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes all jobs ones for the toy model, and chunks small."""
    monkeypatch.setattr(registry, "objective", RunningMean)
    monkeypatch.setattr(plan, "CHUNK_BYTES", 4 * CHUNK)
    monkeypatch.setattr(loops, "CHUNK_BYTES", 4 * CHUNK)


def spec_of(optimizer: dict[str, Any] | None = None, dtype: str = "float32", **training: Any) -> job_pb2.JobSpec:
    document = {
        "model": {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error", "dtype": dtype},
        "data": {"builtin": "digits", "validation_fraction": 0.2, "one_hot": False},
        "training": {"epochs": 2, "batch_size": 300, "microbatches": 7, **training},
        "optimizer": optimizer or {"adam": {}},
    }
    return validation.complete(json_format.ParseDict(document, job_pb2.JobSpec()))


def parameters_of(folder: Path, job: job_pb2.Job) -> Slab:
    kept = DataFolder(folder).parameters(job.id)
    assert kept
    return np.frombuffer(b"".join(kept.pieces()), "<f4" if job.spec.model.dtype == "float32" else "<f8")


def check(spec: job_pb2.JobSpec, folder: Path, workers: tuple[int, ...], **settings: Any) -> None:
    """Holds that training with any number of workers equals a plain loop."""
    expected, losses = reference(spec)
    with running_server(folder, **settings) as server:
        for count in workers:
            equals(train(server, spec, count), folder, expected, losses)


def equals(job: job_pb2.Job, folder: Path, expected: Slab, losses: list[float]) -> None:
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    assert job.result.steps == len(losses)
    # With error feedback the result depends on the cluster where microbatches changed hands, which is counted.
    lost = job.progress.contributions.lost_residuals
    assert not lost or job.spec.training.codec.WhichOneof("kind") in ("int8", "top_k")
    assert lost or parameters_of(folder, job).tobytes() == expected.tobytes()


@pytest.mark.parametrize("shared_memory", [True, False], ids=["shared memory", "stream"])
@pytest.mark.parametrize("training", [{}, LOCAL], ids=["bulk", "local"])
def test_the_number_of_workers_changes_nothing(training: dict[str, Any], shared_memory: bool, tmp_path: Path) -> None:
    check(spec_of(**training), tmp_path, (1, 2, 3, 7), shared_memory=shared_memory)


@pytest.mark.parametrize("training", [{}, LOCAL], ids=["bulk", "local"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_no_optimizer_touches_statistics_and_constants(kind: str, training: dict[str, Any], tmp_path: Path) -> None:
    """Nor do groups; and norms, of the slab and of tensors, are those of the parameters."""
    spec = spec_of({kind: {"weight_decay": 0.01}, "groups": GROUPS, "clip_global_norm": 0.1}, **training)
    check(spec, tmp_path, (2,), shared_memory=False)


@pytest.mark.parametrize("outer", ["sgd", "adam", "lamb"])
def test_the_outer_optimizer_subtracts_the_mean_of_lanes(outer: str, tmp_path: Path) -> None:
    policy = {"local": {"steps": 4, "outer": {outer: {"weight_decay": 0.1}, "clip_global_norm": 0.01, "groups": GROUPS}}}
    check(spec_of(synchrony=policy), tmp_path, (3,))


@pytest.mark.parametrize("training", [{}, LOCAL], ids=["bulk", "local"])
@pytest.mark.parametrize("kind", LOSSY)
def test_statistics_travel_exactly_whatever_the_codec(kind: str, training: dict[str, Any], tmp_path: Path) -> None:
    check(spec_of(codec={kind: {}}, **training), tmp_path, (1, 3))


@pytest.mark.parametrize("kind", codecs.CODECS)
def test_gradients_have_no_bytes_for_constants(kind: str, tmp_path: Path) -> None:
    spec = spec_of(codec={kind: {}}, microbatches=1)
    with running_server(tmp_path, shared_memory=False) as server:
        job = train(server, spec)
    codec, parameters = codecs.of_gradients(spec, CHUNK), (40, 25)
    gradient = sum(map(codec.size, parameters)) + 4 * (196 - 65)
    assert job.progress.exchange.gradient_bytes == gradient * job.result.steps > 0
    # Nor messages, but for the last chunk's, with which the sums come.
    assert job.progress.contributions.applied == 6 * job.result.steps


@pytest.mark.parametrize("shards", [0, 2, 6], ids=lambda shards: f"{shards} shards")
@pytest.mark.parametrize(
    "training",
    [{}, LOCAL, {"synchrony": {"stale": {"bound": 2}}}, {"synchrony": {"asynchronous": {}}}, {"codec": {"bfloat16": {}}}],
    ids=["bulk", "local", "stale", "asynchronous", "bfloat16"],
)
def test_constants_are_sent_once(training: dict[str, Any], shards: int, tmp_path: Path) -> None:
    """But for those in a chunk that has statistics, too."""
    spec = spec_of(**training)
    with sharded(tmp_path, shards, shared_memory=False) as (server, _):
        job = train(server, spec)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    changing = sum(map(codecs.of_parameters(spec, CHUNK).size, (40, 25))) + 4 * (5 * CHUNK - 65)
    # The first version, and what each step made.
    assert job.progress.exchange.parameter_bytes == changing * (job.result.steps + 1) + 4 * (260 - 5 * CHUNK)


@pytest.mark.parametrize(
    "training", [{"codec": {"int8": {}}}, {"codec": {"bfloat16": {}}}, LOCAL], ids=["int8", "bfloat16", "local"]
)
@pytest.mark.parametrize("shards", [1, 2, 6], ids=lambda shards: f"{shards} shards")
def test_shards_change_nothing(shards: int, training: dict[str, Any], tmp_path: Path) -> None:
    """With six, one holds constants alone, as the server does."""
    spec = spec_of(**training)
    expected, losses = reference(spec)
    with sharded(tmp_path, shards) as (server, _):
        for workers in (1, 3):
            job = train(server, spec, workers)
            equals(job, tmp_path, expected, losses)
            assert any("split over" in text for text in notices(server, job.id))


@pytest.mark.parametrize("kind", ["momentum", "lamb"])
def test_norms_over_shards_are_of_parameters(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "BLOCK", CHUNK)
    spec = spec_of({kind: {}, "clip_global_norm": 0.1, "groups": GROUPS})
    with running_server(tmp_path / "alone") as server:
        alone = train(server, spec)
    with sharded(tmp_path / "split", 2) as (server, _):
        job = train(server, spec, 3)
    assert alone.result.weights_sha256 == job.result.weights_sha256 != ""


def test_a_lane_contributes_nothing_to_constants() -> None:
    """Which need not be finite, so that their difference need not be a number."""
    spec = spec_of(**LOCAL)
    differentiator = Differentiator(spec, data.load(spec, lambda _: Path()))
    start: Slab = np.empty(differentiator.objective.size, np.float32)
    differentiator.objective.initialize(start)
    moved, _ = differentiator.gradient(start, 0, 0, root(7), slice(0, start.size), 3)
    tensors = layouts.views_of(differentiator.objective.segments, moved)
    assert tensors["hidden"].tobytes() == tensors["0.still"].tobytes() + bytes(4 * 61) == bytes(4 * 64)
    assert tensors["0.mean"].any()


def test_steps_without_samples_for_a_microbatch(tmp_path: Path) -> None:
    """Of the four samples, steps take three and one."""
    sets: list[dict[str, Any]] = [{}, LOCAL]
    for training in sets:
        spec = spec_of(epochs=5, batch_size=3, microbatches=4, **training)
        spec.data.builtin = "xor"
        spec.data.validation_fraction = 0
        check(spec, tmp_path / str(len(training)), (1, 3))


def test_a_statistic_is_the_weighted_mean_and_what_does_not_change_keeps_its_bits(tmp_path: Path) -> None:
    """In double precision, against the recurrence itself."""
    spec = spec_of(dtype="float64", microbatches=5)
    with running_server(tmp_path) as server:
        found = parameters_of(tmp_path, train(server, spec, 3))
    dataset = data.load(spec, lambda _: Path())
    model, order = RunningMean(spec, dataset.schema), Order(spec, len(dataset.train), dataset.train.groups)
    initial: Slab = np.empty(model.size)
    model.initialize(initial)
    tensors, start = layouts.views_of(model.segments, found), layouts.views_of(model.segments, initial)
    mean = start["0.mean"].copy()
    for step in range(2 * order.steps_per_epoch):
        parts = [order.microbatch(step, microbatch)[0] for microbatch in range(5)]
        weights = [len(indices) / sum(map(len, parts)) for indices in parts]
        means = [dataset.train.take(indices)[INPUT].mean(axis=0, dtype=np.float64) for indices in parts]
        mean = sum(w * ((1 - MOMENTUM) * mean + MOMENTUM * m) for w, m in zip(weights, means, strict=True))
    np.testing.assert_allclose(tensors["0.mean"], mean, rtol=1e-12, atol=1e-14)
    assert np.abs(mean).max() > 0.1
    for name in ("0.still", "hidden"):
        assert tensors[name].tobytes() == start[name].tobytes()
    assert (tensors["1.weight"] != start["1.weight"]).any()


@pytest.mark.parametrize("policy", [{"stale": {"bound": 2}}, {"asynchronous": {}}], ids=["stale", "asynchronous"])
def test_out_of_order_each_change_is_subtracted_once(
    policy: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is that of a plain loop over the gradients as they were applied."""
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1 << 20)
    applied: list[Slab] = []

    def recorded(*arguments: Any, **named: Any) -> bool:
        gradient = arguments[2]
        applied.append(gradient[0] + gradient[1] if isinstance(gradient, tuple) else gradient.copy())
        return apply(*arguments, **named)

    monkeypatch.setattr(optimizers, "apply", recorded)
    spec = spec_of({"sgd": {"learning_rate": 0.01}}, synchrony=policy)
    with running_server(tmp_path) as server:
        job = train(server, spec, 3)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    assert len(applied) == job.result.steps
    model = RunningMean(spec, {INPUT: Field(np.dtype(np.float32), (64,))})
    values: Slab = np.empty(model.size, np.float32)
    model.initialize(values)
    tensors = layouts.views_of(model.segments, values)
    for gradient in applied:
        # There is none by constants.
        changing = [segment for segment in model.segments if segment.kind != Kind.CONSTANT]
        for (name, _, kind), change in zip(changing, layouts.views_of(changing, gradient).values(), strict=True):
            tensors[name] -= change * 0.01 if kind == Kind.PARAMETER else change
    assert parameters_of(tmp_path, job).tobytes() == values.tobytes()


def test_numerical_differentiation_changes_parameters_alone(tmp_path: Path) -> None:
    spec = spec_of({"sgd": {}}, epochs=1, batch_size=500, microbatches=2, gradient="numerical")
    check(spec, tmp_path, (1, 3))
    model = RunningMean(spec, {INPUT: Field(np.dtype(np.float32), (64,))})
    start: Slab = np.empty(model.size, np.float32)
    model.initialize(start)
    changed = reference(spec)[0].view(np.uint32) != start.view(np.uint32)
    assert changed[:65].any()
    assert not changed[65:].any()


def test_a_job_goes_on_from_the_bits_of_another(tmp_path: Path) -> None:
    """Or from its file, which has its statistics and constants too, and counters, which are not read."""
    spec = spec_of(epochs=1)
    with running_server(tmp_path) as server, stub_of(server) as stub:
        first = train(server, spec)
        kept = tmp_path / "jobs" / first.id / "parameters.safetensors"
        spec.optimizer.groups.add(pattern="1.*", frozen=True)
        spec.model.initial.job = first.id
        second = train(server, spec, 2)
        spec.model.initial.CopyFrom(job_pb2.Initial(file=str(kept), sha256=upload(stub, kept.read_bytes())))
        third = train(server, spec)
    before, after = parameters_of(tmp_path, first), parameters_of(tmp_path, second)
    assert second.state == third.state == job_pb2.JOB_STATE_SUCCEEDED, (second.error, third.error)
    assert before[:65].tobytes() == after[:65].tobytes()
    assert (before[65:193] != after[65:193]).any()
    assert (
        before[193:].tobytes()
        == after[193:].tobytes()
        == np.array([-0.0, 0.1, 1e-45], np.float32).tobytes() + before[196:].tobytes()
    )
    assert second.result.weights_sha256 == third.result.weights_sha256
    found = load_file(kept)
    assert found["hidden"][7] == -np.inf
    assert found["0.batches"].tolist() == first.result.steps
    assert found["1.batches"].tolist() == [first.result.steps] * 2


def test_the_weight_that_moved_the_most_is_a_parameter(tmp_path: Path) -> None:
    spec = spec_of()
    with running_server(tmp_path) as server:
        job = train(server, spec)
    kept = DataFolder(tmp_path).trajectory(job.id)
    assert kept
    trajectory = Trajectory(kept.header.layout, tuple(kept.header.versions), kept.arrays[0])
    assert most_moved(trajectory).tensor in ("1.weight", "1.bias")
