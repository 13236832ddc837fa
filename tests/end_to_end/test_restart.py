"""An accepted job is never lost: a server that was killed while it trains resumes it, and it ends with the same bits."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from threadpoolctl import threadpool_limits

from tests.end_to_end.cluster import running_server, stub_of
from tests.end_to_end.command import wait_for
from tests.end_to_end.peer import DEADLINE, HoldAfter, Peer, proxy
from tests.end_to_end.reference import reference
from tests.end_to_end.test_lost_workers import make_spec
from tests.server.test_training_service import PREPARED
from tests.server.test_training_service import make_spec as make_small_spec
from thalweg.contract import layout as layouts
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.contract.errors import ThalwegError
from thalweg.server import validation
from thalweg.server.settings import CHECKPOINT_SECONDS
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub
from thalweg.workers.worker import work

_SERVE = """
import signal, sys
from pathlib import Path
from thalweg.contract.endpoint import Address
from thalweg.server.process import Server, ServerConfig


# Workers are held up on their streams.
settings = {"checkpoint_seconds": float(sys.argv[2]), "shared_memory": False, "allow_code": True}
config = ServerConfig(Address("127.0.0.1", 0), Path(sys.argv[1]), **settings)
print(Server(config).start().port, flush=True)
signal.pause()
"""


class ServerProcess:
    """A server in a process of its own."""

    def __init__(self, data: Path, checkpoint_seconds: float) -> None:
        command = [sys.executable, "-c", _SERVE, str(data), str(checkpoint_seconds)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.address = Address("127.0.0.1", int(self._process.stdout.readline()))
        self._channel = grpc.insecure_channel(str(self.address))
        self.stub = TrainingServiceStub(self._channel)

    def kill(self) -> None:
        """Kills the process, which can do nothing about it."""
        self._channel.close()
        self._process.kill()
        self._process.wait()


@contextmanager
def serving(data: Path, checkpoint_seconds: float = CHECKPOINT_SECONDS) -> Iterator[ServerProcess]:
    server = ServerProcess(data, checkpoint_seconds)
    try:
        yield server
    finally:
        server.kill()


def events_of(stub: TrainingServiceStub, job_id: str, after: int = 0) -> list[pb.Event]:
    watching = stub.WatchJob(pb.WatchJobRequest(job_id=job_id, after_sequence=after), timeout=DEADLINE)
    return [response.event for response in watching]


def events_so_far(stub: TrainingServiceStub, job_id: str) -> list[pb.Event]:
    """The events of a job up to the first that reports a step."""
    events: list[pb.Event] = []
    for response in stub.WatchJob(pb.WatchJobRequest(job_id=job_id), timeout=DEADLINE):
        events += [response.event]
        if response.event.HasField("steps_taken"):
            break
    return events


def get(stub: TrainingServiceStub, job_id: str) -> job_pb2.Job:
    return stub.GetJob(pb.GetJobRequest(job_id=job_id)).job


def create(stub: TrainingServiceStub, job_id: str, spec: job_pb2.JobSpec) -> None:
    stub.CreateJob(pb.CreateJobRequest(spec=spec, job_id=job_id, request_id=f"request-{job_id}"))


@contextmanager
def held_in_midst(server: Address, job_id: str, gradients: int) -> Iterator[None]:
    """A worker that has sent a number of gradient messages and sends no more."""
    hold = HoldAfter(gradients)

    def lost() -> None:
        with suppress(ThalwegError):
            work(Endpoint(address), job_id, "held")

    with proxy(server, hold) as address:
        worker = threading.Thread(target=lost)
        worker.start()
        assert hold.holding.wait(DEADLINE)
        yield
        hold.released.set()
        worker.join()


@pytest.mark.parametrize(
    ("variant", "gradients", "checkpoint_seconds"),
    [
        ("unclipped", 1, 0.0),
        ("unclipped", 1, 1000.0),
        ("unclipped", 9, 0.0),
        ("unclipped", 9, 1000.0),
        ("lamb, groups", 9, 0.0),
    ],
)
def test_a_killed_server_takes_up_its_jobs_and_ends_with_the_same_bits(
    tmp_path: Path, variant: str, gradients: int, checkpoint_seconds: float
) -> None:
    spec = make_spec(variant)
    with threadpool_limits(1, "blas"):
        expected, losses = reference(validation.complete(spec))
    checkpoint = 0

    with serving(tmp_path, checkpoint_seconds) as server:
        create(server.stub, "midst", spec)
        with held_in_midst(server.address, "midst", gradients):
            before = events_so_far(server.stub, "midst")
            assert get(server.stub, "midst").progress.step == gradients
            if not checkpoint_seconds:
                checkpoint = wait_for(lambda: get(server.stub, "midst").progress.checkpoints.step)
            server.kill()

    with serving(tmp_path) as server:
        create(server.stub, "midst", spec)
        assert len(server.stub.ListJobs(pb.ListJobsRequest()).jobs) == 1
        taken_up = get(server.stub, "midst")
        assert taken_up.state == job_pb2.JOB_STATE_QUEUED
        assert "restarted" in taken_up.status
        assert taken_up.HasField("start_time") == (checkpoint > 0)
        assert taken_up.progress.step >= checkpoint
        work(Endpoint(server.address), "midst", "worker")
        events = events_of(server.stub, "midst")
        job = get(server.stub, "midst")

    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    assert job.result.weights_sha256 == layouts.digest(expected)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[: len(before)] == before
    again = next(i for i, event in enumerate(events) if "restarted" in event.state_changed.job.status)
    assert [loss for event in events for loss in event.steps_taken.losses] == losses
    if not checkpoint:
        # The time before the restart is no part of the run.
        assert job.start_time.ToNanoseconds() > events[again].time.ToNanoseconds()
    assert job.result.seconds <= (job.end_time.ToNanoseconds() - job.create_time.ToNanoseconds()) / 1e9


def test_a_job_that_has_ended_stays_as_it_is(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        for job_id in ("finished", "cancelled", "failed", "deleted", "waiting"):
            create(server.stub, job_id, make_small_spec())
        work(Endpoint(server.address), "finished", "worker")
        server.stub.CancelJob(pb.CancelJobRequest(job_id="cancelled"))
        with Peer(server.address) as peer:
            peer.hello("failed")
            peer.fail("model: is wrong")
        server.stub.CancelJob(pb.CancelJobRequest(job_id="deleted"))
        server.stub.DeleteJob(pb.DeleteJobRequest(job_id="deleted"))
        ended = ("finished", "cancelled", "failed")
        before = {job_id: (get(server.stub, job_id), events_of(server.stub, job_id)) for job_id in ended}
        parameters = list(server.stub.DownloadParameters(pb.DownloadParametersRequest(job_id="finished")))
        server.kill()

    states = [before[job_id][0].state for job_id in ended]
    assert states == [job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_CANCELLED, job_pb2.JOB_STATE_FAILED]
    with serving(tmp_path) as server:
        for job_id in ended:
            assert (get(server.stub, job_id), events_of(server.stub, job_id)) == before[job_id]
        assert list(server.stub.DownloadParameters(pb.DownloadParametersRequest(job_id="finished"))) == parameters
        listed = [job.id for job in server.stub.ListJobs(pb.ListJobsRequest()).jobs]
        assert listed == ["waiting", "failed", "cancelled", "finished"]
        work(Endpoint(server.address), "waiting", "worker")
        result = before["finished"][0].result
        assert get(server.stub, "waiting").result.weights_sha256 == result.weights_sha256


def test_an_end_is_durable_before_it_is_told(tmp_path: Path) -> None:
    """The server is killed as soon as its worker hears of the end."""
    for job_id in ("one", "two", "three"):
        with serving(tmp_path) as server:
            create(server.stub, job_id, make_small_spec())
            assert "SUCCEEDED" in work(Endpoint(server.address), job_id, "worker")
            server.kill()
        with serving(tmp_path) as server:
            job = get(server.stub, job_id)
            assert job.state == job_pb2.JOB_STATE_SUCCEEDED
            header = next(iter(server.stub.DownloadParameters(pb.DownloadParametersRequest(job_id=job_id)))).header
            assert header.sha256 == job.result.weights_sha256


def test_a_server_that_resumes_nothing_records_its_jobs_as_interrupted(tmp_path: Path) -> None:
    with running_server(tmp_path) as server, stub_of(server) as stub:
        create(stub, "running", make_small_spec())
        create(stub, "waiting", make_small_spec())
        create(stub, "cancelled", make_small_spec())
        cancelled = stub.CancelJob(pb.CancelJobRequest(job_id="cancelled")).job
        with Peer(server.address) as peer:
            peer.hello("running")
            peer.prepare(PREPARED)

    with running_server(tmp_path, resume_unfinished=False) as server, stub_of(server) as stub:
        for job_id in ("running", "waiting"):
            job = get(stub, job_id)
            assert job.state == job_pb2.JOB_STATE_FAILED
            assert job.error.startswith("interrupted")
            assert job.HasField("end_time")
            events = events_of(stub, job_id)
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            assert events[-1].state_changed.job == job
            with Peer(server.address) as peer:
                assert "there is no job" in peer.turned_away(job_id)
        assert get(stub, "cancelled") == cancelled
