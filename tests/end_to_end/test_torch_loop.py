"""Training the examples' PyTorch modules equals a plain loop with PyTorch alone, bit for bit, buffers and counters included."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.numpy import load_file

from tests.client.helpers import start_worker
from tests.end_to_end.barrier import Barrier
from tests.end_to_end.cluster import running_server, stub_of, train
from tests.end_to_end.command import wait_for
from tests.end_to_end.test_restart import create, events_of, get, serving
from thalweg.client import load_job
from thalweg.contract import tree
from thalweg.contract.layout import Slab
from thalweg.learning import data
from thalweg.learning.data.order import Order
from thalweg.learning.randomness import Purpose
from thalweg.server import validation
from thalweg.v1 import job_pb2

torch = pytest.importorskip("torch")
from torch.nn import functional  # noqa: E402 - an extra

from thalweg.learning.pytorch.randomness import seeded  # noqa: E402 - imports torch
from thalweg.learning.pytorch.settings import settled  # noqa: E402 - imports torch

ROOT = Path(__file__).parents[2]
RATE, MOMENTUM = 0.05, 0.9
# The step at which something is killed.
HELD = 3
TRAINING = {"training.microbatches": 7, "training.epochs": 2}


class Example(NamedTuple):
    """An example, with less to compute: its folder, other settings, and the arguments of its module and its data."""

    folder: str
    settings: dict[str, Any]
    module: dict[str, Any]
    data: dict[str, Any]
    loss: Callable[[Any, Any], Any]


EXAMPLES = [
    Example(
        "cnn",
        {"training.batch_size": 500},
        {"channels": 2},
        {},
        lambda outputs, y: functional.cross_entropy(outputs, y, reduction="none"),
    ),
    Example(
        "gpt",
        {"training.batch_size": 30, "data.validation_fraction": 0.2},
        {"layers": 2, "width": 16, "heads": 2, "context": 8},
        {"context": 8, "characters": 1000},
        lambda outputs, y: functional.cross_entropy(outputs.movedim(-1, 1), y, reduction="none").mean(1),
    ),
]


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Those of workers, which are threads here; and the examples' modules can be imported, and are forgotten afterwards."""
    for example in EXAMPLES:
        monkeypatch.syspath_prepend(str(ROOT / "examples" / example.folder))
    before = set(sys.modules)
    with settled(1):
        yield
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(ROOT / "examples")):
            del sys.modules[name]


def spec_of(example: Example) -> job_pb2.JobSpec:
    """The example's job. Its code can be imported as it is."""
    spec = load_job(ROOT / "examples" / example.folder / "job.toml", TRAINING | example.settings).spec
    spec.ClearField("code")
    spec.optimizer.CopyFrom(job_pb2.Optimizer(momentum=job_pb2.Momentum(learning_rate=RATE, momentum=MOMENTUM)))
    spec.model.torch.arguments = json.dumps(example.module)
    if example.data:
        spec.data.python.arguments = json.dumps(example.data)
    return validation.complete(spec)


@cache
def plain(index: int) -> tuple[dict[str, Slab], int]:
    """What a plain loop makes of an example's module: its state, and the number of steps."""
    example = EXAMPLES[index]
    spec = spec_of(example)
    train = data.load(spec, lambda _: Path()).train
    order = Order(spec, len(train))
    module, name = spec.model.torch.entrypoint.split(":")
    with seeded(spec.seed, Purpose.MODULE_CREATION):
        net = getattr(import_module(module), name)(**example.module)
    buffers = {name: buffer for name, buffer in net.named_buffers() if buffer.is_floating_point()}
    velocity: dict[str, Any] = {}

    def differentiate(step: int, microbatch: int) -> dict[str, Any]:
        indices, denominator = order.microbatch(step, microbatch)
        x, y = (torch.tensor(train.take(indices)[field]) for field in ("x", "y"))
        before = {name: buffer.clone() for name, buffer in buffers.items()}
        net.zero_grad()
        with seeded(spec.seed, Purpose.MODULE_CALL, step, microbatch):
            (example.loss(net(x.float() if x.is_floating_point() else x), y).sum() / denominator).backward()
        found = {name: (before[name] - buffer) * (len(indices) / denominator) for name, buffer in buffers.items()}
        for name, buffer in buffers.items():
            buffer.copy_(before[name])
        return found | {name: parameter.grad for name, parameter in net.named_parameters()}

    def add(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        return {name: one[name] + other[name] for name in one}

    steps, count = order.steps_per_epoch * spec.training.epochs, spec.training.microbatches
    for step in range(steps):
        total = tree.fold(tree.root(count), count, partial(differentiate, step), add)
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                velocity[name] = velocity[name] * MOMENTUM + total[name] if step else total[name].clone()
                parameter.sub_(velocity[name] * RATE)
            for name, buffer in buffers.items():
                buffer.sub_(total[name])
    for name, buffer in net.named_buffers():
        if name not in buffers:
            buffer.fill_(steps)
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}, steps


