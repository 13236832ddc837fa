"""TrainingService, and its jobs, as a client in any language sees them."""

import functools
import hashlib
import io
import queue
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from google.protobuf import json_format

from tests.end_to_end.cluster import running_server, stub_of, train
from tests.end_to_end.command import wait_for
from tests.end_to_end.peer import DEADLINE, Peer
from tests.end_to_end.refusals import refusal
from thalweg.contract.release import capacity
from thalweg.server.arrays.parameters import Parameters
from thalweg.server.process import Server
from thalweg.server.services import uploads
from thalweg.server.services.guarding import stalling
from thalweg.server.storage import room as room_module
from thalweg.server.storage.folder import DataFolder
from thalweg.server.storage.uploads import UploadFiles
from thalweg.v1 import fleet_service_pb2, fleet_service_pb2_grpc, job_pb2, parameter_service_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub

LAYOUT = job_pb2.Layout(tensors=[job_pb2.Tensor(name="0.weight", shape=[1, 2]), job_pb2.Tensor(name="0.bias", shape=[1])])
LAYOUT.dtype = "float32"
PREPARED = parameter_service_pb2.Prepared(layout=LAYOUT, train_samples=4)


def make_spec(**changes: Any) -> job_pb2.JobSpec:
    given: dict[str, Any] = {
        "model": {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"},
        "data": {"builtin": "xor"},
        "training": {"epochs": 2, "batch_size": 4, "microbatches": 1},
        "optimizer": {"sgd": {}},
    }
    return json_format.ParseDict({**given, **changes}, job_pb2.JobSpec())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running_server(tmp_path, max_upload_bytes=3 << 20) as server:
        yield server


def create(stub: TrainingServiceStub, job_id: str = "", request_id: str = "", **changes: Any) -> job_pb2.Job:
    return stub.CreateJob(pb.CreateJobRequest(spec=make_spec(**changes), job_id=job_id, request_id=request_id)).job


def events_of(stub: TrainingServiceStub, job_id: str, after: int = 0) -> list[pb.Event]:
    watching = stub.WatchJob(pb.WatchJobRequest(job_id=job_id, after_sequence=after), timeout=DEADLINE)
    return [response.event for response in watching]


def test_an_accepted_job_waits_and_says_so(stub: TrainingServiceStub) -> None:
    job = create(stub)
    assert job.id == "job-1"
    assert job.state == job_pb2.JOB_STATE_QUEUED
    assert "no fleet is connected" in job.status
    assert job.spec.training.workers == 2
    assert job.HasField("create_time")
    assert not job.HasField("start_time")
    found = stub.GetJob(pb.GetJobRequest(job_id=job.id)).job
    assert (found.id, found.spec, found.state, found.status) == (job.id, job.spec, job.state, job.status)


def test_an_accepted_job_is_on_disk(stub: TrainingServiceStub, tmp_path: Path) -> None:
    job = create(stub)
    storage = DataFolder(tmp_path)
    assert storage.job(job.id) == job
    assert storage.last_sequence(job.id) == 1
    storage.close()


def test_request_id_makes_create_job_safe_to_repeat(stub: TrainingServiceStub) -> None:
    job = create(stub, request_id="7f")
    assert create(stub, request_id="7f").id == job.id
    assert len(stub.ListJobs(pb.ListJobsRequest()).jobs) == 1
    assert len(events_of_so_far(stub, job.id)) == 1


def events_of_so_far(stub: TrainingServiceStub, job_id: str) -> list[pb.Event]:
    stub.CancelJob(pb.CancelJobRequest(job_id=job_id))
    return events_of(stub, job_id)[:-1]


def test_request_id_finds_a_job_that_has_ended(stub: TrainingServiceStub) -> None:
    job = create(stub, request_id="7f")
    stub.CancelJob(pb.CancelJobRequest(job_id=job.id))
    assert create(stub, request_id="7f").state == job_pb2.JOB_STATE_CANCELLED


def test_simultaneous_calls_with_one_request_id_create_one_job(stub: TrainingServiceStub) -> None:
    calls = [stub.CreateJob.future(pb.CreateJobRequest(spec=make_spec(), request_id="7f")) for _ in range(20)]
    assert {call.result().job.id for call in calls} == {"job-1"}


def test_jobs_are_listed_in_pages_the_newest_first(stub: TrainingServiceStub) -> None:
    for _ in range(7):
        create(stub)
    found, token, pages = [], "", 0
    while pages == 0 or token:
        page = stub.ListJobs(pb.ListJobsRequest(page_size=3, page_token=token))
        found += [job.id for job in page.jobs]
        token, pages = page.next_page_token, pages + 1
    assert found == [f"job-{number}" for number in range(7, 0, -1)]
    assert pages == 3


def test_the_last_page_says_that_it_is_the_last(stub: TrainingServiceStub) -> None:
    assert stub.ListJobs(pb.ListJobsRequest()) == pb.ListJobsResponse()
    for _ in range(4):
        create(stub)
    page = stub.ListJobs(pb.ListJobsRequest(page_size=2))
    page = stub.ListJobs(pb.ListJobsRequest(page_size=2, page_token=page.next_page_token))
    assert [job.id for job in page.jobs] == ["job-2", "job-1"]
    assert page.next_page_token == ""


def test_a_page_of_great_jobs_fits_a_message(stub: TrainingServiceStub) -> None:
    for _ in range(50):
        create(stub, data={"builtin": "x" * 100_000})
    found, token = [], "first"
    while token:
        page = stub.ListJobs(pb.ListJobsRequest(page_size=1000, page_token="" if token == "first" else token))
        assert page.ByteSize() < 4 << 20
        found += [job.id for job in page.jobs]
        token = page.next_page_token
    assert found == [f"job-{number}" for number in range(50, 0, -1)]


def test_a_cancelled_job_has_ended_and_stays_so(stub: TrainingServiceStub) -> None:
    job = create(stub)
    cancelled = stub.CancelJob(pb.CancelJobRequest(job_id=job.id)).job
    assert cancelled.state == job_pb2.JOB_STATE_CANCELLED
    assert cancelled.HasField("end_time")
    assert not cancelled.HasField("result")
    assert stub.CancelJob(pb.CancelJobRequest(job_id=job.id)).job == cancelled
    assert events_of(stub, job.id)[-1].state_changed.job == cancelled


def test_simultaneous_cancels_end_a_job_once(stub: TrainingServiceStub) -> None:
    job = create(stub)
    calls = [stub.CancelJob.future(pb.CancelJobRequest(job_id=job.id)) for _ in range(20)]
    assert {call.result().job.state for call in calls} == {job_pb2.JOB_STATE_CANCELLED}
    assert [event.state_changed.job.state for event in events_of(stub, job.id)] == [
        job_pb2.JOB_STATE_QUEUED,
        job_pb2.JOB_STATE_CANCELLED,
    ]


def test_a_deleted_job_is_gone(server: Server, stub: TrainingServiceStub, tmp_path: Path) -> None:
    job = train(server, make_spec())
    assert (tmp_path / "jobs" / job.id).exists()
    stub.DeleteJob(pb.DeleteJobRequest(job_id=job.id))
    assert refusal(lambda: stub.GetJob(pb.GetJobRequest(job_id=job.id))).reason == "JOB_NOT_FOUND"
    assert not stub.ListJobs(pb.ListJobsRequest()).jobs
    assert not (tmp_path / "jobs" / job.id).exists()
    assert create(stub).id == "job-2"


def test_scaling_is_durable_and_told(server: Server, stub: TrainingServiceStub) -> None:
    job = create(stub)
    scaled = stub.ScaleJob(pb.ScaleJobRequest(job_id=job.id, workers=5)).job
    assert scaled.spec.training.workers == 5
    assert stub.GetJob(pb.GetJobRequest(job_id=job.id)).job.spec.training.workers == 5
    assert events_of_so_far(stub, job.id)[-1].state_changed.job.spec.training.workers == 5


def test_a_finished_job_has_a_result_parameters_and_a_trajectory(server: Server, stub: TrainingServiceStub) -> None:
    job = train(server, make_spec())
    assert job.result.steps == 2
    assert job.result.HasField("train")
    messages = list(stub.DownloadParameters(pb.DownloadParametersRequest(job_id=job.id)))
    data = b"".join(message.data for message in messages[1:])
    header = messages[0].header
    assert header.version == 2
    assert header.sha256 == job.result.weights_sha256 == hashlib.sha256(data).hexdigest()
    way = list(stub.DownloadTrajectory(pb.DownloadTrajectoryRequest(job_id=job.id)))
    slabs = b"".join(message.data for message in way[1:])
    assert list(way[0].header.versions) == [0, 1, 2]
    assert slabs.endswith(data)
    assert len(slabs) == 3 * len(data)


def test_a_running_job_gives_the_parameters_of_its_last_step(server: Server, stub: TrainingServiceStub) -> None:
    job = create(stub)
    with Peer(server.address) as peer:
        peer.hello(job.id)
        peer.prepare(PREPARED)
        values = np.array([1, 2, 3], np.float32)
        peer.initialize(values)
        messages = list(stub.DownloadParameters(pb.DownloadParametersRequest(job_id=job.id)))
        assert messages[0].header.layout == LAYOUT
        assert messages[1].data == values.tobytes()
        call = refusal(lambda: stub.DownloadTrajectory(pb.DownloadTrajectoryRequest(job_id=job.id)))
        assert call.reason == "JOB_NOT_ENDED"


def test_a_job_that_ends_before_its_parameters_exist_has_none(server: Server, stub: TrainingServiceStub) -> None:
    job = create(stub)
    with Peer(server.address) as peer:
        peer.hello(job.id)
        peer.prepare(PREPARED)
        peer.receive("initialize")
        cancelled = stub.CancelJob(pb.CancelJobRequest(job_id=job.id)).job
        assert "CANCELLED" in peer.receive("goodbye").reason
    assert not cancelled.HasField("result")
    call = refusal(lambda: stub.DownloadParameters(pb.DownloadParametersRequest(job_id=job.id)))
    assert (call.code, call.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_PARAMETERS")
    call = refusal(lambda: stub.DownloadTrajectory(pb.DownloadTrajectoryRequest(job_id=job.id)))
    assert (call.code, call.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_TRAJECTORY")


def test_a_trajectory_that_cannot_be_kept_costs_no_weights(server: Server, stub: TrainingServiceStub, tmp_path: Path) -> None:
    (tmp_path / "jobs" / "job-1" / "trajectory.part").mkdir(parents=True)
    job = train(server, make_spec())
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED
    assert list(stub.DownloadParameters(pb.DownloadParametersRequest(job_id=job.id)))
    notices = [event.notice.text for event in events_of(stub, job.id) if event.HasField("notice")]
    assert [text.partition(":")[0] for text in notices] == ["the trajectory could not be saved"]


@pytest.mark.parametrize("work", ["keep", "apply", "promote", "chunk"])
def test_decisions_that_cannot_be_carried_out_fail_the_job(work: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Chunks of parameters are sent where memory is not shared.
    with running_server(tmp_path, shared_memory=work != "chunk") as server:
        with monkeypatch.context() as patch:
            patch.setattr(Parameters, work, lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
            job = train(server, make_spec(), workers=2)
        assert job.state == job_pb2.JOB_STATE_FAILED
        assert job.error == "internal error: MemoryError: no room"
        assert train(server, make_spec()).state == job_pb2.JOB_STATE_SUCCEEDED


def test_a_schedule_that_overflows_fails_the_job(server: Server) -> None:
    optimizer = {"sgd": {"learning_rate": 1e-300}, "schedule": {"exponential": {"gamma": 1e200}}}
    job = train(server, make_spec(optimizer=optimizer, training={"epochs": 5, "batch_size": 4}))
    assert job.state == job_pb2.JOB_STATE_FAILED
    assert "OverflowError" in job.error


def test_a_call_that_is_given_up_leaves_no_job_that_never_begins(
    stub: TrainingServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    inserting, go_on, insert = threading.Event(), threading.Event(), DataFolder.insert_job

    def slow(*arguments: Any) -> Any:
        inserted = insert(*arguments)
        inserting.set()
        assert go_on.wait(DEADLINE)
        return inserted

    monkeypatch.setattr(DataFolder, "insert_job", slow)
    call = stub.CreateJob.future(pb.CreateJobRequest(spec=make_spec(), request_id="once"))
    assert inserting.wait(DEADLINE)
    call.cancel()
    go_on.set()
    job = create(stub, request_id="once")
    assert job.id == "job-1"
    assert stub.CancelJob(pb.CancelJobRequest(job_id=job.id)).job.state == job_pb2.JOB_STATE_CANCELLED


def test_why_a_job_waits_follows_the_fleets(server: Server, stub: TrainingServiceStub) -> None:
    job = create(stub, training={"threads_per_worker": 3})
    capacities: queue.SimpleQueue[fleet_service_pb2.AttendRequest | None] = queue.SimpleQueue()
    with grpc.insecure_channel(str(server.address)) as channel:
        told = fleet_service_pb2_grpc.FleetServiceStub(channel).Attend(iter(capacities.get, None))
        capacities.put(fleet_service_pb2.AttendRequest(capacity=capacity("small", 2)))
        next(told)
        status = stub.GetJob(pb.GetJobRequest(job_id=job.id)).job.status
        assert status == "waiting for workers: no fleet has the 3 CPU slots that each worker needs"
        capacities.put(None)
        assert list(told) == []
    assert "no fleet is connected" in stub.GetJob(pb.GetJobRequest(job_id=job.id)).job.status


def test_a_job_that_is_ending_takes_no_more_workers_and_tells_no_more(
    server: Server, stub: TrainingServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = create(stub)
    failed, room = threading.Event(), threading.Event()
    record = DataFolder.record

    def full_at_first(storage: DataFolder, events: Any) -> None:
        failed.set()
        if not room.is_set():
            raise sqlite3.OperationalError("database or disk is full")
        record(storage, events)

    monkeypatch.setattr(room_module, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(DataFolder, "record", full_at_first)
    cancelling = stub.CancelJob.future(pb.CancelJobRequest(job_id=job.id))
    assert failed.wait(DEADLINE)
    with Peer(server.address) as peer:
        assert "there is no job" in peer.turned_away(job.id)
    told = refusal(cancelling.result)
    assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")
    assert "database or disk is full. The job is ended; its end is recorded as soon as there is disk space." in told.message
    scaling = stub.ScaleJob.future(pb.ScaleJobRequest(job_id=job.id, workers=3))
    assert refusal(scaling.result).reason == "STORAGE_FULL"
    full = stub.GetJob(pb.GetJobRequest(job_id=job.id)).job
    assert full.state == job_pb2.JOB_STATE_QUEUED
    assert "in memory until there is disk space" in full.status
    room.set()
    wait_for(lambda: stub.GetJob(pb.GetJobRequest(job_id=job.id)).job.state == job_pb2.JOB_STATE_CANCELLED)
    assert stub.CancelJob(pb.CancelJobRequest(job_id=job.id)).job.state == job_pb2.JOB_STATE_CANCELLED
    assert refusal(lambda: stub.ScaleJob(pb.ScaleJobRequest(job_id=job.id, workers=3))).reason == "JOB_ENDED"
    assert [event.WhichOneof("kind") for event in events_of(stub, job.id)] == ["state_changed"] * 2
    stub.DeleteJob(pb.DeleteJobRequest(job_id=job.id))
    assert train(server, make_spec()).state == job_pb2.JOB_STATE_SUCCEEDED


NOT_FOUND = {
    "GetJob": pb.GetJobRequest,
    "CancelJob": pb.CancelJobRequest,
    "DeleteJob": pb.DeleteJobRequest,
    "WatchJob": pb.WatchJobRequest,
    "DownloadParameters": pb.DownloadParametersRequest,
    "DownloadTrajectory": pb.DownloadTrajectoryRequest,
}


@pytest.mark.parametrize("job_id", ["", "nobody", "../jobs", "'; DROP TABLE jobs"])
def test_a_job_that_does_not_exist_is_not_found(stub: TrainingServiceStub, job_id: str) -> None:
    calls: list[Any] = [lambda name=name, make=make: getattr(stub, name)(make(job_id=job_id)) for name, make in NOT_FOUND.items()]
    calls.append(lambda: stub.ScaleJob(pb.ScaleJobRequest(job_id=job_id, workers=1)))
    for call in calls:
        refused = refusal(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
        assert refused.metadata == {"job": job_id}


@pytest.mark.parametrize("job_id", ["a" * 100_000, "ä" * 100_000, "\U0001f4a5" * 100_000])
def test_a_status_fits_a_trailer_however_much_was_asked(stub: TrainingServiceStub, job_id: str) -> None:
    refused = refusal(lambda: stub.GetJob(pb.GetJobRequest(job_id=job_id)))
    assert refused.reason == "JOB_NOT_FOUND"
    assert refused.metadata["job"].endswith("...")


def test_a_taken_id_is_refused(stub: TrainingServiceStub) -> None:
    create(stub, job_id="mine")
    refused = refusal(lambda: create(stub, job_id="mine"))
    assert refused.code is grpc.StatusCode.ALREADY_EXISTS
    assert (refused.reason, refused.metadata) == ("JOB_EXISTS", {"job": "mine"})


def test_a_job_that_has_ended_is_not_scaled(stub: TrainingServiceStub) -> None:
    job = create(stub)
    stub.CancelJob(pb.CancelJobRequest(job_id=job.id))
    refused = refusal(lambda: stub.ScaleJob(pb.ScaleJobRequest(job_id=job.id, workers=1)))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (refused.reason, refused.metadata) == ("JOB_ENDED", {"job": job.id, "state": "CANCELLED"})


def test_a_job_that_has_not_ended_is_not_deleted(stub: TrainingServiceStub) -> None:
    job = create(stub)
    refused = refusal(lambda: stub.DeleteJob(pb.DeleteJobRequest(job_id=job.id)))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (refused.reason, refused.metadata) == ("JOB_NOT_ENDED", {"job": job.id})


def test_a_job_without_workers_has_no_parameters(stub: TrainingServiceStub) -> None:
    job = create(stub)
    refused = refusal(lambda: stub.DownloadParameters(pb.DownloadParametersRequest(job_id=job.id)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_PARAMETERS")


def wrong(**changes: Any) -> pb.CreateJobRequest:
    return pb.CreateJobRequest(spec=make_spec(**changes))


INVALID: list[tuple[str, Any, list[str]]] = [
    ("CreateJob", pb.CreateJobRequest(), ["model", "data", "optimizer"]),
    ("CreateJob", wrong(seed=-1, training={"batch_size": 0}), ["seed", "training.batch_size"]),
    ("CreateJob", wrong(model={"layers": [{"dense": {}}], "loss": "x"}), ["model.layers[0].dense.units", "model.loss"]),
    ("CreateJob", wrong(data={"builtin": "x" * 200_000}), ["spec"]),
    ("CreateJob", pb.CreateJobRequest(spec=make_spec(), job_id="../a"), ["job_id"]),
    ("CreateJob", pb.CreateJobRequest(spec=make_spec(), request_id="a b"), ["request_id"]),
    ("CreateJob", pb.CreateJobRequest(spec=make_spec(), request_id="x" * 129), ["request_id"]),
    ("ScaleJob", pb.ScaleJobRequest(job_id="job-1", workers=4_000_000_000), ["workers"]),
    ("ListJobs", pb.ListJobsRequest(page_token="x"), ["page_token"]),
    ("ListJobs", pb.ListJobsRequest(page_token="9" * 30), ["page_token"]),
    ("GetUpload", pb.GetUploadRequest(sha256="../x"), ["sha256"]),
    ("UploadData", iter([]), ["header.sha256"]),
    ("UploadData", iter([pb.UploadDataRequest(data=b"x")]), ["header.sha256"]),
    ("UploadData", iter([pb.UploadDataRequest(header=pb.UploadHeader(sha256="../x"))]), ["header.sha256"]),
]


def test_an_invalid_argument_is_named(stub: TrainingServiceStub) -> None:
    create(stub)
    for method, request, fields in INVALID:
        refused = refusal(lambda method=method, request=request: getattr(stub, method)(request))  # type: ignore[misc]
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT, method
        assert (refused.reason, refused.fields) == ("INVALID_ARGUMENT", fields), method
        assert all(field in refused.message for field in fields)
    assert len(stub.ListJobs(pb.ListJobsRequest()).jobs) == 1


def test_many_mistakes_still_fit_a_status(stub: TrainingServiceStub) -> None:
    spec = make_spec(model={"layers": [{"dense": {"units": 2_000_000}}] * 1000, "loss": "mean_squared_error"})
    refused = refusal(lambda: stub.CreateJob(pb.CreateJobRequest(spec=spec)))
    assert refused.reason == "INVALID_ARGUMENT"
    assert refused.fields[0] == "model.layers[0].dense.units"
    assert "more mistakes" in refused.message


def test_watching_goes_on_behind_any_number(server: Server, stub: TrainingServiceStub) -> None:
    job = train(server, make_spec())
    events = events_of(stub, job.id)
    last = len(events)
    assert [event.sequence for event in events] == list(range(1, last + 1))
    assert events[-1].state_changed.job == job
    assert events_of(stub, job.id, after=3) == events[3:]
    for after in (last, last + 1, (1 << 64) - 1):
        assert events_of(stub, job.id, after) == []


def test_many_watch_one_job_and_hear_the_same(server: Server, stub: TrainingServiceStub) -> None:
    job = create(stub, job_id="watched")
    heard: dict[int, list[pb.Event]] = {}
    listening = [threading.Thread(target=lambda i=i: heard.update({i: events_of(stub, job.id)})) for i in range(5)]
    for thread in listening:
        thread.start()
    stub.CancelJob(pb.CancelJobRequest(job_id=job.id))
    for thread in listening:
        thread.join()
    assert len(heard) == 5
    assert all(events == heard[0] for events in heard.values())


def upload(stub: TrainingServiceStub, content: bytes, sha256: str = "", size: int | None = None, part: int = 1 << 20) -> str:
    sha256 = sha256 or hashlib.sha256(content).hexdigest()
    header = pb.UploadHeader(sha256=sha256, size=len(content) if size is None else size)
    parts = [pb.UploadDataRequest(data=content[i : i + part]) for i in range(0, len(content), part)]
    return stub.UploadData(iter([pb.UploadDataRequest(header=header), *parts])).sha256


def download(stub: TrainingServiceStub, sha256: str) -> bytes:
    return b"".join(message.data for message in stub.DownloadData(pb.DownloadDataRequest(sha256=sha256)))


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1, 3 << 20])
def test_an_upload_comes_back_as_it_was(stub: TrainingServiceStub, size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    sha256 = upload(stub, content)
    assert download(stub, sha256) == content
    assert upload(stub, content) == sha256


def left_behind(folder: Path) -> list[str]:
    return [path.name for path in (folder / "uploads").iterdir()]


def test_an_upload_that_is_there_ends_at_once(stub: TrainingServiceStub) -> None:
    sha256 = upload(stub, b"content")
    header = pb.UploadHeader(sha256=sha256, size=7)
    assert stub.UploadData(iter([pb.UploadDataRequest(header=header)])).sha256 == sha256


@pytest.mark.parametrize(
    ("content", "sha256", "size", "field"),
    [(b"abc", "0" * 64, 3, "header.sha256"), (b"abc", "", 2, "data")],
)
def test_an_upload_that_is_not_what_it_says_is_not_kept(
    stub: TrainingServiceStub, tmp_path: Path, content: bytes, sha256: str, size: int, field: str
) -> None:
    refused = refusal(lambda: upload(stub, content, sha256, size, part=1))
    assert (refused.reason, refused.fields) == ("INVALID_ARGUMENT", [field])
    assert left_behind(tmp_path) == []


def test_an_upload_that_is_too_large_is_refused(stub: TrainingServiceStub, tmp_path: Path) -> None:
    refused = refusal(lambda: upload(stub, bytes((3 << 20) + 1)))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (refused.reason, refused.metadata["limit"]) == ("TOO_LARGE", "3,145,728 bytes")
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("at", ["its beginning", "its first bytes"])
def test_an_upload_that_breaks_off_is_resumed(
    stub: TrainingServiceStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    content = b"0123456789"
    sha256 = hashlib.sha256(content).hexdigest()
    begun, go_on, finish = threading.Event(), threading.Event(), threading.Event()
    receive = UploadFiles.receive

    def receive_slowly(uploads: UploadFiles, name: str, data: bytes) -> None:
        begun.set()
        go_on.wait(DEADLINE)
        receive(uploads, name, data)

    def requests() -> Iterator[pb.UploadDataRequest]:
        yield pb.UploadDataRequest(header=pb.UploadHeader(sha256=sha256, size=len(content)))
        yield pb.UploadDataRequest(data=content[:4])
        finish.wait(DEADLINE)

    if at == "its first bytes":
        go_on.set()
    with monkeypatch.context() as patch:
        patch.setattr(UploadFiles, "receive", receive_slowly)
        call = stub.UploadData.future(requests())
        assert begun.wait(DEADLINE)
        call.cancel()
        # One connection, one order: when this is answered, the server has heard of the cancellation.
        stub.GetServerInfo(pb.GetServerInfoRequest())
    go_on.set()
    finish.set()
    # Storage has one thread: a later question is answered after what the earlier call left to be done.
    there = received(stub, sha256).received
    assert there in (0, 4)
    assert resume(stub, content, there) == sha256
    assert download(stub, sha256) == content
    assert left_behind(tmp_path) == [sha256]


def received(stub: TrainingServiceStub, sha256: str) -> pb.GetUploadResponse:
    return stub.GetUpload(pb.GetUploadRequest(sha256=sha256))


def resume(stub: TrainingServiceStub, content: bytes, offset: int, end: int | None = None) -> str:
    header = pb.UploadHeader(sha256=hashlib.sha256(content).hexdigest(), size=len(content), offset=offset)
    requests = [pb.UploadDataRequest(header=header), pb.UploadDataRequest(data=content[offset:end])]
    return stub.UploadData(iter(requests)).sha256


def test_an_upload_is_resumed_where_it_ended_also_by_a_later_server(tmp_path: Path) -> None:
    content = bytes(range(256)) * 100
    sha256 = hashlib.sha256(content).hexdigest()
    with running_server(tmp_path) as server, stub_of(server) as stub:
        assert received(stub, sha256) == pb.GetUploadResponse()
        for start, end in ((0, 1000), (1000, 3000)):
            refused = refusal(functools.partial(resume, stub, content, start, end))
            assert refused.message == f"data: ended after {end} of 25600 bytes"
            assert received(stub, sha256) == pb.GetUploadResponse(received=end)
    with running_server(tmp_path) as server, stub_of(server) as stub:
        assert received(stub, sha256) == pb.GetUploadResponse(received=3000)
        assert resume(stub, content, 3000) == sha256
        assert received(stub, sha256) == pb.GetUploadResponse(whole=True)
        assert download(stub, sha256) == content
        assert left_behind(tmp_path) == [sha256]


def test_an_upload_is_not_resumed_where_it_did_not_end(stub: TrainingServiceStub) -> None:
    content = b"0123456789"
    sha256 = hashlib.sha256(content).hexdigest()
    refusal(lambda: resume(stub, content, 0, 4))
    for offset in (3, 5):
        refused = refusal(functools.partial(resume, stub, content, offset))
        assert (refused.reason, refused.fields) == ("INVALID_ARGUMENT", ["header.offset"])
    assert received(stub, sha256).received == 4
    # A client that does not ask begins anew.
    assert upload(stub, content) == sha256


def test_a_damaged_part_is_discarded_and_sent_again(stub: TrainingServiceStub, tmp_path: Path) -> None:
    content = b"0123456789"
    sha256 = hashlib.sha256(content).hexdigest()
    refusal(lambda: resume(stub, content, 0, 4))
    (tmp_path / "uploads" / f"{sha256}.part").write_bytes(b"01x3")
    refused = refusal(lambda: resume(stub, content, 4))
    assert (refused.reason, refused.fields) == ("INVALID_ARGUMENT", ["header.sha256"])
    assert left_behind(tmp_path) == []
    assert received(stub, sha256).received == 0
    assert resume(stub, content, 0) == sha256


def sending(messages: "queue.SimpleQueue[bytes | None]", sha256: str, size: int) -> Iterator[pb.UploadDataRequest]:
    """A client's messages: the header, then each as it is put into a queue, to None."""
    yield pb.UploadDataRequest(header=pb.UploadHeader(sha256=sha256, size=size))
    for data in iter(messages.get, None):
        yield pb.UploadDataRequest(data=data)


def begun(stub: TrainingServiceStub, messages: "queue.SimpleQueue[bytes | None]", content: bytes, part: Path) -> Any:
    """The call of a client whose first four bytes have arrived in a file. The others are those that are put into the queue."""
    messages.put(content[:4])
    call = stub.UploadData.future(sending(messages, hashlib.sha256(content).hexdigest(), len(content)))
    wait_for(lambda: part.exists() and part.stat().st_size == 4)
    return call


def test_two_clients_that_upload_one_file_do_not_disturb_each_other(
    stub: TrainingServiceStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first one is never silent for so long.
    monkeypatch.setattr(uploads, "_SILENT_SECONDS", DEADLINE)
    content = b"0123456789"
    sha256 = hashlib.sha256(content).hexdigest()
    part = tmp_path / "uploads" / f"{sha256}.part"
    messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    first = begun(stub, messages, content, part)
    # What the first one writes is not offered to others, nor changed by one that sends something else.
    asked = stub.GetUpload.future(pb.GetUploadRequest(sha256=sha256))
    # One connection, one order: the question is there before the next message is.
    stub.GetServerInfo(pb.GetServerInfoRequest())
    messages.put(content[4:5])
    assert asked.result(DEADLINE) == pb.GetUploadResponse()
    assert refusal(lambda: resume(stub, content, 5)).fields == ["header.offset"]
    assert refusal(lambda: upload(stub, b"abcdefghij", sha256)).fields == ["header.sha256"]
    assert upload(stub, content) == sha256
    assert part.read_bytes() == content[:5]
    messages.put(content[5:])
    messages.put(None)
    assert first.result(DEADLINE).sha256 == sha256
    assert download(stub, sha256) == content
    assert left_behind(tmp_path) == [sha256]


def test_an_upload_that_is_silent_is_continued_by_the_next_client(
    stub: TrainingServiceStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_SILENT_SECONDS", 0.2)
    content = b"0123456789"
    sha256 = hashlib.sha256(content).hexdigest()
    part = tmp_path / "uploads" / f"{sha256}.part"
    messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    silent = begun(stub, messages, content, part)
    # Both ask before either continues.
    asked = [stub.GetUpload.future(pb.GetUploadRequest(sha256=sha256)) for _ in range(2)]
    assert [call.result(DEADLINE).received for call in asked] == [4, 4]
    assert refusal(silent.result).reason == "TOO_SLOW"
    # What it still sends is not received.
    messages.put(b"x")
    messages.put(None)
    assert resume(stub, content, 4) == sha256
    assert download(stub, sha256) == content
    assert left_behind(tmp_path) == [sha256]


def test_an_upload_that_is_being_checked_is_waited_for(
    stub: TrainingServiceStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"0123456789"
    sha256 = hashlib.sha256(content).hexdigest()
    other = upload(stub, b"other")
    checking, go_on = threading.Event(), threading.Event()
    finish = UploadFiles.finish

    def finish_slowly(files: UploadFiles, name: str, sha256: str) -> bool:
        checking.set()
        go_on.wait(DEADLINE)
        return finish(files, name, sha256)

    monkeypatch.setattr(UploadFiles, "finish", finish_slowly)
    call = stub.UploadData.future(
        iter([pb.UploadDataRequest(header=pb.UploadHeader(sha256=sha256, size=10)), pb.UploadDataRequest(data=content)])
    )
    assert checking.wait(DEADLINE)
    call.cancel()
    asked = stub.GetUpload.future(pb.GetUploadRequest(sha256=sha256))
    # Others do not wait for it.
    assert download(stub, other) == b"other"
    go_on.set()
    assert asked.result(DEADLINE) == pb.GetUploadResponse(whole=True)
    assert {*left_behind(tmp_path)} == {sha256, other}


def test_an_upload_to_a_full_disk_is_refused(stub: TrainingServiceStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receive = UploadFiles.receive

    def full(uploads: UploadFiles, name: str, data: bytes) -> None:
        receive(uploads, name, data[:5])
        if data:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(UploadFiles, "receive", full)
    for size in (10, 2 << 20):
        refused = refusal(functools.partial(upload, stub, bytes(size)))
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")
        assert "No space left" in refused.message
    assert left_behind(tmp_path) == []


def test_a_damaged_upload_is_repaired_by_another(stub: TrainingServiceStub, tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    sha256 = upload(stub, content)
    (tmp_path / "uploads" / sha256).write_bytes(b"x" + content[1:])
    assert upload(stub, content) == sha256
    assert download(stub, sha256) == content
    assert left_behind(tmp_path) == [sha256]


def test_an_upload_that_stops_is_ended(stub: TrainingServiceStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalling, "STALLED_SECONDS", 0.2)
    finish = threading.Event()

    def requests() -> Iterator[pb.UploadDataRequest]:
        yield pb.UploadDataRequest(header=pb.UploadHeader(sha256="0" * 64, size=10))
        yield pb.UploadDataRequest(data=b"x")
        finish.wait(DEADLINE)

    refused = refusal(lambda: stub.UploadData(requests()))
    finish.set()
    assert (refused.code, refused.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "TOO_SLOW")
    assert left_behind(tmp_path) == [f"{'0' * 64}.part"]
    assert received(stub, "0" * 64).received == 1


def test_uploads_that_wait_for_more_hold_no_descriptor(stub: TrainingServiceStub, tmp_path: Path) -> None:
    finish = threading.Event()

    def requests(number: int) -> Iterator[pb.UploadDataRequest]:
        yield pb.UploadDataRequest(header=pb.UploadHeader(sha256=f"{number:064}", size=10))
        yield pb.UploadDataRequest(data=b"x")
        finish.wait(DEADLINE)

    def open_files() -> int:
        return sum(file.path.endswith(".part") for file in psutil.Process().open_files())

    calls = [stub.UploadData.future(requests(number)) for number in range(20)]
    wait_for(lambda: sum(path.stat().st_size for path in (tmp_path / "uploads").iterdir()) == 20)
    wait_for(lambda: open_files() == 0)
    finish.set()
    for call in calls:
        assert refusal(call.result).reason == "INVALID_ARGUMENT"


@pytest.mark.parametrize("sha256", ["", "0" * 64, "../jobs.sqlite", "0" * 63 + "/"])
def test_data_that_was_never_uploaded_is_not_found(stub: TrainingServiceStub, sha256: str) -> None:
    refused = refusal(lambda: download(stub, sha256))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "DATA_NOT_FOUND")
    assert refused.metadata == {"sha256": sha256}


def test_a_job_whose_data_was_never_uploaded_is_refused(stub: TrainingServiceStub) -> None:
    refused = refusal(lambda: create(stub, data={"npz": "a.npz", "sha256": "0" * 64}))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "DATA_NOT_FOUND")
    assert not stub.ListJobs(pb.ListJobsRequest()).jobs


def test_a_job_learns_from_uploaded_data(server: Server, stub: TrainingServiceStub) -> None:
    file = io.BytesIO()
    np.savez(file, x=np.arange(8, dtype=np.float32).reshape(4, 2), y=np.arange(4, dtype=np.float32))
    sha256 = upload(stub, file.getvalue())
    job = train(server, make_spec(data={"npz": "a.npz", "sha256": sha256}))
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error


def test_the_server_says_what_it_is(stub: TrainingServiceStub) -> None:
    info = stub.GetServerInfo(pb.GetServerInfoRequest())
    assert info.version
    assert info.max_upload_bytes == 3 << 20
    assert not info.fleets
