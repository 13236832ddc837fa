"""A job that takes the server with it again and again is set aside; a server that stops keeps what its jobs have learnt."""

from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.cluster import running_server, stub_of
from tests.end_to_end.command import wait_for
from tests.end_to_end.peer import Peer
from tests.end_to_end.test_restart import events_of, get, serving
from tests.server.test_training_service import PREPARED, create
from thalweg.server.driving.lifecycle.recovery import MAX_DEATHS
from thalweg.v1 import job_pb2
from thalweg.v1 import parameter_service_pb2 as wire
from thalweg.v1 import training_service_pb2 as pb


def die_with(data: Path, job_id: str, checkpoint_seconds: float = 1000.0) -> None:
    """The server is killed while a job runs."""
    with serving(data, checkpoint_seconds) as server, Peer(server.address) as peer:
        if not server.stub.ListJobs(pb.ListJobsRequest()).jobs:
            for each in (job_id, "waiting"):
                create(server.stub, job_id=each)
        peer.hello(job_id)
        peer.prepare(PREPARED)
        wait_for(lambda: get(server.stub, job_id).state == job_pb2.JOB_STATE_RUNNING)
        server.kill()


def answer(peer: Peer, task: wire.DifferentiateTask) -> None:
    """Sends a gradient of zeros."""
    zeros = np.zeros(3, np.float32).tobytes()
    where = {"version": task.version, "step": task.step, "level": task.level, "index": task.index}
    peer.send(wire.WorkRequest(gradient=wire.GradientChunk(data=zeros, sums=wire.Sums(loss=1.0, samples=4), **where)))


def test_a_job_that_runs_at_every_death_of_the_server_is_set_aside(tmp_path: Path) -> None:
    for _ in range(MAX_DEATHS):
        die_with(tmp_path, "deadly")
    with running_server(tmp_path) as server, stub_of(server) as stub:
        job = get(stub, "deadly")
        assert job.state == job_pb2.JOB_STATE_FAILED
        assert f"the server died {MAX_DEATHS} times in a row while this job ran" in job.error
        assert get(stub, "waiting").state == job_pb2.JOB_STATE_QUEUED
        events = events_of(stub, "deadly")
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert stub.ResumeJob(pb.ResumeJobRequest(job_id="deadly")).job.state == job_pb2.JOB_STATE_QUEUED
    # By hand, it has all its tries again.
    for _ in range(MAX_DEATHS - 1):
        die_with(tmp_path, "deadly")
    with running_server(tmp_path) as server, stub_of(server) as stub:
        assert get(stub, "deadly").state == job_pb2.JOB_STATE_QUEUED


@pytest.mark.parametrize("reprieve", ["a clean stop", "a checkpoint"])
def test_deaths_count_only_in_a_row(tmp_path: Path, reprieve: str) -> None:
    for _ in range(MAX_DEATHS - 1):
        die_with(tmp_path, "running")
    if reprieve == "a checkpoint":
        with serving(tmp_path, 0.0) as dying, Peer(dying.address) as peer:
            peer.hello("running")
            peer.prepare(PREPARED)
            task = peer.initialize(np.array([1, 2, 3], np.float32))
            answer(peer, task)
            wait_for(lambda: get(dying.stub, "running").progress.checkpoints.written)
            dying.kill()
    else:
        with running_server(tmp_path):
            pass
    for _ in range(MAX_DEATHS - 1):
        die_with(tmp_path, "running")
    with running_server(tmp_path) as server, stub_of(server) as stub:
        assert get(stub, "running").state == job_pb2.JOB_STATE_QUEUED


def test_a_server_that_stops_keeps_what_its_jobs_have_learnt(tmp_path: Path) -> None:
    with running_server(tmp_path, checkpoint_seconds=1000.0) as server, stub_of(server) as stub:
        job = create(stub)
        with Peer(server.address) as peer:
            peer.hello(job.id)
            peer.prepare(PREPARED)
            task = peer.initialize(np.array([1, 2, 3], np.float32))
            answer(peer, task)
            peer.receive("differentiate")
            server.stop()
    with running_server(tmp_path) as server, stub_of(server) as stub:
        assert "continues from step 1" in get(stub, job.id).status
        header, *parts = stub.DownloadParameters(pb.DownloadParametersRequest(job_id=job.id))
        assert header.header.version == 1
        assert np.frombuffer(b"".join(part.data for part in parts), np.float32).tolist() == [1, 2, 3]


def test_an_interrupted_job_gives_what_its_last_checkpoint_holds(tmp_path: Path) -> None:
    test_a_server_that_stops_keeps_what_its_jobs_have_learnt(tmp_path)
    with running_server(tmp_path, resume_unfinished=False) as server, stub_of(server) as stub:
        assert get(stub, "job-1").state == job_pb2.JOB_STATE_FAILED
        header = next(iter(stub.DownloadParameters(pb.DownloadParametersRequest(job_id="job-1")))).header
        assert header.version == 1
