"""Fleets: how workers are shared out, and that each fleet is told its whole allotment whenever it changes."""

import queue
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.end_to_end.peer import DEADLINE
from tests.server.test_training_service import make_spec
from thalweg.server.fleets import allot
from thalweg.server.run import JobRun
from thalweg.server.service import Server
from thalweg.v1 import fleet_service_pb2, fleet_service_pb2_grpc
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub

CAPACITIES = st.lists(st.integers(0, 40), max_size=6)
WISHES = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), max_size=8)


@given(CAPACITIES, WISHES)
def test_no_fleet_gives_more_than_it_has(capacities: list[int], wishes: list[tuple[int, int]]) -> None:
    for capacity, share in zip(capacities, allot(capacities, wishes), strict=True):
        assert all(workers >= 0 for workers in share)
        assert sum(workers * slots for workers, (_, slots) in zip(share, wishes, strict=True)) <= capacity


@given(CAPACITIES, WISHES)
def test_no_job_gets_more_than_it_wishes(capacities: list[int], wishes: list[tuple[int, int]]) -> None:
    shares = allot(capacities, wishes)
    for job, (workers, _) in enumerate(wishes):
        assert sum(share[job] for share in shares) <= workers


@given(CAPACITIES, WISHES)
def test_no_room_is_left_while_a_wish_is_open(capacities: list[int], wishes: list[tuple[int, int]]) -> None:
    shares = allot(capacities, wishes)
    used = [sum(w * slots for w, (_, slots) in zip(share, wishes, strict=True)) for share in shares]
    for job, (workers, slots) in enumerate(wishes):
        if sum(share[job] for share in shares) < workers:
            assert all(capacity - taken < slots for capacity, taken in zip(capacities, used, strict=True))


@given(CAPACITIES, WISHES, st.tuples(st.integers(1, 30), st.integers(1, 9)))
def test_who_comes_first_is_served_first(capacities: list[int], wishes: list[tuple[int, int]], late: tuple[int, int]) -> None:
    before = allot(capacities, wishes)
    assert [share[:-1] for share in allot(capacities, [*wishes, late])] == before


@given(CAPACITIES, WISHES)
def test_shares_follow_from_capacities_and_wishes_alone(capacities: list[int], wishes: list[tuple[int, int]]) -> None:
    given = (list(capacities), list(wishes))
    assert allot(capacities, wishes) == allot(capacities, wishes)
    assert (capacities, wishes) == given


def test_an_example() -> None:
    assert allot([4, 3], [(2, 1), (3, 2), (5, 1)]) == [[2, 1, 0], [0, 1, 1]]
    assert allot([], [(1, 1)]) == []
    assert allot([3], []) == [[]]


