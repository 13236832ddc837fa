"""A worker's death loses nothing; what comes twice or late is dropped: the same bits, over real streams."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from socket import SHUT_RDWR
from threading import Event, Thread, local
from typing import Any

import pytest
from google.protobuf import json_format
from threadpoolctl import threadpool_limits

from tests.end_to_end.cluster import running_server, stub_of
from tests.end_to_end.peer import DEADLINE, CutError, Meddler, proxy
from tests.end_to_end.reference import reference
from thalweg.contract import layout as layouts
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.contract.errors import ThalwegError
from thalweg.server import validation
from thalweg.server.deciding import plan
from thalweg.server.process import Server
from thalweg.v1 import job_pb2
from thalweg.v1 import parameter_service_pb2 as messages
from thalweg.v1 import training_service_pb2 as pb
from thalweg.workers.transport import exchange
from thalweg.workers.worker import work

BASE: dict[str, Any] = {
    "model": {
        "layers": [{"dense": {"units": 16}}, {"relu": {}}, {"dropout": {"p": 0.1}}, {"dense": {"units": 10}}],
        "loss": "softmax_cross_entropy",
    },
    "data": {"builtin": "digits", "validation_fraction": 0.2},
    "training": {"epochs": 4, "batch_size": 200, "microbatches": 5},
    "optimizer": {"momentum": {"learning_rate": 0.1}},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "unclipped": {},
    "clipped": {"optimizer": {"momentum": {"learning_rate": 0.1}, "clip_global_norm": 0.5}},
    "lamb, groups": {
        "optimizer": {
            "lamb": {"learning_rate": 0.01},
            "clip_global_norm": 0.5,
            "groups": [{"pattern": "0.bias", "frozen": True}, {"pattern": "*.bias", "weight_decay": 0}],
        }
    },
    "numerical": {
        "model": {"layers": [{"dense": {"units": 3}}, {"tanh": {}}, {"dense": {"units": 1}}], "loss": "mean_squared_error"},
        "data": {"builtin": "xor"},
        "training": {"epochs": 10, "batch_size": 4, "microbatches": 2, "gradient": "numerical"},
    },
}

GRADIENTS = ("gradient", "shared_gradient")


# What meddles with the messages that this thread's worker sends beside its stream.
_meddlers = local()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks a gradient, so that a stream can be cut in the middle of one."""
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1024)
    monkeypatch.setattr(exchange.Shared, "least_chunks", 1)


