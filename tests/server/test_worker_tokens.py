"""Workers have tokens of their own: for one job, as long as it has not ended."""

import io
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.end_to_end.command import wait_for
from tests.end_to_end.refusals import refusal
from tests.server.specs import make_spec
from tests.server.tokens import Town, town
from thalweg.contract.endpoint import Endpoint, authorization
from thalweg.contract.errors import ThalwegError
from thalweg.contract.release import capacity
from thalweg.v1 import fleet_service_pb2, fleet_service_pb2_grpc, job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.workers.worker import work


def archive(value: float) -> bytes:
    file = io.BytesIO()
    np.savez(file, x=np.full((4, 2), value, np.float32), y=np.zeros((4, 1), np.float32))
    return file.getvalue()


@contextmanager
def allotments(place: Town, token: str) -> Iterator[Iterator[fleet_service_pb2.AttendResponse]]:
    """What a fleet is sent."""
    outbox: queue.SimpleQueue[fleet_service_pb2.AttendRequest | None] = queue.SimpleQueue()
    outbox.put(fleet_service_pb2.AttendRequest(capacity=capacity("fleet", 4)))
    with grpc.insecure_channel(str(place.server.address)) as channel:
        attend: Any = fleet_service_pb2_grpc.FleetServiceStub(channel).Attend
        call = attend(iter(outbox.get, None), metadata=authorization(token))
        try:
            yield call
        finally:
            outbox.put(None)
            call.cancel()


def allotted(place: Town, fleet: str, jobs: set[str]) -> dict[str, str]:
    """The tokens of the workers of some jobs, as a fleet is sent them."""
    with allotments(place, fleet) as responses:
        for response in responses:
            tokens = {allotment.job_id: allotment.token for allotment in response.allotments}
            if tokens.keys() >= jobs:
                return tokens
    raise AssertionError("the fleet was sent no workers")


def job(place: Town, job_id: str, value: float) -> str:
    """A job that learns from a file of its own, whose SHA-256 it gives."""
    spec = make_spec(epochs=1, batch_size=4)
    spec.data.npz, spec.data.sha256 = "data.npz", place.admin.upload(archive(value))
    place.admin.create(spec, job_id)
    return spec.data.sha256


def state(place: Town, job_id: str) -> job_pb2.JobState.ValueType:
    found: job_pb2.JobState.ValueType = place.admin.GetJob(pb.GetJobRequest(job_id=job_id)).job.state
    return found


def test_a_workers_token_opens_its_job_and_nothing_else_and_ends_with_it(tmp_path: Path) -> None:
    with town(tmp_path) as place:
        fleet = place.make("rack", "fleet").token
        ours, theirs = job(place, "ours", 1.0), job(place, "theirs", 2.0)
        tokens = allotted(place, fleet, {"ours", "theirs"})
        assert len({*tokens.values(), fleet}) == 3
        worker = place.bearer(tokens["ours"])
        assert worker.download(ours) == archive(1.0)
        assert refusal(lambda: worker.download(theirs)).reason == "DATA_NOT_FOUND"
        assert refusal(worker.listed).reason == "PERMISSION_DENIED"
        with pytest.raises(ThalwegError, match="its token is for job ours"):
            work(Endpoint(place.server.address, tokens["ours"]), "theirs", "w")
        # A fleet starts workers, and is none.
        with pytest.raises(ThalwegError, match="its role is fleet"):
            work(Endpoint(place.server.address, fleet), "ours", "w")
        assert "SUCCEEDED" in work(Endpoint(place.server.address, tokens["ours"]), "ours", "w")
        wait_for(lambda: state(place, "ours") == job_pb2.JOB_STATE_SUCCEEDED)
        assert refusal(lambda: worker.download(ours)).reason == "UNAUTHENTICATED"
        # Another job of that id is another job.
        place.admin.DeleteJob(pb.DeleteJobRequest(job_id="ours"))
        again = job(place, "ours", 1.0)
        assert refusal(lambda: worker.download(again)).reason == "UNAUTHENTICATED"
        assert place.bearer(allotted(place, fleet, {"ours"})["ours"]).download(again) == archive(1.0)


def test_a_workers_token_survives_a_restart_of_the_server(tmp_path: Path) -> None:
    with town(tmp_path) as place:
        sha256 = job(place, "long", 1.0)
        token = allotted(place, place.admin.token, {"long"})["long"]
    with town(tmp_path) as place:
        assert place.bearer(token).download(sha256) == archive(1.0)
        assert allotted(place, place.admin.token, {"long"})["long"] == token
        forged = f"{token[:-1]}{'0' if token[-1] != '0' else '1'}"
        assert refusal(lambda: place.bearer(forged).download(sha256)).reason == "UNAUTHENTICATED"
    # Another server has other tokens, also for a job of the same name.
    with town(tmp_path / "other") as place:
        job(place, "long", 1.0)
        assert refusal(lambda: place.bearer(token).download(sha256)).reason == "UNAUTHENTICATED"
