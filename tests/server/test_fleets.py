"""Fleets: how workers are shared out, and that each fleet gets its whole allotment whenever it changes."""

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.end_to_end.command import wait_for
from tests.end_to_end.peer import DEADLINE, Peer
from tests.server.test_training_service import make_spec
from thalweg.contract.release import capacity, hello
from thalweg.contract.worker_size import Size
from thalweg.server.deciding.allotment import fleets
from thalweg.server.deciding.allotment.fleets import Allotments, Wish
from thalweg.server.deciding.allotment.room import Node, Room
from thalweg.server.process import Server
from thalweg.v1 import fleet_service_pb2, fleet_service_pb2_grpc, parameter_service_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub

MAX = 40
CAPACITIES = st.lists(st.integers(0, MAX), max_size=6)
WISH = st.builds(Wish, st.integers(1, 30), st.integers(1, 9), st.integers(-1, 1), st.just(0.0))
WISHES = st.lists(WISH, max_size=8)
# Workers of one width, as nearly all are.
NARROW = st.lists(st.builds(Wish, st.integers(1, 30), st.just(1), st.integers(-1, 1), st.just(0.0)), min_size=1, max_size=8)


def allot(capacities: list[int], *more: Any, **named: Any) -> Allotments:
    """Of fleets with a node each."""
    return fleets.allot([[Node(slots)] for slots in capacities], *more, **named)


def afresh(capacities: list[int], wishes: list[Wish]) -> Allotments:
    return allot(capacities, wishes, [[0] * len(wishes) for _ in capacities])


def used(share: list[int], wishes: list[Wish]) -> int:
    return sum(workers * wish.slots for workers, wish in zip(share, wishes, strict=True))


def totals(shares: Allotments, wishes: list[Wish]) -> list[int]:
    return [sum(share[job] for share in shares) for job in range(len(wishes))]


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[int], list[Wish], Allotments]:
    """Capacities, wishes, and what the fleets give now, which may be more than they have."""
    capacities, wishes = draw(CAPACITIES), draw(WISHES)
    row = st.lists(st.integers(0, 9), min_size=len(wishes), max_size=len(wishes))
    return capacities, wishes, draw(st.lists(row, min_size=len(capacities), max_size=len(capacities)))


@given(histories())
def test_no_fleet_gives_more_than_it_has(history: tuple[list[int], list[Wish], Allotments]) -> None:
    capacities, wishes, _ = history
    for most, share in zip(capacities, allot(*history), strict=True):
        assert all(workers >= 0 for workers in share)
        assert used(share, wishes) <= most


@given(histories())
def test_no_job_gets_more_than_it_wishes(history: tuple[list[int], list[Wish], Allotments]) -> None:
    _, wishes, _ = history
    for workers, wish in zip(totals(allot(*history), wishes), wishes, strict=True):
        assert workers <= wish.workers


@given(histories())
def test_no_room_is_left_while_a_wish_is_open(history: tuple[list[int], list[Wish], Allotments]) -> None:
    capacities, wishes, _ = history
    shares = allot(*history)
    for workers, wish in zip(totals(shares, wishes), wishes, strict=True):
        if workers < wish.workers:
            assert all(room - used(share, wishes) < wish.slots for room, share in zip(capacities, shares, strict=True))


@given(CAPACITIES, WISHES)
def test_what_a_job_gets_does_not_depend_on_those_of_lower_priority(capacities: list[int], wishes: list[Wish]) -> None:
    got = totals(afresh(capacities, wishes), wishes)
    above = [wish for wish in wishes if wish.priority > -1]
    assert totals(afresh(capacities, above), above) == [n for n, wish in zip(got, wishes, strict=True) if wish.priority > -1]


@given(CAPACITIES, NARROW)
def test_equals_get_as_many_as_they_wish_or_as_nobody_gets_more_of(capacities: list[int], wishes: list[Wish]) -> None:
    got = totals(afresh(capacities, wishes), wishes)
    for poor, wish in enumerate(wishes):
        for rich, other in enumerate(wishes):
            if other.priority == wish.priority and got[poor] < wish.workers:
                assert got[rich] <= got[poor] + (rich < poor)


@given(st.integers(0, MAX), WISHES)
def test_taking_a_worker_from_a_richer_equal_makes_nothing_fairer(capacity: int, wishes: list[Wish]) -> None:
    (share,) = afresh([capacity], wishes)
    room = capacity - used(share, wishes)
    for poor, wish in enumerate(wishes):
        for rich, other in enumerate(wishes):
            open_and_equal = share[poor] < wish.workers and share[rich] and other.priority == wish.priority
            if open_and_equal and room + other.slots >= wish.slots:
                assert (share[rich] - 1) * other.slots <= share[poor] * wish.slots