@pytest.fixture(autouse=True)
def meddled_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a proxy does to a stream, `_meddlers` do to the socket beside shared memory."""
    say = exchange.Shared._say

    def meddled(self: exchange.Shared, message: messages.WorkRequest | bytes) -> None:
        meddle: Meddler | None = getattr(_meddlers, "meddle", None)
        if meddle is None or isinstance(message, bytes):
            say(self, message)
            return
        try:
            for each in meddle(message):
                say(self, each)
        except CutError:
            self._peer.shutdown(SHUT_RDWR)

    monkeypatch.setattr(exchange.Shared, "_say", meddled)


class Run:
    """One job, and workers that come and go."""

    def __init__(self, server: Server, spec: job_pb2.JobSpec) -> None:
        self.server = server
        with stub_of(server) as stub:
            self.job_id = stub.CreateJob(pb.CreateJobRequest(spec=spec)).job.id
        self._threads: list[Thread] = []

    def start(self, address: Address | None = None, meddle: Meddler | None = None) -> Thread:
        """Starts a worker, through a proxy, if its address is given, with the same meddler for what passes it by."""
        thread = Thread(target=self._work, args=(address or self.server.address, meddle))
        thread.start()
        self._threads.append(thread)
        return thread

    def _work(self, address: Address, meddle: Meddler | None) -> None:
        _meddlers.meddle = meddle
        with suppress(ThalwegError):
            work(Endpoint(address), self.job_id, "worker")

    def end(self) -> tuple[job_pb2.Job, list[float]]:
        """Waits for the end, and gives the job with the loss of each step."""
        losses: list[float] = []
        with stub_of(self.server) as stub:
            for response in stub.WatchJob(pb.WatchJobRequest(job_id=self.job_id), timeout=DEADLINE):
                losses += response.event.steps_taken.losses
                if response.event.HasField("state_changed"):
                    job = response.event.state_changed.job
        for thread in self._threads:
            thread.join()
        return job, losses


@pytest.fixture(params=[True, False], ids=["shared memory", "stream"])
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    with running_server(tmp_path, shared_memory=request.param) as server:
        yield server


def make_spec(variant: str) -> job_pb2.JobSpec:
    return json_format.ParseDict({**BASE, **VARIANTS[variant]}, job_pb2.JobSpec())


def undisturbed(server: Server, spec: job_pb2.JobSpec) -> tuple[str, list[float]]:
    """The result of a plain loop; where differentiation is numerical, which has none, of one worker."""
    if spec.training.gradient == "numerical":
        run = Run(server, spec)
        run.start()
        job, losses = run.end()
        return job.result.weights_sha256, losses
    with threadpool_limits(1, "blas"):
        expected, losses = reference(validation.complete(spec))
    return layouts.digest(expected), losses


def cut_after(gradients: int, cut: Event) -> Meddler:
    left = [gradients]

    def meddle(request: messages.WorkRequest) -> Iterator[messages.WorkRequest]:
        if request.WhichOneof("message") in GRADIENTS:
            if left[0] == 0:
                cut.set()
                raise CutError
            left[0] -= 1
        yield request

    return meddle


@pytest.mark.parametrize("gradients", [0, 1, 7, 31])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_workers_death_in_the_midst_of_a_step_loses_nothing(server: Server, variant: str, gradients: int) -> None:
    spec = make_spec(variant)
    expected, losses = undisturbed(server, spec)
    run, cut = Run(server, spec), Event()
    meddle = cut_after(gradients, cut)
    with proxy(server.address, meddle) as address:
        run.start(address, meddle).join()
    assert cut.is_set()
    run.start()
    run.start()
    job, found = run.end()
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    assert job.result.weights_sha256 == expected
    assert found == losses


@pytest.mark.parametrize("variant", VARIANTS)
def test_workers_that_die_one_after_another_lose_nothing(server: Server, variant: str) -> None:
    spec = make_spec(variant)
    expected, losses = undisturbed(server, spec)
    run = Run(server, spec)
    for gradients in range(0, 12, 2):
        cut = Event()
        meddle = cut_after(gradients, cut)
        with proxy(server.address, meddle) as address:
            for thread in (run.start(address, meddle), run.start(address, meddle)):
                thread.join()
        assert cut.is_set()
    run.start()
    job, found = run.end()
    assert job.result.weights_sha256 == expected
    assert found == losses


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_message_that_comes_twice_or_late_changes_nothing(server: Server, variant: str) -> None:
    spec = make_spec(variant)
    expected, losses = undisturbed(server, spec)
    repeated = 0
    # By thread, and so by worker: one says nothing about a slab in shared memory that is another's.
    past: defaultdict[int, list[messages.WorkRequest]] = defaultdict(list)

    def repeat(request: messages.WorkRequest) -> Iterator[messages.WorkRequest]:
        """Each answer twice, and an old one after it."""
        nonlocal repeated
        yield request
        if request.WhichOneof("message") in (*GRADIENTS, "evaluation", "initial"):
            own = past[threading.get_ident()]
            own.append(request)
            repeated += 1
            yield request
            yield own[len(own) // 2]

    run = Run(server, spec)
    with proxy(server.address, repeat) as address:
        for _ in range(3):
            run.start(address, repeat)
        job, found = run.end()
    assert repeated > 20
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    assert job.result.weights_sha256 == expected
    assert found == losses


def test_workers_that_join_in_the_midst_of_a_job_change_nothing(server: Server) -> None:
    spec = make_spec("unclipped")
    expected, losses = undisturbed(server, spec)
    run = Run(server, spec)
    threads = iter(range(5))
    seen = 0

    def invite(request: messages.WorkRequest) -> Iterator[messages.WorkRequest]:
        """Another worker joins with every fourth gradient."""
        nonlocal seen
        if request.WhichOneof("message") in GRADIENTS:
            seen += 1
            if seen % 4 == 0 and next(threads, None) is not None:
                run.start()
        yield request

    with proxy(server.address, invite) as address:
        run.start(address, invite)
        job, found = run.end()
    assert next(threads, None) is None
    assert job.result.weights_sha256 == expected
    assert found == losses
