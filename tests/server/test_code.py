"""Jobs with code: accepted where the operator allows it, given to fleets that allow it, and run by workers alone."""

import hashlib
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from tests.end_to_end.cluster import running_server, stub_of
from tests.end_to_end.command import wait_for
from tests.end_to_end.peer import Peer
from tests.end_to_end.refusals import refusal
from tests.server.test_fleets import AttendingFleet
from tests.server.test_training_service import make_spec
from tests.workers.archives import sha256_of, zipped
from tests.workers.test_archive import Payload
from thalweg.contract.code import Use, entry_points
from thalweg.contract.endpoint import Endpoint
from thalweg.contract.release import capacity
from thalweg.contract.states import ENDED
from thalweg.server.process import Server
from thalweg.v1 import fleet_service_pb2, job_pb2
from thalweg.v1 import parameter_service_pb2 as workers
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub
from thalweg.workers.worker import work

TORCH: dict[str, Any] = {"model": {"torch": {"entrypoint": "nets_of_a_job:build"}, "loss": "model"}}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running_server(tmp_path / "server", allow_code=True) as server:
        yield server


def upload(stub: TrainingServiceStub, content: bytes) -> str:
    header = pb.UploadHeader(sha256=sha256_of(content), size=len(content))
    return stub.UploadData(iter([pb.UploadDataRequest(header=header), pb.UploadDataRequest(data=content)])).sha256


def with_code(stub: TrainingServiceStub, content: bytes, requirements: tuple[str, ...] = ()) -> job_pb2.JobSpec:
    code = {"path": "nets.py", "sha256": upload(stub, content), "requirements": list(requirements)}
    return make_spec(**TORCH, code=code)


def create(stub: TrainingServiceStub, spec: job_pb2.JobSpec, job_id: str = "own") -> job_pb2.Job:
    return stub.CreateJob(pb.CreateJobRequest(spec=spec, job_id=job_id)).job


def get(stub: TrainingServiceStub, job_id: str = "own") -> job_pb2.Job:
    return stub.GetJob(pb.GetJobRequest(job_id=job_id)).job


