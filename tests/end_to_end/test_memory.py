"""A server with little memory: a job that can never fit is refused, one that does not fit now waits, and the others train on."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from tests.end_to_end.barrier import Barrier
from tests.end_to_end.cluster import running_server, stub_of
from tests.end_to_end.command import wait_for
from tests.server.test_training_service import make_spec
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.contract.errors import ThalwegError
from thalweg.contract.resources import Memory
from thalweg.server.arrays.budget import Budget
from thalweg.server.driving.lifecycle import runs
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub
from thalweg.workers.worker import work

MIB = 1 << 20
GROUPS = Path("/sys/fs/cgroup/memory")
SERVE = """
import os, signal, sys
from pathlib import Path
Path(sys.argv[2], "cgroup.procs").write_text(str(os.getpid()))
from thalweg.contract.endpoint import Address
from thalweg.server.process import Server, ServerConfig
server = Server(ServerConfig(Address("127.0.0.1", 0), Path(sys.argv[1]), shared_memory=False))
print(server.start().port, flush=True)
signal.pause()
"""


def create(stub: TrainingServiceStub, job_id: str, units: int, epochs: int) -> None:
    """A job of about 65 · units parameters, trained with Adam, which needs 44 bytes for each."""
    spec = make_spec(
        model={"layers": [{"dense": {"units": units}}, {"dense": {"units": 10}}], "loss": "softmax_cross_entropy"},
        data={"builtin": "digits"},
        training={"epochs": epochs, "batch_size": 1024, "microbatches": 1, "workers": 1},
        optimizer={"adam": {}},
    )
    stub.CreateJob(pb.CreateJobRequest(spec=spec, job_id=job_id))


def get(stub: TrainingServiceStub, job_id: str) -> job_pb2.Job:
    return stub.GetJob(pb.GetJobRequest(job_id=job_id)).job


def start_worker(server: Address, job_id: str) -> threading.Thread:
    def run() -> None:
        with suppress(ThalwegError):
            work(Endpoint(server), job_id, f"worker-of-{job_id}")

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    return worker


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of 512 MiB."""
    folder = GROUPS / f"memory-eng-server-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(512 * MIB))
    except OSError as error:
        pytest.skip(f"no control groups of version 1 can be made here: {error}")
    yield folder
    wait_for(lambda: not (folder / "cgroup.procs").read_text())
    folder.rmdir()


@pytest.fixture
def limited_server(group: Path, tmp_path: Path) -> Iterator[Address]:
    """The address of a server in the control group. Workers end when it is killed."""
    with subprocess.Popen([sys.executable, "-c", SERVE, str(tmp_path), str(group)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield Address("127.0.0.1", int(process.stdout.readline()))
        running = process.poll() is None
        process.kill()
    assert running, "the server was killed for want of memory"


@pytest.mark.cgroup
def test_a_server_of_512_mib_refuses_a_job_that_can_never_fit_and_trains_the_others(
    limited_server: Address, barrier: Barrier
) -> None:
    with grpc.insecure_channel(str(limited_server)) as channel:
        stub = TrainingServiceStub(channel)
        barrier.hold(3)
        create(stub, "small", 10, 10)
        create(stub, "large", 750_000, 1)
        workers = [start_worker(limited_server, job_id) for job_id in ("small", "large")]
        wait_for(lambda: get(stub, "large").state == job_pb2.JOB_STATE_FAILED)
        error = get(stub, "large").error
        assert "56,250,010 parameters do not fit in this server's memory: about 2.3" in error
        assert "this machine has at most 0." in error
        # The other continues.
        wait_for(lambda: get(stub, "small").progress.step == 3)
        barrier.hold(6)
        wait_for(lambda: get(stub, "small").progress.step == 6)
        stub.CancelJob(pb.CancelJobRequest(job_id="small"))
        barrier.release()
        for worker in workers:
            worker.join()


def test_a_job_that_does_not_fit_beside_another_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, barrier: Barrier
) -> None:
    barrier.hold(1, "first")
    # Each needs 3 MiB, and for the trajectory the first, which is longer, 18 MiB.
    monkeypatch.setattr(runs, "Budget", lambda: Budget(lambda: Memory(24 * MIB, 24 * MIB), lambda: 0))
    with running_server(tmp_path) as server, stub_of(server) as stub:
        create(stub, "first", 1000, 1_000_000)
        create(stub, "second", 1000, 2)
        first = start_worker(server.address, "first")
        wait_for(lambda: get(stub, "first").progress.step > 0)
        second = start_worker(server.address, "second")

        def status(word: str) -> Callable[[], bool]:
            return lambda: word in get(stub, "second").status

        wait_for(status("waiting for memory on the server: about "))
        assert "are reserved for other jobs" in get(stub, "second").status
        assert get(stub, "second").progress.workers == 1
        stub.CancelJob(pb.CancelJobRequest(job_id="first"))
        barrier.release()
        second.join()
        first.join()
        assert get(stub, "second").state == job_pb2.JOB_STATE_SUCCEEDED
        told = [
            response.event.state_changed.job.status
            for response in stub.WatchJob(pb.WatchJobRequest(job_id="second"))
            if response.event.HasField("state_changed")
        ]
        assert sum(text.startswith("waiting for memory") for text in told) == 1


def test_a_job_that_waits_for_memory_can_be_cancelled_and_its_worker_may_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "Budget", lambda: Budget(lambda: Memory(8 * MIB, 0), lambda: 0))
    with running_server(tmp_path) as server, stub_of(server) as stub:
        create(stub, "a", 100, 1)
        workers = [start_worker(server.address, "a") for _ in range(2)]
        wait_for(lambda: get(stub, "a").status.startswith("waiting for memory"))
        job = stub.CancelJob(pb.CancelJobRequest(job_id="a")).job
        assert job.state == job_pb2.JOB_STATE_CANCELLED
        for worker in workers:
            worker.join()
