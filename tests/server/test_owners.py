"""Jobs and uploads have owners: what others see of them, and what they cannot get by knowing an id or a SHA-256."""

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.end_to_end.refusals import refusal
from tests.server.specs import make_spec
from tests.server.tokens import Caller, Town, town
from thalweg.contract.endpoint import Endpoint
from thalweg.server.storage.folder import DataFolder
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.workers.worker import work


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with town(tmp_path_factory.mktemp("data")) as place:
        yield place


@pytest.fixture(scope="module")
def ann(place: Town) -> Caller:
    return place.make("ann", "submitter")


@pytest.fixture(scope="module")
def bob(place: Town) -> Caller:
    return place.make("bob", "submitter")


@pytest.fixture(scope="module")
def vic(place: Town) -> Caller:
    return place.make("vic", "viewer")


def archive(value: float) -> bytes:
    """The bytes of a file of data."""
    file = io.BytesIO()
    np.savez(file, x=np.full((4, 2), value, np.float32), y=np.zeros((4, 1), np.float32))
    return file.getvalue()


def spec_of(sha256: str = "", **initial: str) -> job_pb2.JobSpec:
    spec = make_spec(epochs=1, batch_size=4)
    if sha256:
        spec.data.npz, spec.data.sha256 = "data.npz", sha256
    if initial:
        spec.model.initial.MergeFrom(job_pb2.Initial(**initial))
    return spec


def reason(call: Callable[[], object]) -> str:
    return refusal(call).reason


READS = {
    "DownloadParameters": pb.DownloadParametersRequest,
    "DownloadTrajectory": pb.DownloadTrajectoryRequest,
}
LOOKS = {"GetJob": pb.GetJobRequest, "WatchJob": pb.WatchJobRequest, "GetStory": pb.GetStoryRequest}
CHANGES = {
    "CancelJob": pb.CancelJobRequest,
    "ScaleJob": pb.ScaleJobRequest,
    "ShareJob": pb.ShareJobRequest,
    "KeepJob": pb.KeepJobRequest,
    "ResumeJob": pb.ResumeJobRequest,
    "DeleteJob": pb.DeleteJobRequest,
}


