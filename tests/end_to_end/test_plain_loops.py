"""Training a model of each kind equals a plain loop of its user's, bit for bit, whatever happens to the cluster."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.client.helpers import start_worker
from tests.end_to_end.barrier import Barrier
from tests.end_to_end.cluster import running_server, stub_of, train
from tests.end_to_end.command import wait_for
from tests.end_to_end.loops import CASES, MIXED, PATHS, Case, check, plain, settled
from tests.end_to_end.reference import reference
from tests.end_to_end.test_restart import create, events_of, get, serving
from tests.end_to_end.test_shards import notices, sharded
from tests.learning.kinds import cases as kinds
from tests.learning.kinds.cases import require, spec_of
from thalweg.contract import layout as layouts
from thalweg.server.process import Server
from thalweg.v1 import job_pb2

# The step at which something is killed.
HELD = 3


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    case = CASES[request.param]
    with settled(case):
        assert plain(case)[1] > HELD
        yield case


def ended(stub: Any, job_id: str) -> job_pb2.Job:
    """The record of a job that has ended, which is waited for."""
    events_of(stub, job_id)
    return get(stub, job_id)


def train_with_a_victim(server: Server, spec: job_pb2.JobSpec, barrier: Barrier) -> job_pb2.Job:
    """Trains a job with two workers, one of which is a process that is killed in a step. Returns the job's record at its end."""
    barrier.hold(0)
    with stub_of(server) as stub:
        create(stub, "job", spec)
        start_worker(server.address, "job", allow_code=True)
        program = (
            "from thalweg.contract.endpoint import Address, Endpoint; from thalweg.workers.worker import work; "
            f"work(Endpoint(Address({server.address.host!r}, {server.address.port})), 'job', 'victim', allow_code=True)"
        )
        variables = barrier.environment
        paths = os.pathsep.join([variables["PYTHONPATH"], *map(str, PATHS)])
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
        return ended(stub, "job")


@pytest.mark.parametrize("shared_memory", [True, False], ids=["shared memory", "stream"])
def test_the_number_of_workers_changes_nothing(case: Case, shared_memory: bool, tmp_path: Path) -> None:
    with running_server(tmp_path, allow_code=True, shared_memory=shared_memory) as server:
        jobs = [train(server, case.spec(), workers) for workers in (1, 2, 3, 7)]
    for job in jobs:
        check(job, tmp_path, case)
    assert len({job.result.weights_sha256 for job in jobs}) == 1


def test_a_worker_is_killed(case: Case, tmp_path: Path, barrier: Barrier) -> None:
    """While it computes a part of a step."""
    with running_server(tmp_path, allow_code=True) as server:
        check(train_with_a_victim(server, case.spec(), barrier), tmp_path, case)


def test_a_worker_with_a_compiled_module_is_killed(tmp_path: Path, barrier: Barrier) -> None:
    """The plain loop compiles the module too."""
    require("torch, compiled")
    spec = spec_of(
        "torch, compiled",
        2,
        2,
        data={"builtin": "xor"},
        training={"epochs": 3, "batch_size": 2, "microbatches": 2},
    )
    with kinds.settled(spec), running_server(tmp_path, allow_code=True) as server:
        expected, losses = reference(spec)
        assert len(losses) > HELD
        job = train_with_a_victim(server, spec, barrier)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    assert job.result.steps == len(losses)
    assert job.result.weights_sha256 == layouts.digest(expected)


def test_the_server_is_killed_and_started_again(case: Case, tmp_path: Path, barrier: Barrier) -> None:
    barrier.hold(HELD)
    with serving(tmp_path, checkpoint_seconds=0.0) as server:
        create(server.stub, "job", case.spec())
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
        check(ended(server.stub, "job"), tmp_path, case)


def test_all_kinds_of_tensors_over_shards(tmp_path: Path) -> None:
    """Frozen and tied ones, one without a gradient, a counter."""
    with settled(MIXED), sharded(tmp_path, 2, allow_code=True) as (server, _):
        for workers in (1, 3):
            job = train(server, MIXED.spec(), workers)
            check(job, tmp_path, MIXED)
            assert any("split over" in text for text in notices(server, job.id))
        found = load_file(tmp_path / "jobs" / job.id / "parameters.safetensors")
    assert (found["unused"] == 1).all()
    assert found["norm.num_batches_tracked"] == job.result.steps