@given(histories())
def test_how_many_a_job_gets_depends_on_capacities_and_wishes_alone(history: tuple[list[int], list[Wish], Allotments]) -> None:
    capacities, wishes, now = history
    before = (list(capacities), list(wishes), [list(share) for share in now])
    shares = allot(capacities, wishes, now)
    assert allot(capacities, wishes, now) == shares
    assert (capacities, wishes, now) == before
    assert totals(shares, wishes) == totals(afresh(capacities, wishes), wishes)


@given(histories())
def test_nothing_moves_while_nothing_changes(history: tuple[list[int], list[Wish], Allotments]) -> None:
    capacities, wishes, _ = history
    shares = allot(*history)
    assert allot(capacities, wishes, shares) == shares


@given(CAPACITIES, NARROW, NARROW)
def test_workers_stay_where_they_are_when_jobs_come(capacities: list[int], wishes: list[Wish], more: list[Wish]) -> None:
    now = [[*share, *[0] * len(more)] for share in afresh(capacities, wishes)]
    check_that_nothing_moves(capacities, [*wishes, *more], now)


@given(CAPACITIES, NARROW)
def test_workers_stay_where_they_are_when_a_fleet_comes_or_leaves(capacities: list[int], wishes: list[Wish]) -> None:
    now = afresh(capacities, wishes)
    check_that_nothing_moves([*capacities, 5], wishes, [*now, [0] * len(wishes)])
    check_that_nothing_moves(capacities[1:], wishes, now[1:])


def check_that_nothing_moves(capacities: list[int], wishes: list[Wish], now: Allotments) -> None:
    """Each job keeps as many of its workers as it may."""
    shares = allot(capacities, wishes, now)
    stays = [[min(pair) for pair in zip(*rows, strict=True)] for rows in zip(now, shares, strict=True)]
    running, wanted = totals(now, wishes), totals(shares, wishes)
    assert totals(stays, wishes) == [min(pair) for pair in zip(running, wanted, strict=True)]


def test_examples() -> None:
    assert afresh([4, 3], [Wish(2, 1), Wish(3, 2), Wish(5, 1)]) == [[2, 1, 0], [0, 0, 3]]
    assert afresh([6], [Wish(9, 1), Wish(9, 1, 5), Wish(4, 1, 5)]) == [[0, 3, 3]]
    assert afresh([5], [Wish(9, 1), Wish(9, 1), Wish(1, 1)]) == [[2, 2, 1]]
    assert afresh([], [Wish(1, 1)]) == []
    assert afresh([3], []) == [[]]
    # A fleet got smaller; the job that may keep all its workers does.
    assert allot([1, 1], [Wish(1, 1), Wish(1, 1)], [[1, 1], [1, 0]]) == [[0, 1], [1, 0]]
    # Where each worker stays, the wide one finds no room.
    assert allot([2, 2], [Wish(2, 1), Wish(1, 2, 1)], [[1, 0], [1, 0]]) == [[0, 1], [2, 0]]


NODES = st.lists(st.lists(st.builds(Node, st.integers(0, 9), st.integers(0, 3)), max_size=4), max_size=4)
WITH_GPUS = st.lists(
    st.builds(Wish, st.integers(1, 9), st.integers(1, 4), st.integers(-1, 1), st.sampled_from([0, 0.3, 0.5, 0.6, 1, 2])),
    max_size=5,
)


@given(NODES, WITH_GPUS)
def test_what_is_promised_fits_nodes(nodes: list[list[Node]], wishes: list[Wish]) -> None:
    shares = fleets.allot(nodes, wishes, [[0] * len(wishes) for _ in nodes])
    for fleet, share in zip(nodes, shares, strict=True):
        for workers, wish in zip(share, wishes, strict=True):
            # Alone, each job's workers fit; together, they need no more than there is.
            assert Room(fleet).take(wish.size, workers) == workers
        assert used(share, wishes) <= sum(node.slots for node in fleet)
        assert sum(workers * wish.gpus for workers, wish in zip(share, wishes, strict=True)) <= sum(node.gpus for node in fleet)
    again = fleets.allot(nodes, wishes, shares)
    assert totals(again, wishes) == totals(shares, wishes)