def marking(mark: Path) -> bytes:
    """An archive whose module writes a file when it is imported."""
    return zipped({"nets_of_a_job.py": f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"})


class Fleet(AttendingFleet):
    """A fleet that says what it allows."""

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_: object) -> None:
        self.outbox.put(None)

    def requirements(self) -> list[str]:
        """Those of the first job that it is told of."""
        return next(list(message.allotments[0].requirements) for message in self._inbox if message.allotments)

    def offer(self, name: str, *, slots: int = 2, allow_code: bool = False, allow_requirements: bool = False) -> None:
        said = capacity(name, slots, allow_code=allow_code, allow_requirements=allow_requirements)
        self.outbox.put(fleet_service_pb2.AttendRequest(capacity=said))


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(str(server.address)) as channel:
        yield channel


KINDS: list[tuple[dict[str, Any], list[Use]]] = [
    ({"torch": {"entrypoint": "a:b"}, "loss": "model"}, [Use("model.torch.entrypoint", "a:b")]),
    ({"torch": {"entrypoint": "a:b"}, "loss": "c:d"}, [Use("model.torch.entrypoint", "a:b"), Use("model.loss", "c:d")]),
    ({"jax": {"entrypoint": "a:b"}}, [Use("model.jax.entrypoint", "a:b")]),
    ({"python": {"entrypoint": "a:b"}}, [Use("model.python.entrypoint", "a:b")]),
    ({"layers": [{"relu": {}}], "loss": "c:d"}, [Use("model.loss", "c:d")]),
    ({"layers": [{"relu": {}}], "loss": "mean_squared_error"}, []),
]


@pytest.mark.parametrize(("model", "uses"), KINDS)
def test_every_entry_point_is_known(model: dict[str, Any], uses: list[Use]) -> None:
    assert entry_points(json_format.ParseDict({"model": model}, job_pb2.JobSpec())) == uses


@pytest.mark.parametrize("kind", ["torch", "jax", "python"])
def test_a_server_that_allows_no_code_accepts_none(tmp_path: Path, kind: str) -> None:
    model: dict[str, Any] = {kind: {"entrypoint": "nets:build"}} | ({"loss": "model"} if kind == "torch" else {})
    with running_server(tmp_path) as server, stub_of(server) as stub:
        refused = refusal(lambda: create(stub, make_spec(model=model)))
        assert list(stub.ListJobs(pb.ListJobsRequest()).jobs) == []
        create(stub, make_spec())
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CODE_NOT_ALLOWED")
    assert refused.metadata == {"field": f"model.{kind}.entrypoint", "entrypoint": "nets:build"}
    assert refused.message.endswith(
        "this server accepts no jobs with code; its operator can allow it: thalweg serve --allow-code"
    )


def test_code_that_was_not_uploaded_is_told(stub: TrainingServiceStub) -> None:
    spec = make_spec(**TORCH, code={"path": "nets.py", "sha256": "0" * 64})
    assert refusal(lambda: create(stub, spec)).reason == "DATA_NOT_FOUND"


def test_only_fleets_that_allow_code_get_such_jobs(stub: TrainingServiceStub, channel: grpc.Channel) -> None:
    create(stub, make_spec(**TORCH))
    create(stub, make_spec(), "plain")
    with Fleet(channel) as strict, Fleet(channel) as lax:
        strict.offer("strict")
        strict.told_until({"plain": (2, 1)})
        job = get(stub)
        assert job.waiting_for == job_pb2.WAITING_FOR_PERMISSION
        told = "waiting for workers: no fleet allows code; start one with `thalweg fleet --allow-code`"
        assert job.status == told
        note = stub.ScaleJob(pb.ScaleJobRequest(job_id="own", workers=2)).note
        assert note == told.removeprefix("waiting for workers: ")
        lax.offer("lax", allow_code=True)
        lax.told_until({"own": (2, 1)})
        assert get(stub).waiting_for == job_pb2.WAITING_FOR_WORKERS


def test_requirements_need_a_fleet_that_installs_them(stub: TrainingServiceStub, channel: grpc.Channel) -> None:
    create(stub, make_spec(**TORCH, code={"requirements": ["einops==0.8.1"]}))
    with Fleet(channel) as lax, Fleet(channel) as laxer:
        lax.offer("lax", allow_code=True)
        start = "start one with `thalweg fleet --allow-code --allow-requirements`"
        told = f"waiting for workers: no fleet installs packages for jobs (code.requirements); {start}"
        wait_for(lambda: get(stub).status == told)
        laxer.offer("laxer", allow_code=True, allow_requirements=True)
        assert laxer.requirements() == ["einops==0.8.1"]


def test_a_job_that_waits_for_permission_does_not_block_others(tmp_path: Path) -> None:
    with (
        running_server(tmp_path, allow_code=True, max_running_jobs=1) as server,
        stub_of(server) as stub,
        grpc.insecure_channel(str(server.address)) as channel,
        Fleet(channel) as strict,
    ):
        strict.offer("strict")
        create(stub, make_spec(**TORCH))
        create(stub, make_spec(), "plain")
        strict.told_until({"plain": (2, 1)})


def test_a_server_that_is_started_again_without_permission_runs_no_code(tmp_path: Path) -> None:
    with running_server(tmp_path, allow_code=True) as server, stub_of(server) as stub:
        create(stub, make_spec(**TORCH))
    with (
        running_server(tmp_path) as server,
        stub_of(server) as stub,
        grpc.insecure_channel(str(server.address)) as channel,
        Fleet(channel) as lax,
        Peer(server.address) as peer,
    ):
        lax.offer("lax", allow_code=True)
        create(stub, make_spec(), "plain")
        lax.told_until({"plain": (2, 1)})
        told = "waiting for workers: this server runs no jobs with code; restart it with `thalweg serve --allow-code`"
        assert get(stub).status == told
        assert peer.turned_away("own") == "job own has code, which this server does not allow"
    with (
        running_server(tmp_path, allow_code=True) as server,
        grpc.insecure_channel(str(server.address)) as channel,
        Fleet(channel) as lax,
    ):
        lax.offer("lax", slots=4, allow_code=True)
        lax.told_until({"own": (2, 1), "plain": (2, 1)})


def test_a_worker_without_permission_unpacks_nothing_and_the_job_waits(
    server: Server, stub: TrainingServiceStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the server says: what counts is what its own fleet's operator allows."""
    monkeypatch.setenv("THALWEG_CODE_CACHE", str(tmp_path / "cache"))
    create(stub, with_code(stub, marking(tmp_path / "mark")))
    place = workers.Place(fleet="fleet", node="one", name="one.lab")
    reason = work(Endpoint(server.address), "own", "worker", place=place)
    told = "model.torch.entrypoint: nets_of_a_job:build is code, which workers of this fleet do not run"
    assert reason.startswith(told)
    assert get(stub).state not in ENDED
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("place", ["pickle", "above", "link"])
def test_a_job_whose_archive_is_hostile_fails_and_nothing_of_it_runs(
    server: Server, stub: TrainingServiceStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("THALWEG_CODE_CACHE", str(tmp_path / "cache"))
    mark = tmp_path / "mark"
    content = {
        "pickle": pickle.dumps(Payload(mark)),
        "above": zipped({"../../../mark": b"evil", "nets_of_a_job.py": b""}),
        "link": zipped({"nets_of_a_job.py": b"/etc/passwd"}, external_attr=0o120777 << 16),
    }[place]
    create(stub, with_code(stub, content))
    work(Endpoint(server.address), "own", "worker", allow_code=True)
    job = get(stub)
    assert job.state == job_pb2.JOB_STATE_FAILED
    assert job.error.startswith("code.path: the archive of the job's code ")
    assert not mark.exists()
    assert not any(path.is_file() or path.is_symlink() for path in (tmp_path / "cache").rglob("*"))


def test_an_archive_that_was_changed_on_the_server_fails_the_job(
    server: Server, stub: TrainingServiceStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THALWEG_CODE_CACHE", str(tmp_path / "cache"))
    spec = with_code(stub, zipped({"nets_of_a_job.py": ""}))
    create(stub, spec)
    evil = marking(tmp_path / "mark")
    (tmp_path / "server" / "uploads" / spec.code.sha256).write_bytes(evil)
    work(Endpoint(server.address), "own", "worker", allow_code=True)
    found = hashlib.sha256(evil).hexdigest()
    assert f"code.sha256: the server's copy of the data is damaged: its SHA-256 is {found}" in get(stub).error
    assert not (tmp_path / "mark").exists()


def test_the_server_imports_no_code(server: Server, stub: TrainingServiceStub, tmp_path: Path) -> None:
    """Nor does anything else that only handles jobs: the module's code would write a file."""
    (tmp_path / "nets_of_a_job.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'mark')!r}).touch()\n")
    job = create(stub, with_code(stub, marking(tmp_path / "mark")))
    stub.GetJob(pb.GetJobRequest(job_id=job.id))
    stub.CancelJob(pb.CancelJobRequest(job_id=job.id))
    arguments = json.dumps({"path": str(tmp_path / "mark")})
    create(stub, make_spec(model={"python": {"entrypoint": "os:mkdir", "arguments": arguments}}), "system")
    stub.CancelJob(pb.CancelJobRequest(job_id="system"))
    assert not (tmp_path / "mark").exists()


DENSE: dict[str, Any] = {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"}
# Jobs with an entry point in each place where there can be one: its field, and the job's changes.
PLACES: dict[str, dict[str, Any]] = {
    "model.torch.entrypoint": TORCH,
    "model.jax.entrypoint": {"model": {"jax": {"entrypoint": "nets_of_a_job:build"}}},
    "model.python.entrypoint": {"model": {"python": {"entrypoint": "nets_of_a_job:build"}}},
    "model.loss": {"model": {"torch": {"entrypoint": "torch.nn:Identity"}, "loss": "nets_of_a_job:loss"}},
    "data.python.entrypoint": {"model": DENSE, "data": {"python": {"entrypoint": "nets_of_a_job:data"}}},
}


def told_of(field: str) -> str:
    """The field that is named of a job with code in a field: the first one with an entry point."""
    fields = [use.field for use in entry_points(make_spec(**PLACES[field]))]
    assert field in fields
    return fields[0]


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a module writes if anything in this process imports it, whether it is unpacked or not."""
    monkeypatch.setenv("THALWEG_CODE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "planted").mkdir()
    mark = tmp_path / "mark"
    (tmp_path / "planted" / "nets_of_a_job.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path / "planted"))
    return mark


@pytest.mark.parametrize("field", PLACES)
def test_code_in_any_place_is_refused_where_it_is_not_allowed(tmp_path: Path, mark: Path, field: str) -> None:
    with running_server(tmp_path / "strict") as server, stub_of(server) as stub:
        refused = refusal(lambda: create(stub, make_spec(**PLACES[field])))
        assert list(stub.ListJobs(pb.ListJobsRequest()).jobs) == []
        with Peer(server.address) as peer:
            assert peer.turned_away("own") == "there is no job own to work for"
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CODE_NOT_ALLOWED")
    assert refused.metadata["field"] == told_of(field)
    assert not mark.exists()


@pytest.mark.parametrize("field", PLACES)
def test_code_in_any_place_is_run_neither_by_the_server_nor_by_workers_without_permission(
    server: Server, stub: TrainingServiceStub, mark: Path, field: str
) -> None:
    # A plain archive: it would be unpacked, and imported instead of what is planted.
    spec = make_spec(**PLACES[field], code={"path": "nets.py", "sha256": upload(stub, marking(mark))})
    create(stub, spec)
    reason = work(Endpoint(server.address), "own", "worker", place=workers.Place(fleet="fleet", node="one", name="one.lab"))
    assert reason.startswith(f"{told_of(field)}: ")
    assert "is code, which workers of this fleet do not run" in reason
    assert get(stub).state not in ENDED
    stub.CancelJob(pb.CancelJobRequest(job_id="own"))
    assert not mark.exists()


@pytest.mark.parametrize("field", PLACES)
def test_a_pickle_in_place_of_an_archive_is_not_loaded_wherever_the_entry_point_is(
    server: Server, stub: TrainingServiceStub, mark: Path, field: str
) -> None:
    sha256 = upload(stub, pickle.dumps(Payload(mark)))
    create(stub, make_spec(**PLACES[field], code={"path": "nets.py", "sha256": sha256}))
    work(Endpoint(server.address), "own", "worker", allow_code=True)
    job = get(stub)
    assert job.state == job_pb2.JOB_STATE_FAILED
    assert job.error.startswith("code.path: the archive of the job's code ")
    assert not mark.exists()


@pytest.mark.parametrize(
    "requirement", ["-r /etc/passwd", "--index-url=http://evil", "evil @ file:///tmp/evil", "a; touch b", "../evil"]
)
def test_a_requirement_is_a_package_by_its_name(stub: TrainingServiceStub, requirement: str) -> None:
    refused = refusal(lambda: create(stub, make_spec(**TORCH, code={"requirements": [requirement]})))
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.fields == ["code.requirements[0]"]


def test_a_job_for_a_gpu_waits_until_a_node_has_one(server: Server, stub: TrainingServiceStub, channel: grpc.Channel) -> None:
    spec = with_code(stub, zipped({"nets_of_a_job.py": ""}))
    spec.training.resources.gpus = 0.5
    spec.training.workers = 3
    with Fleet(channel) as fleet:
        said = capacity("cpus", 8, of_nodes=[(8, 0)], allow_code=True)
        fleet.outbox.put(fleet_service_pb2.AttendRequest(capacity=said))
        create(stub, spec)
        waits = "waiting for workers: no fleet has the 1 CPU slot and 0.5 GPU on one node that each worker needs"
        wait_for(lambda: get(stub).status == waits)
        said = capacity("gpus", 10, of_nodes=[(8, 0), (2, 1)], allow_code=True)
        fleet.outbox.put(fleet_service_pb2.AttendRequest(capacity=said))
        given = next(message.allotments[0] for message in fleet._inbox if message.allotments)
        assert (given.workers, given.slots_per_worker, given.gpus_per_worker) == (2, 1, 0.5)
        note = stub.ScaleJob(pb.ScaleJobRequest(job_id="own", workers=4)).note
        assert note == "the fleets have 10 CPU slots and 1 GPU, room for 2 of the 4 workers; more start when there is room"