@pytest.mark.parametrize("method", [*READS, *LOOKS, *CHANGES])
def test_jobs_of_others_are_not_there(place: Town, ann: Caller, bob: Caller, method: str) -> None:
    if "secret" not in ann.listed():
        assert ann.create(spec_of(), "secret").owner == "ann"
    request = {**READS, **LOOKS, **CHANGES}[method](job_id="secret")
    theirs, nobodys = refusal(lambda: getattr(bob, method)(request)), {**READS, **LOOKS, **CHANGES}[method](job_id="none")
    none = refusal(lambda: getattr(bob, method)(nobodys))
    assert (theirs.code, theirs.reason) == (none.code, none.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
    assert "secret" not in bob.listed()
    assert "secret" in ann.listed() & place.admin.listed()


def test_a_shared_job_is_read_and_not_changed(place: Town, ann: Caller, bob: Caller, vic: Caller) -> None:
    sha256 = ann.upload(archive(1.0))
    ann.create(spec_of(sha256), "open")
    work(Endpoint(place.server.address, place.admin.token), "open", "w")
    for other in (bob, vic):
        assert reason(lambda other=other: other.download(sha256)) == "DATA_NOT_FOUND"  # type: ignore[misc]
    assert reason(lambda: bob.DownloadParameters(pb.DownloadParametersRequest(job_id="open"))) == "JOB_NOT_FOUND"
    # A viewer sees it, and gets nothing of it.
    assert vic.GetJob(pb.GetJobRequest(job_id="open")).job.owner == "ann"
    assert reason(lambda: vic.DownloadParameters(pb.DownloadParametersRequest(job_id="open"))) == "PERMISSION_DENIED"
    assert ann.ShareJob(pb.ShareJobRequest(job_id="open", shared=True)).job.shared
    for other in (bob, vic):
        assert other.GetJob(pb.GetJobRequest(job_id="open")).job.shared
        assert "open" in other.listed()
        assert list(other.WatchJob(pb.WatchJobRequest(job_id="open")))
        assert next(other.DownloadParameters(pb.DownloadParametersRequest(job_id="open"))).header.sha256
        assert other.download(sha256) == archive(1.0)
    for method, request in CHANGES.items():
        refused = refusal(lambda method=method, request=request: getattr(bob, method)(request(job_id="open")))  # type: ignore[misc]
        assert (refused.reason, refused.metadata["problem"]) == ("PERMISSION_DENIED", "job open belongs to ann"), method
    # It may be the beginning of another job, whatever becomes of it.
    bob.create(spec_of(sha256), "from-data")
    bob.create(spec_of(job="open"), "from-weights")
    ann.ShareJob(pb.ShareJobRequest(job_id="open", shared=False))
    assert "open" not in bob.listed()
    assert reason(lambda: bob.create(spec_of(job="open"), "too-late")) == "INVALID_ARGUMENT"
    assert bob.download(sha256) == archive(1.0)
    assert "from-data" not in ann.listed()


def test_a_job_may_be_shared_from_the_start(ann: Caller, bob: Caller) -> None:
    assert ann.create(spec_of(), "from-the-start", shared=True).shared
    assert "from-the-start" in bob.listed()


def test_to_know_a_sha256_is_not_to_have_the_file(ann: Caller, bob: Caller, vic: Caller) -> None:
    content = archive(2.0)
    sha256 = ann.upload(content)
    assert ann.has(sha256)
    for used in (False, True):
        if used:
            ann.create(spec_of(sha256), "uses")
        assert not bob.has(sha256)
        assert reason(lambda: bob.download(sha256)) == "DATA_NOT_FOUND"
        assert reason(lambda: vic.download(sha256)) == "DATA_NOT_FOUND"
        assert reason(lambda: bob.create(spec_of(sha256), "steals")) == "DATA_NOT_FOUND"
        assert reason(lambda: bob.create(spec_of(sha256=sha256), "starts")) == "DATA_NOT_FOUND"
        # An upload that says its name and sends nothing, or something else.
        assert reason(lambda: bob.upload(content, b"")) == "INVALID_ARGUMENT"
        assert reason(lambda: bob.upload(content, bytes(len(content)))) == "INVALID_ARGUMENT"
        assert not bob.has(sha256)
    assert ann.download(sha256) == content
    # Who has it may have it.
    bob.upload(content)
    assert bob.has(sha256)
    assert bob.download(sha256) == content
    # For one owner's deletion the other does not lose it.
    ann.CancelJob(pb.CancelJobRequest(job_id="uses"))
    ann.DeleteJob(pb.DeleteJobRequest(job_id="uses"))
    assert bob.create(spec_of(sha256), "has").owner == "bob"


def test_what_has_arrived_of_a_file_is_not_completed_by_another(ann: Caller, bob: Caller) -> None:
    content = archive(3.0)
    sha256, half = hashlib.sha256(content).hexdigest(), len(content) // 2
    assert reason(lambda: ann.upload(content, content[:half])) == "INVALID_ARGUMENT"
    assert ann.GetUpload(pb.GetUploadRequest(sha256=sha256)).received == half
    assert bob.GetUpload(pb.GetUploadRequest(sha256=sha256)).received == 0
    assert refusal(lambda: bob.upload(content, content[half:], half)).fields == ["header.offset"]
    ann.upload(content, content[half:], half)
    assert ann.has(sha256)


def test_viewers_see_no_secrets_in_urls(place: Town, ann: Caller, bob: Caller, vic: Caller) -> None:
    url, public = "https://host/data.npz?signature=secret", "https://host/data.npz"
    spec = spec_of()
    spec.data.npz = url
    spec.data.test.file = url
    ann.create(spec, "signed")
    ann.CancelJob(pb.CancelJobRequest(job_id="signed"))

    def seen(by: Caller) -> set[str]:
        jobs = [by.GetJob(pb.GetJobRequest(job_id="signed")).job]
        jobs += [job for job in by.ListJobs(pb.ListJobsRequest()).jobs if job.id == "signed"]
        events = [answer.event for answer in by.WatchJob(pb.WatchJobRequest(job_id="signed"))]
        jobs += [event.state_changed.job for event in events if event.HasField("state_changed")]
        assert len(jobs) >= 4
        return {found for job in jobs for found in (job.spec.data.npz, job.spec.data.test.file)}

    assert seen(vic) == {public}
    assert seen(ann) == seen(place.admin) == {url}
    ann.ShareJob(pb.ShareJobRequest(job_id="signed", shared=True))
    assert url in seen(vic) & seen(bob)


def test_a_request_of_another_gives_no_job(ann: Caller, bob: Caller) -> None:
    assert ann.create(spec_of(), "asked", request_id="once").id == "asked"
    assert ann.create(spec_of(), "", request_id="once").id == "asked"
    assert refusal(lambda: bob.create(spec_of(), "", request_id="once")).fields == ["request_id"]


def test_another_job_of_a_name_belongs_to_its_new_bearer(place: Town, ann: Caller) -> None:
    eve = place.make("eve", "submitter")
    eve.create(spec_of(), "of-eve")
    place.revoke("eve")
    assert reason(eve.listed) == "TOKEN_ENDED"
    again = place.make("eve", "submitter")
    assert again.listed() >= {"of-eve"}
    assert again.GetJob(pb.GetJobRequest(job_id="of-eve")).job.owner == "eve"
    assert "of-eve" not in ann.listed()


def test_owners_and_sharing_survive_a_restart_and_jobs_of_before_have_no_owner(tmp_path: Path) -> None:
    with town(tmp_path) as place:
        ann, bob = place.make("ann", "submitter"), place.make("bob", "submitter")
        sha256 = ann.upload(archive(4.0))
        for name in ("hidden", "shown"):
            ann.create(spec_of(), name)
        ann.ShareJob(pb.ShareJobRequest(job_id="shown", shared=True))
        # An event that is recorded later does not undo it.
        ann.CancelJob(pb.CancelJobRequest(job_id="shown"))
    storage = DataFolder(tmp_path)
    storage.insert_job(job_pb2.Job(id="old", spec=spec_of(), state=job_pb2.JOB_STATE_CANCELLED), "", "")
    storage.close()
    with town(tmp_path) as place:
        ann, bob = place.bearer(ann.token), place.bearer(bob.token)
        assert (ann.listed(), bob.listed()) == ({"hidden", "shown"}, {"shown"})
        assert place.admin.listed() == {"hidden", "shown", "old"}
        assert ann.has(sha256)
        assert not bob.has(sha256)
        assert reason(lambda: ann.DeleteJob(pb.DeleteJobRequest(job_id="old"))) == "JOB_NOT_FOUND"
