"""A job whose workers crash at every start fails, and says why."""

import queue
from typing import Any

import grpc

from tests.end_to_end.command import wait_for
from tests.server.test_training_service import make_spec
from thalweg.server.coordinator import MOST_CRASHES
from thalweg.server.service import Server
from thalweg.v1 import fleet_service_pb2 as fleets
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.fleet_service_pb2_grpc import FleetServiceStub
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub


def test_a_job_whose_workers_crash_at_every_start_fails(server: Server, stub: TrainingServiceStub) -> None:
    job_id = stub.CreateJob(pb.CreateJobRequest(spec=make_spec())).job.id
    outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    outbox.put(fleets.AttendRequest(capacity=fleets.Capacity(name="spare", slots=1)))

    def get() -> job_pb2.Job:
        return stub.GetJob(pb.GetJobRequest(job_id=job_id)).job

    with grpc.insecure_channel(str(server.address)) as channel:
        call = FleetServiceStub(channel).Attend(iter(outbox.get, None))
        assert next(call).allotments[0].job_id == job_id
        lost = fleets.WorkerExited(job_id=job_id, problem="lost the server", crashed=False)
        crash = fleets.WorkerExited(job_id=job_id, problem="its process died", crashed=True)
        for exited in (*[lost] * MOST_CRASHES, *[crash] * (MOST_CRASHES - 1)):
            outbox.put(fleets.AttendRequest(worker_exited=exited))

        def notices() -> int:
            watching = stub.WatchJob(pb.WatchJobRequest(job_id=job_id))
            for count, response in enumerate((each for each in watching if each.event.HasField("notice")), 1):
                if count == 2 * MOST_CRASHES - 1:
                    watching.cancel()
                    return response.event.notice.text.count("process died")
            raise AssertionError("the job has ended")

        assert notices() == 1
        assert get().state == job_pb2.JOB_STATE_QUEUED
        outbox.put(fleets.AttendRequest(worker_exited=crash))
        job = wait_for(lambda: get() if get().state == job_pb2.JOB_STATE_FAILED else None)
        assert (
            job.error
            == f"{MOST_CRASHES} workers in a row ended before they contributed anything; the last one said: its process died"
        )
        outbox.put(None)
