"""Jobs with a time limit: they end, keep what they have, and go on to the same bits with a higher limit."""

import threading
from functools import partial
from pathlib import Path

import pytest

from tests.data.make_data_folder import spec
from tests.end_to_end.cluster import running_server, stub_of
from tests.end_to_end.command import wait_for
from tests.end_to_end.peer import DEADLINE, HoldAfter, proxy
from tests.end_to_end.refusals import refusal
from tests.server.test_upgrade import get, hold_together, trained, version_of
from thalweg.contract.endpoint import Endpoint
from thalweg.server.process import Server
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub
from thalweg.workers.worker import work

STEPS = 7
# A job of 40 steps.
TRAINING = {"epochs": 10, "batch_size": 1, "microbatches": 1, "max_seconds": 3600}


def create(stub: TrainingServiceStub, job_id: str, **changes: object) -> None:
    stub.CreateJob(pb.CreateJobRequest(spec=spec(**changes), job_id=job_id))


def train(server: Server, job_id: str) -> str:
    """Works for a job to its end, and gives the SHA-256 of its parameters."""
    assert trained(server, job_id)
    with stub_of(server) as stub:
        return get(stub, job_id).result.weights_sha256


def run_out(server: Server, stub: TrainingServiceStub, job_id: str) -> job_pb2.Job:
    """Has a job take some steps, and lets its time pass then."""
    hold = HoldAfter(STEPS)
    with proxy(server.address, hold) as address:
        worker = threading.Thread(target=work, args=(Endpoint(address), job_id, "worker"))
        worker.start()
        assert hold.holding.wait(DEADLINE)
        run = server.jobs.run(job_id)
        assert run
        run.coordinator.limit.used += 3600
        wait_for(lambda: get(stub, job_id).state == job_pb2.JOB_STATE_CANCELLED)
        hold.released.set()
        worker.join()
    return get(stub, job_id)


def test_a_job_ends_at_its_limit_and_a_higher_one_takes_it_to_the_same_bits(tmp_path: Path) -> None:
    with running_server(tmp_path, shared_memory=False) as server, stub_of(server) as stub:
        create(stub, "unlimited")
        expected = train(server, "unlimited")
        create(stub, "limited", training=TRAINING)
        ended = run_out(server, stub, "limited")
        assert ended.error == ""
        assert ended.status.startswith("its time limit is reached: training.max_seconds is 3600, and it has run for 360")
        # What there is of it is kept.
        assert ended.result.steps == version_of(stub, "limited") == STEPS
    # What it has used is known after a restart.
    with running_server(tmp_path, shared_memory=False) as server, stub_of(server) as stub:
        for seconds in (None, 0.5, 3600):
            request = pb.ResumeJobRequest(job_id="limited", max_seconds=seconds)
            told = refusal(partial(stub.ResumeJob, request))
            assert told.reason == "NOT_RESUMABLE"
            assert "give a higher limit" in told.message
        wrong = refusal(lambda: stub.ResumeJob(pb.ResumeJobRequest(job_id="limited", max_seconds=-1)))
        assert wrong.reason == "INVALID_ARGUMENT"
        assert get(stub, "limited").state == job_pb2.JOB_STATE_CANCELLED
        resumed = stub.ResumeJob(pb.ResumeJobRequest(job_id="limited", max_seconds=1e6)).job
        assert resumed.spec.training.max_seconds == 1e6
        again = refusal(lambda: stub.ResumeJob(pb.ResumeJobRequest(job_id="limited", max_seconds=2e6)))
        assert again.reason == "JOB_NOT_ENDED"
        assert train(server, "limited") == expected
        hold_together(stub, "limited")


def test_a_job_is_resumed_without_a_limit(tmp_path: Path) -> None:
    with running_server(tmp_path, shared_memory=False) as server, stub_of(server) as stub:
        create(stub, "limited", training=TRAINING)
        run_out(server, stub, "limited")
        resumed = stub.ResumeJob(pb.ResumeJobRequest(job_id="limited", max_seconds=0)).job
        assert not resumed.spec.training.HasField("max_seconds")
        train(server, "limited")


def test_a_job_that_waits_for_workers_uses_nothing_of_its_limit(tmp_path: Path) -> None:
    with running_server(tmp_path, shared_memory=False) as server, stub_of(server) as stub:
        create(stub, "limited", training=TRAINING)
        run = server.jobs.run("limited")
        assert run
        assert run.coordinator.limit.used == 0
        train(server, "limited")
        assert 0 < run.coordinator.limit.used < 3600


@pytest.mark.parametrize("seconds", [0.0, -1.0, "NaN"])
def test_a_limit_is_a_positive_number(tmp_path: Path, seconds: float | str) -> None:
    with running_server(tmp_path) as server, stub_of(server) as stub:
        told = refusal(lambda: create(stub, "limited", training={"max_seconds": seconds}))
        assert told.fields == ["training.max_seconds"]
