"""Places: which jobs may have workers, on a server that runs a limited number at a time, and the status of the others."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.end_to_end.cluster import running_server, stub_of
from tests.end_to_end.peer import Peer
from tests.server.test_fleets import attending, create
from tests.server.test_training_service import PREPARED
from thalweg.server.deciding.allotment.queue import Candidate, choose
from thalweg.server.driving.jobs import Jobs
from thalweg.server.driving.lifecycle import places
from thalweg.server.process import Server
from thalweg.server.storage.folder import DataFolder
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub

LIMITS = st.integers(1, 5)
CANDIDATES = st.lists(
    st.builds(Candidate, st.uuids().map(str), st.integers(-2, 2), st.booleans(), st.booleans()),
    max_size=9,
    unique_by=lambda each: each.job_id,
)


def named(candidates: list[Candidate], jobs: dict[str, None] | dict[str, int]) -> list[Candidate]:
    return [next(each for each in candidates if each.job_id == job_id) for job_id in jobs]


@given(LIMITS, CANDIDATES)
def test_places_are_given_to_as_many_as_there_are_places(limit: int, candidates: list[Candidate]) -> None:
    places, before = choose(limit, candidates)
    able = [each.job_id for each in candidates if each.begun or each.servable]
    assert len(places) == min(limit, len(able))
    assert sorted([*places, *before]) == sorted(able)
    assert list(before.values()) == list(range(len(places), len(able)))


@given(LIMITS, CANDIDATES)
def test_a_job_that_has_begun_keeps_its_place(limit: int, candidates: list[Candidate]) -> None:
    begun = [each for each in candidates if each.begun]
    held = sum(each.begun for each in named(candidates, choose(limit, candidates).places))
    assert held == min(limit, len(begun))


@given(LIMITS, CANDIDATES)
def test_free_places_go_to_the_highest_priority_and_then_to_who_came_first(limit: int, candidates: list[Candidate]) -> None:
    queue = choose(limit, candidates)
    came = {each.job_id: number for number, each in enumerate(candidates)}

    def order(each: Candidate) -> tuple[int, int]:
        return -each.priority, came[each.job_id]

    chosen, waiting = (named(candidates, jobs) for jobs in (queue.places, queue.before))
    assert chosen == sorted(chosen, key=order)
    assert waiting == sorted(waiting, key=order)
    new = [each for each in chosen if not each.begun]
    assert all(order(a) < order(b) for a in new for b in waiting)


@given(CANDIDATES)
def test_without_a_limit_all_have_places(candidates: list[Candidate]) -> None:
    places, before = choose(0, candidates)
    assert sorted(places) == sorted(each.job_id for each in candidates)
    assert before == {}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running_server(tmp_path, max_running_jobs=2) as server:
        yield server


def get(stub: TrainingServiceStub, job_id: str) -> job_pb2.Job:
    return stub.GetJob(pb.GetJobRequest(job_id=job_id)).job


def cancel(stub: TrainingServiceStub, job_id: str) -> None:
    stub.CancelJob(pb.CancelJobRequest(job_id=job_id))


def test_the_server_says_how_many_jobs_it_runs(server: Server, stub: TrainingServiceStub, tmp_path: Path) -> None:
    assert stub.GetServerInfo(pb.GetServerInfoRequest()).max_running_jobs == 2
    with running_server(tmp_path / "other") as other, stub_of(other) as unlimited:
        assert unlimited.GetServerInfo(pb.GetServerInfoRequest()).max_running_jobs == 0


def test_a_job_that_waits_for_a_place_says_so(server: Server, stub: TrainingServiceStub) -> None:
    for job_id, priority in [("a", 0), ("b", 0), ("c", 0), ("d", 0), ("e", 1)]:
        create(stub, job_id, 1, priority=priority)
    words = "queued: {} jobs ahead (this server runs 2 at a time)"
    assert get(stub, "e").status.startswith("waiting for workers")
    assert get(stub, "b").status == words.format(2)
    listed = {job.id: job.status for job in stub.ListJobs(pb.ListJobsRequest()).jobs}
    assert [listed[job_id] for job_id in ("c", "d")] == [words.format(3), words.format(4)]
    cancel(stub, "e")
    assert get(stub, "b").status.startswith("waiting for workers")
    assert get(stub, "d").status == words.format(3)


def test_a_job_of_higher_priority_from_now_on_is_next(server: Server, stub: TrainingServiceStub) -> None:
    for job_id in ("a", "b", "c", "d"):
        create(stub, job_id, 1)
    with attending(server, 1) as fleet:
        fleet.told_until({"a": (1, 1)})
        raised = stub.ScaleJob(pb.ScaleJobRequest(job_id="d", priority=3)).job
        assert (raised.spec.priority, raised.spec.training.workers, raised.paused) == (3, 1, False)
        cancel(stub, "b")
        # Its place, and the slot of those that came before, are the job's that was last.
        fleet.told_until({"d": (1, 1)})
        assert get(stub, "c").status.startswith("queued: 2 jobs ahead")
        with pytest.raises(grpc.RpcError, match="priority: 1001 is not allowed"):
            stub.ScaleJob(pb.ScaleJobRequest(job_id="d", priority=1001))
        # Earlier clients leave out what is 0.
        assert stub.ScaleJob(pb.ScaleJobRequest(job_id="d")).job.paused


def test_a_job_is_told_at_once_that_it_waits_for_a_place(tmp_path: Path) -> None:
    with running_server(tmp_path, max_running_jobs=1) as server, stub_of(server) as stub:
        create(stub, "a", 1)
        create(stub, "b", 1)
        words = "queued: 1 job ahead (this server runs 1 at a time)"
        cancel(stub, "b")
        events = [response.event for response in stub.WatchJob(pb.WatchJobRequest(job_id="b"))]
        assert events[0].state_changed.job.status == words


def test_a_worker_of_a_job_without_a_place_is_turned_away(server: Server, stub: TrainingServiceStub) -> None:
    for job_id in ("a", "b", "c"):
        create(stub, job_id, 1)
    with Peer(server.address) as peer:
        assert peer.turned_away("c") == "job c is still queued"
    assert get(stub, "c").state == job_pb2.JOB_STATE_QUEUED
    cancel(stub, "a")
    with Peer(server.address) as peer:
        peer.hello("c")


def test_only_jobs_with_a_place_get_workers(server: Server, stub: TrainingServiceStub) -> None:
    for job_id, priority in [("a", -1), ("b", 0), ("c", 0)]:
        create(stub, job_id, 2, priority=priority)
    with attending(server, 9) as fleet:
        fleet.told_until({"b": (2, 1), "c": (2, 1)})
        cancel(stub, "c")
        assert fleet.told() == {"a": (2, 1), "b": (2, 1)}


def test_a_job_that_has_begun_keeps_its_place_from_one_of_higher_priority(server: Server, stub: TrainingServiceStub) -> None:
    create(stub, "begun", 1, priority=-5)
    create(stub, "chosen", 1)
    with Peer(server.address) as peer, attending(server, 2) as fleet:
        peer.hello("begun")
        fleet.told_until({"begun": (1, 1), "chosen": (1, 1)})
        create(stub, "urgent", 2, priority=9)
        fleet.told_until({"urgent": (2, 1)})
        assert "queued: " in get(stub, "chosen").status
        assert get(stub, "begun").state == job_pb2.JOB_STATE_RUNNING
        peer.prepare(PREPARED)
        peer.receive("initialize")


def test_a_job_that_no_fleet_could_serve_holds_no_place(server: Server, stub: TrainingServiceStub) -> None:
    for job_id in ("wide", "wider"):
        create(stub, job_id, 1, threads=8, priority=5)
    create(stub, "narrow", 1)
    assert get(stub, "narrow").status.startswith("queued: ")
    with attending(server, 4) as fleet:
        fleet.told_until({"narrow": (1, 1)})
        assert "no fleet has the 8 CPU slots" in get(stub, "wide").status
        with attending(server, 8, "great") as great:
            great.told_until({"wide": (1, 8)})


def test_jobs_that_had_begun_keep_their_places_over_a_restart(tmp_path: Path) -> None:
    with running_server(tmp_path, max_running_jobs=1) as server, stub_of(server) as stub:
        create(stub, "begun", 1, priority=-5)
        with Peer(server.address) as peer:
            peer.hello("begun")
            create(stub, "waiting", 1)
    with running_server(tmp_path, max_running_jobs=1) as server, stub_of(server) as stub:
        assert "restarted" in get(stub, "begun").status
        assert get(stub, "waiting").status.startswith("queued: ")
        with Peer(server.address) as peer:
            peer.turned_away("waiting")
        with Peer(server.address) as peer:
            peer.hello("begun")
        cancel(stub, "begun")
        with Peer(server.address) as peer:
            peer.hello("waiting")


def test_with_many_jobs_workers_are_shared_out_once_for_many_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_QUICK_SECONDS", 0.0)
    monkeypatch.setattr(places, "_ALLOT_SHARE", 1e-4)

    async def test() -> None:
        jobs = Jobs(DataFolder(tmp_path))
        allotted: list[int] = []
        jobs.places.fleets.allot = allotted.append  # type: ignore[assignment,method-assign]
        for _ in range(100):
            jobs.places.allot()
        assert len(allotted) == 1
        while len(allotted) < 2:
            await asyncio.sleep(0.001)
        await jobs.stop()

    asyncio.run(test())
