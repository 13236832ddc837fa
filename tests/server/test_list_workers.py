"""What the server tells of the workers of a job."""

import grpc
import pytest

from tests.end_to_end.barrier import Barrier
from tests.end_to_end.cluster import ThreadFleet
from tests.end_to_end.command import wait_for
from tests.server.specs import make_spec
from thalweg.server.process import Server
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub


def listed(stub: TrainingServiceStub, job: str) -> pb.ListWorkersResponse:
    return stub.ListWorkers(pb.ListWorkersRequest(job_id=job))


def test_workers_of_a_job(server: Server, stub: TrainingServiceStub, barrier: Barrier) -> None:
    barrier.hold(20)
    job = stub.CreateJob(pb.CreateJobRequest(spec=make_spec(epochs=100, batch_size=4, workers=2))).job.id
    assert listed(stub, job) == pb.ListWorkersResponse()
    with ThreadFleet(server.address, 2):
        wait_for(lambda: stub.GetJob(pb.GetJobRequest(job_id=job)).job.progress.step == 20)
        told = wait_for(lambda: (found := listed(stub, job)).total == 2 and all(w.prepared for w in found.workers) and found)
        assert {worker.name for worker in told.workers} == {"worker-1", "worker-2"}
        assert sum(worker.share for worker in told.workers) == pytest.approx(1.0)
        assert told.seconds_per_step > 0
        # Each of them has its half of the step at which they are held.
        assert all(worker.tasks for worker in told.workers)
        assert all(0 < worker.busy <= 1 for worker in told.workers)
        assert any(worker.microbatches_per_second > 0 for worker in told.workers)
        stub.CancelJob(pb.CancelJobRequest(job_id=job))
        assert listed(stub, job) == pb.ListWorkersResponse()
        barrier.release()


def test_workers_of_no_job(stub: TrainingServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as error:
        listed(stub, "none")
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
