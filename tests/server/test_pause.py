"""A job that is scaled to 0 is paused: it gives up its workers and its place, and later continues as if it had not."""

import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.end_to_end.barrier import Barrier
from tests.end_to_end.cluster import ThreadFleet, running_server, stub_of, train
from tests.end_to_end.command import wait_for
from tests.end_to_end.peer import DEADLINE, HoldAfter, Peer, proxy
from tests.server.specs import make_spec
from tests.server.test_fleets import attending
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.contract.errors import ThalwegError
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub
from thalweg.workers.worker import work

SPEC = {"epochs": 60, "batch_size": 2, "microbatches": 1}


def create(stub: TrainingServiceStub, job_id: str, **training: int) -> None:
    stub.CreateJob(pb.CreateJobRequest(spec=make_spec(**SPEC | training), job_id=job_id))


def get(stub: TrainingServiceStub, job_id: str) -> job_pb2.Job:
    return stub.GetJob(pb.GetJobRequest(job_id=job_id)).job


def scale(stub: TrainingServiceStub, job_id: str, workers: int) -> pb.ScaleJobResponse:
    return stub.ScaleJob(pb.ScaleJobRequest(job_id=job_id, workers=workers))


def is_paused(job: job_pb2.Job) -> bool:
    status = f"paused; `thalweg scale {job.id} N` resumes it with N workers"
    return job.paused and job.waiting_for == job_pb2.WAITING_FOR_SCALING and job.status == status


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    with running_server(tmp_path_factory.mktemp("undisturbed")) as server:
        return str(train(server, make_spec(**SPEC)).result.weights_sha256)


def start(server: Address, job_id: str) -> list[str]:
    """A worker in a thread; gives a list that the reason it was let go for will be in."""
    reasons: list[str] = []

    def run() -> None:
        with suppress(ThalwegError):
            reasons.append(work(Endpoint(server), job_id, "w"))

    threading.Thread(target=run, daemon=True).start()
    return reasons


def test_a_paused_job_gives_up_its_workers_and_its_place_and_goes_on_later(
    tmp_path: Path, undisturbed: str, barrier: Barrier
) -> None:
    barrier.hold(11, "first")
    with running_server(tmp_path, max_running_jobs=1) as server, stub_of(server) as stub:
        create(stub, "first")
        create(stub, "second")
        let_go = start(server.address, "first")
        wait_for(lambda: get(stub, "first").progress.step > 10)
        assert "queued: " in get(stub, "second").status
        assert is_paused(scale(stub, "first", 0).job)
        barrier.release()
        assert wait_for(lambda: let_go) == ["the job is paused"]
        wait_for(lambda: get(stub, "first").progress.checkpoints.written)
        step = get(stub, "first").progress.step
        with Peer(server.address) as late:
            assert late.turned_away("first") == "job first is paused"
        # Its place is the next one's.
        start(server.address, "second")
        wait_for(lambda: get(stub, "second").state == job_pb2.JOB_STATE_SUCCEEDED)
        assert get(stub, "second").result.weights_sha256 == undisturbed
        assert is_paused(get(stub, "first"))
        assert get(stub, "first").progress.step == step
        create(stub, "third")
        with Peer(server.address) as begins:
            begins.hello("third")
            assert not scale(stub, "first", 1).job.paused
            # A job that has begun meanwhile keeps its place.
            assert "queued: " in get(stub, "first").status
        stub.CancelJob(pb.CancelJobRequest(job_id="third"))
        start(server.address, "first")
        wait_for(lambda: get(stub, "first").progress.step > step)


def test_a_job_that_was_paused_ends_as_if_it_had_not_been(tmp_path: Path, undisturbed: str) -> None:
    with running_server(tmp_path, shared_memory=False) as server, stub_of(server) as stub:
        create(stub, "a")
        for gradients in (1, 20, 30):
            hold = HoldAfter(gradients)
            with proxy(server.address, hold) as address:
                start(address, "a")
                assert hold.holding.wait(DEADLINE)
                scale(stub, "a", 0)
                hold.released.set()
                scale(stub, "a", 1)
        start(server.address, "a")
        wait_for(lambda: get(stub, "a").state == job_pb2.JOB_STATE_SUCCEEDED)
        job = get(stub, "a")
        assert job.result.weights_sha256 == undisturbed
        assert not job.paused


def test_a_paused_job_stays_so_over_a_restart_and_is_not_any_more_when_it_is_resumed(tmp_path: Path, barrier: Barrier) -> None:
    barrier.hold(11)
    with running_server(tmp_path) as server, stub_of(server) as stub:
        create(stub, "a", workers=2)
        start(server.address, "a")
        wait_for(lambda: get(stub, "a").progress.step > 10)
        scale(stub, "a", 0)
    barrier.release()
    with running_server(tmp_path) as server, stub_of(server) as stub, ThreadFleet(server.address, 2):
        assert is_paused(get(stub, "a"))
        assert get(stub, "a").spec.training.workers == 2
        stub.CancelJob(pb.CancelJobRequest(job_id="a"))
        assert not get(stub, "a").paused
        stub.ResumeJob(pb.ResumeJobRequest(job_id="a"))
        wait_for(lambda: get(stub, "a").state == job_pb2.JOB_STATE_SUCCEEDED)


def test_a_fleet_ends_the_workers_of_a_paused_job(tmp_path: Path) -> None:
    with running_server(tmp_path) as server, stub_of(server) as stub, attending(server, 2) as fleet:
        create(stub, "a", workers=2)
        fleet.told_until({"a": (2, 1)})
        scale(stub, "a", 0)
        fleet.told_until({})
        assert (
            scale(stub, "a", 8).note == "the fleets have 2 CPU slots, room for 2 of the 8 workers; more start when there is room"
        )
        fleet.told_until({"a": (2, 1)})
        assert scale(stub, "a", 2).note == ""
