"""A full disk: jobs end nevertheless, calls are answered, deletions free space, and the server's health reports it."""

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.end_to_end.cluster import running_server, stub_of, train
from tests.end_to_end.command import wait_for
from tests.end_to_end.faults import SmallDisk, disk_problem
from tests.end_to_end.peer import DEADLINE, Peer
from tests.end_to_end.refusals import refusal
from tests.server.test_training_service import PREPARED, create, events_of, make_spec, upload
from thalweg.contract.endpoint import Endpoint
from thalweg.server.process import Server
from thalweg.server.storage import room as room_module
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub
from thalweg.workers.worker import work

pytestmark = pytest.mark.skipif(disk_problem() is not None, reason=str(disk_problem()))


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    monkeypatch.setattr(room_module, "RETRY_SECONDS", 0.05)
    with SmallDisk(tmp_path / "disk", mebibytes=16) as disk:
        yield disk


def healthy(server: Server) -> bool:
    with grpc.insecure_channel(str(server.address)) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def job_of(stub: TrainingServiceStub, job_id: str) -> job_pb2.Job:
    return stub.GetJob(pb.GetJobRequest(job_id=job_id)).job


def weights(stub: TrainingServiceStub, job_id: str) -> bytes:
    parts = list(stub.DownloadParameters(pb.DownloadParametersRequest(job_id=job_id)))
    return b"".join(part.data for part in parts)


def status_of(stub: TrainingServiceStub, job_id: str) -> str:
    return job_of(stub, job_id).status


def test_a_job_that_ends_on_a_full_disk_keeps_its_result(disk: SmallDisk) -> None:
    with running_server(disk.folder / "data") as server, stub_of(server) as stub:
        undisturbed = train(server, make_spec())
        job = create(stub)
        assert healthy(server)
        disk.fill(free=0)
        worker = threading.Thread(target=work, args=(Endpoint(server.address), job.id, "worker"))
        worker.start()
        wait_for(lambda: "in memory until there is disk space" in status_of(stub, job.id))
        wait_for(lambda: not healthy(server))
        assert str(disk.folder / "data") in status_of(stub, job.id)
        assert job_of(stub, job.id).state != job_pb2.JOB_STATE_FAILED
        disk.clear()
        worker.join()
        assert job_of(stub, job.id).state == job_pb2.JOB_STATE_SUCCEEDED
        assert job_of(stub, job.id).result.weights_sha256 == undisturbed.result.weights_sha256
        assert weights(stub, job.id) == weights(stub, undisturbed.id)
        events = events_of(stub, job.id)
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        wait_for(partial(healthy, server))


def test_calls_are_answered_on_a_full_disk(disk: SmallDisk) -> None:
    with running_server(disk.folder / "data") as server, stub_of(server) as stub:
        job, waiting = create(stub), create(stub)
        with Peer(server.address) as peer:
            peer.hello(job.id)
            peer.prepare(PREPARED)
            peer.initialize(np.array([1, 2, 3], np.float32))
            disk.fill(free=0)
            told = refusal(lambda: stub.CancelJob(pb.CancelJobRequest(job_id=job.id), timeout=DEADLINE))
            assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")
            assert str(disk.folder / "data") in told.message
            assert "The job is ended; its end is recorded as soon as there is disk space." in told.message
            # SQLite has room for some events in the log that it keeps, and then it has none.
            wait_for(lambda: scaling_is_refused(stub, waiting.id))
            assert refusal(lambda: upload(stub, bytes(1 << 20))).reason == "STORAGE_FULL"
            assert (
                refusal(lambda: stub.ResumeJob(pb.ResumeJobRequest(job_id=waiting.id), timeout=DEADLINE)).reason == "STORAGE_FULL"
            )
            disk.clear()
            assert "CANCELLED" in peer.receive("goodbye").reason
        wait_for(lambda: job_of(stub, job.id).state == job_pb2.JOB_STATE_CANCELLED)
        wait_for(partial(healthy, server))
        assert stub.ScaleJob(pb.ScaleJobRequest(job_id=waiting.id, workers=2)).job.spec.training.workers == 2
        assert weights(stub, job.id)


def scaling_is_refused(stub: TrainingServiceStub, job_id: str) -> bool:
    call = stub.ScaleJob.future(pb.ScaleJobRequest(job_id=job_id, workers=3), timeout=DEADLINE)
    return call.exception() is not None and refusal(call.result).reason == "STORAGE_FULL"


def test_deleting_makes_room_on_a_full_disk(disk: SmallDisk) -> None:
    with running_server(disk.folder / "data") as server, stub_of(server) as stub:
        done, ending = train(server, make_spec()), create(stub)
        with Peer(server.address) as peer:
            peer.hello(ending.id)
            peer.prepare(PREPARED)
            peer.initialize(np.array([1, 2, 3], np.float32))
            disk.fill(free=0)
            assert (
                refusal(lambda: stub.CancelJob(pb.CancelJobRequest(job_id=ending.id), timeout=DEADLINE)).reason == "STORAGE_FULL"
            )
            # A job that has ended, and one whose end waits for room: that is given up.
            for job_id in (done.id, ending.id):
                stub.DeleteJob(pb.DeleteJobRequest(job_id=job_id), timeout=DEADLINE)
                assert refusal(partial(job_of, stub, job_id)).reason == "JOB_NOT_FOUND"
                assert not (disk.folder / "data" / "jobs" / job_id).exists()
        disk.clear()
        wait_for(partial(healthy, server))
        assert train(server, make_spec()).state == job_pb2.JOB_STATE_SUCCEEDED


def test_a_server_that_starts_on_a_full_disk_lists_its_jobs_and_deletes_them(disk: SmallDisk) -> None:
    with running_server(disk.folder / "data") as server:
        done = train(server, make_spec())
    disk.fill(0)
    with running_server(disk.folder / "data") as server, stub_of(server) as stub:
        assert job_of(stub, done.id) == done
        assert weights(stub, done.id)
        stub.DeleteJob(pb.DeleteJobRequest(job_id=done.id))
        assert [job.id for job in stub.ListJobs(pb.ListJobsRequest()).jobs] == []
    # It starts as well if it was full all the time.
    with running_server(disk.folder / "data") as server, stub_of(server) as stub:
        assert [job.id for job in stub.ListJobs(pb.ListJobsRequest()).jobs] == []


def test_an_idle_server_is_healthy_again_when_there_is_room(disk: SmallDisk) -> None:
    with running_server(disk.folder / "data") as server, stub_of(server) as stub:
        disk.fill(free=0)
        assert refusal(lambda: upload(stub, bytes(1 << 20))).reason == "STORAGE_FULL"
        wait_for(lambda: not healthy(server))
        disk.clear()
        wait_for(partial(healthy, server))
        assert upload(stub, bytes(1 << 20))