class AttendingFleet:
    """A fleet played by hand."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.outbox: queue.SimpleQueue[fleet_service_pb2.AttendRequest | None] = queue.SimpleQueue()
        stub = fleet_service_pb2_grpc.FleetServiceStub(channel)
        self._inbox = stub.Attend(iter(self.outbox.get, None), timeout=DEADLINE)

    def tell(self, slots: int, name: str = "fleet") -> None:
        capacity = fleet_service_pb2.Capacity(name=name, slots=slots)
        self.outbox.put(fleet_service_pb2.AttendRequest(capacity=capacity))

    def told(self) -> dict[str, tuple[int, int]]:
        """The next allotment."""
        message = next(self._inbox)
        return {each.job_id: (each.workers, each.slots_per_worker) for each in message.allotments}

    def told_until(self, expected: dict[str, tuple[int, int]]) -> None:
        """Reads allotments until one is as expected."""
        while self.told() != expected:
            pass

    def ends(self) -> None:
        assert list(self._inbox) == []


@contextmanager
def attending(server: Server, slots: int | None, name: str = "fleet") -> Iterator[AttendingFleet]:
    with grpc.insecure_channel(str(server.address)) as channel:
        fleet = AttendingFleet(channel)
        if slots is not None:
            fleet.tell(slots, name)
        yield fleet
        fleet.outbox.put(None)


def create(stub: TrainingServiceStub, job_id: str, workers: int, threads: int = 1) -> None:
    spec = make_spec(training={"workers": workers, "threads_per_worker": threads})
    stub.CreateJob(pb.CreateJobRequest(spec=spec, job_id=job_id))


def fleets_of(stub: TrainingServiceStub) -> list[tuple[str, int, int]]:
    fleets = stub.GetServerInfo(pb.GetServerInfoRequest()).fleets
    return [(fleet.name, fleet.capacity, fleet.allotted) for fleet in fleets]


def test_a_fleet_is_told_its_allotment_first(server: Server, stub: TrainingServiceStub) -> None:
    with attending(server, 4) as fleet:
        assert fleet.told() == {}
    create(stub, "a", 3, threads=2)
    with attending(server, 7) as fleet:
        fleet.told_until({"a": (3, 2)})


def test_a_fleet_is_told_when_jobs_come_scale_and_end(server: Server, stub: TrainingServiceStub) -> None:
    with attending(server, 4) as fleet:
        assert fleet.told() == {}
        create(stub, "a", 3)
        assert fleet.told() == {"a": (3, 1)}
        create(stub, "b", 3)
        assert fleet.told() == {"a": (3, 1), "b": (1, 1)}
        stub.ScaleJob(pb.ScaleJobRequest(job_id="a", workers=1))
        assert fleet.told() == {"a": (1, 1), "b": (3, 1)}
        assert fleets_of(stub) == [("fleet", 4, 4)]
        stub.CancelJob(pb.CancelJobRequest(job_id="a"))
        assert fleet.told() == {"b": (3, 1)}
        stub.CancelJob(pb.CancelJobRequest(job_id="b"))
        assert fleet.told() == {}


def test_a_fleet_is_told_when_its_capacity_changes(server: Server, stub: TrainingServiceStub) -> None:
    create(stub, "a", 5)
    with attending(server, 2) as fleet:
        fleet.told_until({"a": (2, 1)})
        fleet.tell(9)
        fleet.told_until({"a": (5, 1)})
        fleet.tell(0)
        fleet.told_until({})
        assert fleets_of(stub) == [("fleet", 0, 0)]


def test_a_fleet_that_leaves_is_replaced_by_others(server: Server, stub: TrainingServiceStub) -> None:
    create(stub, "a", 3)
    with attending(server, 9, "second") as second:
        second.told_until({"a": (3, 1)})
        with attending(server, 9, "third") as third:
            assert third.told() == {}
            second.outbox.put(None)
            second.ends()
            assert third.told() == {"a": (3, 1)}
            assert fleets_of(stub) == [("third", 9, 3)]


def test_a_fleet_whose_machine_dies_is_replaced_by_others(server: Server, stub: TrainingServiceStub) -> None:
    create(stub, "a", 3)
    channel = grpc.insecure_channel(str(server.address))
    first = AttendingFleet(channel)
    first.tell(2)
    first.told_until({"a": (2, 1)})
    with attending(server, 9, "second") as second:
        second.told_until({"a": (1, 1)})
        channel.close()
        assert second.told() == {"a": (3, 1)}
    first.outbox.put(None)


def test_a_fleet_that_has_told_no_capacity_gets_no_jobs(server: Server, stub: TrainingServiceStub) -> None:
    create(stub, "a", 3)
    with attending(server, None) as silent, attending(server, 3) as fleet:
        fleet.told_until({"a": (3, 1)})
        silent.outbox.put(None)
        silent.ends()


def test_a_job_that_no_fleet_has_room_for_waits_and_the_next_one_is_served(server: Server, stub: TrainingServiceStub) -> None:
    create(stub, "wide", 1, threads=8)
    create(stub, "narrow", 1)
    with attending(server, 4) as fleet:
        fleet.told_until({"narrow": (1, 1)})


def test_a_worker_that_ended_is_noticed(server: Server, stub: TrainingServiceStub) -> None:
    create(stub, "a", 1)
    with attending(server, 4, "mill") as fleet:
        for job_id in ("nobody", "a"):
            exited = fleet_service_pb2.WorkerExited(job_id=job_id, problem="killed " + "x" * 9999)
            fleet.outbox.put(fleet_service_pb2.AttendRequest(worker_exited=exited))
        for response in stub.WatchJob(pb.WatchJobRequest(job_id="a"), timeout=DEADLINE):
            if response.event.HasField("notice"):
                break
    assert response.event.notice.text.startswith("a worker of fleet mill ended and is replaced: killed xxx")
    assert len(response.event.notice.text) < 1100


def test_a_job_is_told_of_workers_that_crash(server: Server, stub: TrainingServiceStub, monkeypatch: pytest.MonkeyPatch) -> None:
    crashes: list[str] = []
    monkeypatch.setattr(JobRun, "worker_crashed", lambda _, problem: crashes.append(problem))
    create(stub, "a", 1)
    with attending(server, 1, "far") as fleet:
        for problem, crashed in (("no server", False), ("no luck", True)):
            exited = fleet_service_pb2.WorkerExited(job_id="a", problem=problem, crashed=crashed)
            fleet.outbox.put(fleet_service_pb2.AttendRequest(worker_exited=exited))
        events = stub.WatchJob(pb.WatchJobRequest(job_id="a"), timeout=DEADLINE)
        notices = (event.event.notice.text for event in events if event.event.HasField("notice"))
        assert next(notices) == "a worker of fleet far ended and is replaced: no server"
        assert next(notices) == "a worker of fleet far ended and is replaced: no luck"
        stub.CancelJob(pb.CancelJobRequest(job_id="a"))
    assert crashes == ["no luck"]