@given(NODES, WITH_GPUS.filter(bool))
def test_a_job_alone_gets_as_many_workers_as_nodes_have_room_for(nodes: list[list[Node]], wishes: list[Wish]) -> None:
    (wish,) = wishes[:1]
    got = totals(fleets.allot(nodes, [wish], [[0] for _ in nodes]), [wish])
    # A GPU holds so many workers that share it; a worker with several has them all on one node.
    of_gpu = int(1 / wish.gpus) if 0 < wish.gpus < 1 else 1
    fit = [
        min(node.slots // wish.slots, node.gpus * of_gpu // max(1, int(wish.gpus)) if wish.gpus else node.slots)
        for fleet in nodes
        for node in fleet
    ]
    assert got == [min(wish.workers, sum(fit))]


def test_room_is_that_of_nodes() -> None:
    assert fleets.allot([[Node(3), Node(3)]], [Wish(9, 2)], [[0]]) == [[2]]
    assert fleets.allot([[Node(3)], [Node(3, 1)]], [Wish(9, 1, 0, 1.0), Wish(9, 1)], [[0, 0]] * 2) == [[0, 3], [1, 2]]
    assert not Room([Node(4), Node(0, 8)]).has(Size(1, 1))
    room = Room([Node(9, 2)])
    assert [room.take(Size(1, gpus)) for gpus in (0.5, 0.7, 0.5, 0.5, 1, 0.3)] == [1, 1, 1, 0, 0, 1]


class AttendingFleet:
    """A fleet played by hand."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.outbox: queue.SimpleQueue[fleet_service_pb2.AttendRequest | None] = queue.SimpleQueue()
        stub = fleet_service_pb2_grpc.FleetServiceStub(channel)
        self._inbox = stub.Attend(iter(self.outbox.get, None), timeout=DEADLINE)

    def tell(self, slots: int, name: str = "fleet") -> None:
        offer = capacity(name, slots)
        self.outbox.put(fleet_service_pb2.AttendRequest(capacity=offer))

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


def create(stub: TrainingServiceStub, job_id: str, workers: int, threads: int = 1, priority: int = 0) -> None:
    spec = make_spec(training={"workers": workers, "threads_per_worker": threads}, priority=priority)
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
        assert fleet.told() == {"a": (2, 1), "b": (2, 1)}
        stub.ScaleJob(pb.ScaleJobRequest(job_id="a", workers=1))
        assert fleet.told() == {"a": (1, 1), "b": (3, 1)}
        assert fleets_of(stub) == [("fleet", 4, 4)]
        stub.CancelJob(pb.CancelJobRequest(job_id="a"))
        assert fleet.told() == {"b": (3, 1)}
        stub.CancelJob(pb.CancelJobRequest(job_id="b"))
        assert fleet.told() == {}


def test_a_job_of_higher_priority_is_served_first(server: Server, stub: TrainingServiceStub) -> None:
    with attending(server, 4) as fleet:
        assert fleet.told() == {}
        create(stub, "a", 3)
        assert fleet.told() == {"a": (3, 1)}
        create(stub, "b", 3, priority=1)
        assert fleet.told() == {"a": (1, 1), "b": (3, 1)}
        create(stub, "c", 9, priority=2)
        assert fleet.told() == {"c": (4, 1)}
        stub.CancelJob(pb.CancelJobRequest(job_id="b"))
        stub.CancelJob(pb.CancelJobRequest(job_id="c"))
        assert fleet.told() == {"a": (3, 1)}


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


def test_a_job_that_no_node_has_room_for_waits_although_the_nodes_together_have(
    server: Server, stub: TrainingServiceStub
) -> None:
    with grpc.insecure_channel(str(server.address)) as channel:
        fleet = AttendingFleet(channel)
        offer = capacity("two", 4, of_nodes=[(2, 0), (2, 1)])
        fleet.outbox.put(fleet_service_pb2.AttendRequest(capacity=offer))
        create(stub, "wide", 1, threads=3)
        wait_for(
            lambda: stub.GetJob(pb.GetJobRequest(job_id="wide")).job.status.endswith(
                "no fleet has the 3 CPU slots that each worker needs"
            )
        )
        create(stub, "fits", 3, threads=2)
        fleet.told_until({"fits": (2, 2)})
        # Slots may be fewer than threads.
        spec = make_spec(training={"workers": 1, "threads_per_worker": 3, "resources": {"cpus": 2}}, priority=1)
        stub.CreateJob(pb.CreateJobRequest(spec=spec, job_id="shares"))
        fleet.told_until({"fits": (1, 2), "shares": (1, 2)})
        fleet.outbox.put(None)


def test_a_worker_that_ended_is_noticed(server: Server, stub: TrainingServiceStub) -> None:
    create(stub, "a", 1)
    with attending(server, 4, "mill") as fleet:
        fleet.told_until({"a": (1, 1)})
        for job_id in ("nobody", "a"):
            exited = fleet_service_pb2.WorkerExited(job_id=job_id, problem="lost " + "x" * 9999)
            fleet.outbox.put(fleet_service_pb2.AttendRequest(worker_exited=exited))
        for response in stub.WatchJob(pb.WatchJobRequest(job_id="a"), timeout=DEADLINE):
            if response.event.HasField("notice"):
                break
    assert response.event.notice.text.startswith("a worker of fleet mill ended and will be replaced: lost xxx")
    assert len(response.event.notice.text) < 1100


@given(histories(), st.data())
def test_limits_are_kept_and_no_room_is_left_that_they_allow(
    history: tuple[list[int], list[Wish], Allotments], data: st.DataObject
) -> None:
    capacities, wishes, now = history
    limits = [[data.draw(st.none() | st.integers(0, 5)) for _ in wishes] for _ in capacities]
    shares = allot(capacities, wishes, now, limits)
    for share, row in zip(shares, limits, strict=True):
        assert all(limit is None or workers <= limit for workers, limit in zip(share, row, strict=True))
    for job, workers in enumerate(totals(shares, wishes)):
        for most, share, row in zip(capacities, shares, limits, strict=True):
            limit = row[job]
            full = limit is not None and share[job] >= limit
            assert full or workers >= wishes[job].workers or most - used(share, wishes) < wishes[job].slots
    if any(any(limit is not None for limit in row) for row in limits):
        return
    assert shares == allot(capacities, wishes, now)


def test_workers_that_are_at_work_stay_rather_than_those_that_may_be_starting() -> None:
    wishes = [Wish(2, 1)]
    assert allot([2, 2], wishes, [[2], [2]]) == [[2], [0]]
    assert allot([2, 2], wishes, [[2], [2]], works=[[0], [2]]) == [[0], [2]]
    assert allot([2, 2], wishes, [[2], [2]], works=[[0], [1]]) == [[1], [1]]


def test_a_fleet_that_comes_back_keeps_its_workers(server: Server, stub: TrainingServiceStub) -> None:
    def come(fleet: AttendingFleet, name: str, running: int) -> None:
        runs = [fleet_service_pb2.Allotment(job_id="a", workers=running, slots_per_worker=1)] if running else []
        offer = capacity(name, 1, fleet=name, running=runs)
        fleet.outbox.put(fleet_service_pb2.AttendRequest(capacity=offer))

    create(stub, "a", 1)
    with attending(server, None) as mill, attending(server, None) as other, Peer(server.address) as worker:
        come(mill, "mill", 0)
        mill.told_until({"a": (1, 1)})
        come(other, "other", 0)
        assert other.told() == {}
        worker.hello("a", parameter_service_pb2.Place(fleet="mill", node="one"))
        mill.outbox.put(None)
        mill.ends()
        other.told_until({"a": (1, 1)})
        with attending(server, None) as again:
            come(again, "mill", 1)
            assert again.told() == {"a": (1, 1)}
            assert other.told() == {}
            with attending(server, None) as once_more:
                # The server has not heard that the stream before broke: it is the same fleet nevertheless.
                come(once_more, "mill", 1)
                assert once_more.told() == {"a": (1, 1)}
                again.ends()
                assert [name for name, _, _ in fleets_of(stub)] == ["other", "mill"]


def test_what_a_fleet_and_its_workers_say_acts_on_no_terminal(server: Server, stub: TrainingServiceStub) -> None:
    create(stub, "a", 1)
    with attending(server, 4, "\x1b[2Jmill") as fleet, Peer(server.address) as worker:
        fleet.told_until({"a": (1, 1)})
        exited = fleet_service_pb2.WorkerExited(job_id="a", problem="\u202eproblem\nthalweg: faked line")
        fleet.outbox.put(fleet_service_pb2.AttendRequest(worker_exited=exited))
        watch = stub.WatchJob(pb.WatchJobRequest(job_id="a"), timeout=DEADLINE)
        # The fleet and the worker have a stream each: the job must not have ended before the fleet is heard.
        events = [next(response.event for response in watch if response.event.HasField("notice"))]
        worker.send(parameter_service_pb2.WorkRequest(hello=hello(job_id="a", worker="\x1b[31mw")))
        worker.receive("welcome")
        worker.fail("\x9bfailure")
        events += [response.event for response in watch]
        assert [info.name for info in stub.GetServerInfo(pb.GetServerInfoRequest()).fleets] == ["\\x1b[2Jmill"]
    ended = r"a worker of fleet \x1b[2Jmill ended and will be replaced: \u202eproblem\nthalweg: faked line"
    assert ended in [event.notice.text for event in events]
    assert [r"\x1b[31mw"] in [list(event.workers_changed.names) for event in events]
    assert events[-1].state_changed.job.error == r"\x9bfailure"


def test_the_servers_log_says_who_comes_and_goes(
    server: Server, stub: TrainingServiceStub, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def logged(line: str) -> None:
        wait_for(lambda: line in caplog.messages)

    create(stub, "a", 1)
    with attending(server, 4, "mill") as fleet, Peer(server.address) as worker:
        fleet.told_until({"a": (1, 1)})
        logged("fleet mill joined with 4 CPU slots")
        worker.hello("a")
        logged("job a: worker peer joined")
        worker.finish()
        logged("job a: worker peer left")
    logged("fleet mill left")
