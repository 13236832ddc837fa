"""The memory that a worker needs is what it takes, and one that has too little says so before it takes any."""

import queue
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from tests.end_to_end.cluster import running_server, stub_of
from tests.learning.batches import dataset
from tests.server.test_training_service import make_spec
from thalweg.contract import tree
from thalweg.contract.endpoint import Endpoint
from thalweg.contract.resources import Memory
from thalweg.learning import data
from thalweg.learning.data import memory as data_memory
from thalweg.server import validation
from thalweg.v1 import job_pb2, training_service_pb2
from thalweg.workers import needs
from thalweg.workers.differentiator import Differentiator
from thalweg.workers.transport.exchange import Streamed
from thalweg.workers.transport.streams import Streams
from thalweg.workers.worker import work

WIDTH = 600


def complete(**given: Any) -> job_pb2.JobSpec:
    document: dict[str, Any] = {
        "model": {
            "layers": [{"dense": {"units": WIDTH}}, {"relu": {}}, {"dense": {"units": 3}}],
            "loss": "softmax_cross_entropy",
        },
        "data": {"builtin": "digits"},
        "training": {"batch_size": 8, "microbatches": 8, "workers": 1},
        "optimizer": {"adam": {}},
    }
    document["training"] |= given.pop("training", {})
    return validation.complete(json_format.ParseDict(document | given, job_pb2.JobSpec()))


def prepared(spec: job_pb2.JobSpec) -> Differentiator:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(8, WIDTH)).astype(np.float32), generator.integers(0, 3, 8)
    return Differentiator(spec, dataset(x, y))


@pytest.mark.parametrize(
    ("wanted", "training"),
    [
        (6, {}),
        (5, {"workers": 2}),
        (4, {"workers": 8}),
        (11, {"codec": {"int8": {}}}),
        (10, {"synchrony": {"local": {"steps": 2}}}),
    ],
)
def test_a_worker_takes_what_it_needs(wanted: int, training: dict[str, Any]) -> None:
    spec = complete(training=training)
    assert needs.slabs(spec, shared=False) == wanted
    tracemalloc.start()
    differentiator = prepared(spec)
    model = differentiator.objective
    exchange = Streamed(spec, model.segments, model.dtype, 1 << 18, Streams(queue.SimpleQueue(), []))
    model.initialize(exchange.parameters[0])
    share = spec.training.microbatches // spec.training.workers
    exact = not spec.training.codec.HasField("int8")
    for node in tree.cover(range(share), 8) if exact else [tree.Node(0, index) for index in range(share)]:
        where, steps = slice(0, model.size), spec.training.synchrony.local.steps or 1
        slab = exchange.slab(0)
        differentiator.gradient(exchange.parameters[0], 0, 0, node, where, steps, out=slab)
        exchange._outgoing.begin(node, 0)
        exchange._outgoing.encode(slab[: 1 << 18], 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # A slab has 1.4 MiB; beside the slabs there are activations, samples, and blocks of an optimizer's.
    assert wanted - 1.1 < peak / (4 * model.size) < wanted + 1.9
    need = needs.of_worker(spec, model, 8, 256, shared=False)
    assert need == 4 * (wanted * model.size + (256 + 2) * model.activations)


def test_the_documentation_says_how_many_bytes_a_parameter_takes() -> None:
    bytes_ = {workers: 4 * needs.slabs(complete(training={"workers": workers}), shared=False) for workers in (1, 2, 8)}
    text = " ".join((Path(__file__).parents[2] / "docs" / "cluster.md").read_text().split())
    said = f"{bytes_[1]} bytes per parameter for a single worker, {bytes_[2]} for each of 2, {bytes_[8]} for each of 8"
    assert said in text


def test_parameters_that_are_shared_are_the_servers() -> None:
    assert needs.slabs(complete(training={"workers": 2}), shared=True) == 3
    assert needs.slabs(complete(training={"workers": 8}), shared=True) == 2
    assert needs.slabs(complete(training={"gradient": "numerical"}), shared=True) == 2


def test_a_gpu_reads_and_writes_one_more_slab() -> None:
    spec = complete()
    objective = prepared(spec).objective
    without = needs.of_worker(spec, objective, 100, 10, shared=True)
    spec.training.resources.gpus = 0.5
    assert needs.of_worker(spec, objective, 100, 10, shared=True) == without + objective.size * objective.dtype.itemsize


def test_activations_are_outputs_and_gradients_by_inputs() -> None:
    model = prepared(complete()).objective
    assert model.activations == (WIDTH + WIDTH) + (WIDTH + WIDTH) + (WIDTH + 3)


def test_a_worker_without_enough_memory_says_so_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    available = Memory(1 << 30, 1000)
    monkeypatch.setattr(data_memory, "memory", lambda: available)
    with running_server(tmp_path) as server, stub_of(server) as stub:
        job = stub.CreateJob(training_service_pb2.CreateJobRequest(spec=make_spec())).job
        worker = threading.Thread(target=work, args=(Endpoint(server.address), job.id, "w"), daemon=True)
        worker.start()
        wanted = "model.layers: a worker for 3 parameters needs 0.00 MiB of memory; this machine has 0.00 MiB available"
        for response in stub.WatchJob(training_service_pb2.WatchJobRequest(job_id=job.id)):
            if wanted in str(response.event):
                break
        else:
            pytest.fail("the job ended, and nobody said why")
        stub.CancelJob(training_service_pb2.CancelJobRequest(job_id=job.id))
        worker.join()


def test_a_workers_memory_does_not_grow_with_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole epoch and its evaluations, on data that is not held in memory: 12 MiB, then three times as much."""
    monkeypatch.setattr(data_memory, "MAX_HELD", 0)
    generator = np.random.default_rng(0)

    def peak(samples: int) -> int:
        x = generator.integers(0, 256, (samples, 1024), np.uint8)
        np.savez(tmp_path / "a.npz", x=x, y=np.arange(samples) % 3)
        del x
        source = {"npz": "a.npz", "sha256": "0" * 64, "standardize": True, "validation_fraction": 0.1}
        model = {"layers": [{"dense": {"units": 3}}], "loss": "softmax_cross_entropy"}
        spec = complete(data=source, model=model, training={"batch_size": 512})
        tracemalloc.start()
        try:
            worker = Differentiator(spec, data.load(spec, lambda _: tmp_path / "a.npz"))
            parameters = np.zeros(worker.objective.size, np.float32)
            worker.objective.initialize(parameters)
            for step in range(-(-len(worker.dataset.train) // 512)):
                gradient, sums = worker.gradient(parameters, step, step, tree.root(8), slice(0, parameters.size))
                assert sums.samples > 0
                worker.release(gradient)
                worker.prefetch()
            for part in (worker.dataset.train, worker.dataset.validation):
                assert worker.evaluate(parameters, part, range(len(part))).samples == len(part)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak(12 << 10), peak(36 << 10)
    # For each sample its number is kept, and targets are checked by blocks that are larger than these.
    assert large - small < (24 << 20) / 8