def check(job: job_pb2.Job, folder: Path, index: int) -> None:
    expected, steps = plain(index)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    assert job.result.steps == steps > HELD
    found = load_file(folder / "jobs" / job.id / "parameters.safetensors")
    # The server's file has tied weights once.
    assert expected.keys() - found.keys() == ({"out.weight"} if EXAMPLES[index].folder == "gpt" else set())
    for name, values in found.items():
        assert (values.dtype, values.shape) == (expected[name].dtype, expected[name].shape)
        assert values.tobytes() == expected[name].tobytes(), name


def ended(stub: Any, job_id: str) -> job_pb2.Job:
    """The record of a job that has ended, which is waited for."""
    events_of(stub, job_id)
    return get(stub, job_id)


@pytest.mark.parametrize("shared_memory", [True, False], ids=["shared memory", "stream"])
@pytest.mark.parametrize("index", range(len(EXAMPLES)), ids=[example.folder for example in EXAMPLES])
def test_the_number_of_workers_changes_nothing(index: int, shared_memory: bool, tmp_path: Path) -> None:
    spec = spec_of(EXAMPLES[index])
    with running_server(tmp_path, allow_code=True, shared_memory=shared_memory) as server:
        for workers in (1, 2, 3, 7):
            check(train(server, spec, workers), tmp_path, index)


@pytest.mark.parametrize("index", range(len(EXAMPLES)), ids=[example.folder for example in EXAMPLES])
def test_a_worker_is_killed(index: int, tmp_path: Path, barrier: Barrier) -> None:
    """While it computes a part of a step."""
    example = EXAMPLES[index]
    barrier.hold(0)
    with running_server(tmp_path, allow_code=True) as server, stub_of(server) as stub:
        create(stub, "job", spec_of(example))
        start_worker(server.address, "job", allow_code=True)
        program = (
            "from thalweg.contract.endpoint import Address, Endpoint; from thalweg.workers.worker import work; "
            f"work(Endpoint(Address({server.address.host!r}, {server.address.port})), 'job', 'victim', allow_code=True)"
        )
        variables = barrier.environment
        paths = os.pathsep.join([variables["PYTHONPATH"], str(ROOT / "examples" / example.folder)])
        environment = {**os.environ, "PYTHONPATH": paths, "THALWEG_TEST_BARRIER": variables["THALWEG_TEST_BARRIER"]}
        victim = subprocess.Popen([sys.executable, "-c", program], env=environment)
        try:
            wait_for(lambda: get(stub, "job").progress.workers == 2)
            barrier.hold(HELD)
            wait_for(lambda: get(stub, "job").progress.step == HELD)
            assert get(stub, "job").progress.workers == 2
        finally:
            victim.kill()
            assert victim.wait() == -signal.SIGKILL
        wait_for(lambda: get(stub, "job").progress.workers == 1)
        barrier.release()
        check(ended(stub, "job"), tmp_path, index)


@pytest.mark.parametrize("index", range(len(EXAMPLES)), ids=[example.folder for example in EXAMPLES])
def test_the_server_is_killed_and_started_again(index: int, tmp_path: Path, barrier: Barrier) -> None:
    barrier.hold(HELD)
    with serving(tmp_path, checkpoint_seconds=0.0) as server:
        create(server.stub, "job", spec_of(EXAMPLES[index]))
        workers = [start_worker(server.address, "job", allow_code=True) for _ in range(2)]
        wait_for(lambda: get(server.stub, "job").progress.step == HELD)
        wait_for(lambda: get(server.stub, "job").progress.checkpoints.step > 0)
        server.kill()
        barrier.release()
        for worker in workers:
            worker.join()
    with serving(tmp_path, checkpoint_seconds=0.0) as server:
        assert get(server.stub, "job").progress.step > 0
        start_worker(server.address, "job", allow_code=True)
        start_worker(server.address, "job", allow_code=True)
        check(ended(server.stub, "job"), tmp_path, index)
