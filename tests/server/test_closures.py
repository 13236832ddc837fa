"""Fleets and nodes that are cordoned or drained: what they give, what else takes their place, and how they are named."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.specs import make_spec
from thalweg.contract.errors import ThalwegError
from thalweg.server.deciding.allotment.attending import Allotment, AttendingFleet
from thalweg.server.deciding.allotment.closures import Closed, Closure, Closures, find
from thalweg.server.deciding.allotment.fleets import Fleets
from thalweg.server.deciding.allotment.room import Node
from thalweg.server.deciding.values import Place
from thalweg.v1 import job_pb2

CLOSURE = st.sampled_from(Closure)


@dataclass
class Applicant:
    """A job, and where its workers are connected."""

    name: str
    wanted: int
    at: list[tuple[str, str]] = field(default_factory=list)
    avoided: tuple[Place, ...] = ()

    @property
    def job(self) -> job_pb2.Job:
        return job_pb2.Job(id=self.name, spec=make_spec(workers=self.wanted))

    def workers_of(self, fleet: str) -> int:
        return sum(each == fleet for each, _ in self.at)

    def workers_on(self, fleet: str, node: str) -> int:
        return self.at.count((fleet, node))


def fleet(name: str, nodes: Sequence[int]) -> AttendingFleet:
    """A fleet whose nodes have some slots each. The id of one is the name of its fleet or node with -id."""
    ids = tuple(f"{name}{number}-id" for number in range(len(nodes)))
    names = {each: each.removesuffix("-id") for each in ids}
    return AttendingFleet(
        name, sum(nodes), f"{name}-id", frozenset(ids), tuple(map(Node, nodes)), node_ids=ids, names=names, known=True
    )


def fleets_of(*fleets: AttendingFleet) -> Fleets:
    made = Fleets()
    for each in fleets:
        made.add(each)
    return made


def close(fleets: Fleets, fleet: str, node: str = "", closure: Closure = Closure.CORDONED) -> None:
    fleets.closures.put(Closed(fleet, node, closure, 0.0))


def connect(fleets: Fleets, applicant: Applicant) -> None:
    """The workers that are allotted come, on the first nodes that have room."""
    applicant.at = []
    for each in fleets.attending:
        nodes = [node for node, has in zip(each.node_ids, each.capacities, strict=True) for _ in range(has.slots)]
        applicant.at += [(each.id, node) for node in nodes[: each.gives(applicant.name)]]


def test_a_cordoned_fleet_keeps_its_workers_and_gets_no_more() -> None:
    one, two = fleet("a", [2]), fleet("b", [4])
    fleets, job = fleets_of(one, two), Applicant("job", 2)
    fleets.allot([job])
    connect(fleets, job)
    close(fleets, "a")
    job.wanted = 4
    fleets.allot([job])
    assert (one.gives("job"), two.gives("job")) == (2, 2)
    assert one.allotments["job"].avoid == ("a0-id",)
    # One of them dies, and is replaced elsewhere.
    job.at.remove(("a-id", "a0-id"))
    fleets.allot([job])
    assert (one.gives("job"), two.gives("job")) == (1, 3)


def test_the_workers_of_a_drained_fleet_are_replaced_elsewhere_while_they_finish() -> None:
    one, two = fleet("a", [2]), fleet("b", [4])
    fleets, job = fleets_of(one, two), Applicant("job", 2)
    fleets.allot([job])
    connect(fleets, job)
    close(fleets, "a", closure=Closure.DRAINED)
    fleets.allot([job])
    assert one.allotments["job"] == Allotment(2, 1, ("a0-id",), letting_go=True)
    assert two.allotments["job"] == Allotment(2, 1)
    job.at = [("a-id", "a0-id"), ("b-id", "b0-id")]
    fleets.allot([job])
    assert (one.gives("job"), two.gives("job")) == (1, 2)
    job.at = [("b-id", "b0-id")] * 2
    fleets.allot([job])
    assert (one.allotments, two.gives("job")) == ({}, 2)


def test_the_workers_of_a_drained_node_are_replaced_on_others_of_its_fleet() -> None:
    one = fleet("a", [2, 3])
    fleets, job = fleets_of(one), Applicant("job", 2)
    fleets.allot([job])
    connect(fleets, job)
    close(fleets, "a", "a0", Closure.DRAINED)
    fleets.allot([job])
    assert one.allotments["job"] == Allotment(4, 1, ("a0-id",), letting_go=True)
    job.at = [("a-id", "a1-id")] * 2
    fleets.allot([job])
    assert one.allotments["job"] == Allotment(2, 1, ("a0-id",))


def test_a_cordoned_node_has_room_for_those_who_are_there() -> None:
    one = fleet("a", [3, 1])
    fleets, job = fleets_of(one), Applicant("job", 4, [("a-id", "a0-id")] * 2)
    close(fleets, "a", "a0")
    fleets.allot([job])
    assert one.allotments["job"] == Allotment(3, 1, ("a0-id",))
    job.at = []
    fleets.allot([job])
    assert one.allotments["job"] == Allotment(1, 1, ("a0-id",))


def test_a_fleet_that_is_about_to_end_gets_nothing_and_neither_do_all_when_the_server_is() -> None:
    one, two = fleet("a", [2]), fleet("b", [4])
    fleets, job = fleets_of(one, two), Applicant("job", 6)
    one.leaving = True
    fleets.allot([job])
    assert (one.gives("job"), two.gives("job")) == (0, 4)
    fleets.closing = True
    fleets.allot([job])
    assert (one.gives("job"), two.gives("job")) == (0, 0)
    assert fleets.closure_at(Place()) is Closure.DRAINED


def test_room_is_where_workers_are_started() -> None:
    fleets, spec = fleets_of(fleet("a", [2, 2])), make_spec(workers=1)
    for node, open_ in (("a0", True), ("a1", False)):
        close(fleets, "a", node)
        assert fleets.have_open_room(spec) is open_
    assert fleets.have_room(spec)
    assert fleets.closure_at(Place("a-id", "a0-id")) is Closure.CORDONED
    assert fleets.closure_at(Place("a-id", "unknown")) is Closure.OPEN


@given(st.data())
def test_whatever_is_closed_nothing_is_started_there_and_no_job_gets_more_than_it_wants_elsewhere(data: st.DataObject) -> None:
    several = [fleet(name, data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))) for name in "abc"]
    fleets = fleets_of(*several)
    jobs = [Applicant(name, data.draw(st.integers(1, 8))) for name in ("x", "y")]
    for _ in range(3):
        fleets.allot(jobs)
        for job in jobs:
            connect(fleets, job)
        for each in several:
            for node in ("", *each.names.values()):
                close(fleets, each.name, node, data.draw(CLOSURE))
    fleets.allot(jobs)
    for each in several:
        view = fleets.view(each)
        for job in jobs:
            connected, going = job.workers_of(each.id), view.going(job)
            closed = [node for node in each.node_ids if view.at(node) is not Closure.OPEN]
            there = sum(job.workers_on(each.id, node) for node in closed)
            allotment = each.allotments.get(job.name, Allotment(0, 1))
            assert set(closed) <= set(allotment.avoid) or not allotment.workers
            assert allotment.letting_go == (going > 0)
            if view.closure is not Closure.OPEN:
                assert allotment.workers <= connected
            # On open nodes there is room for what is more than those that are on closed ones.
            free = sum(has.slots for node, has in zip(each.node_ids, each.capacities, strict=True) if node not in closed)
            kept = sum(other.workers_on(each.id, node) for other in jobs for node in closed)
            assert allotment.workers <= free + kept
            assert there >= going
    for job in jobs:
        staying = sum(each.gives(job.name) - fleets.view(each).going(job) for each in several)
        assert staying <= job.wanted


PLACES = [("rack", ""), ("rack", "one"), ("rack", "two"), ("lab", ""), ("lab", "two"), ("lab", "rack")]


@pytest.mark.parametrize(
    ("target", "found"),
    [("rack", ("rack", "")), ("one", ("rack", "one")), ("lab/two", ("lab", "two")), ("lab/rack", ("lab", "rack"))],
)
def test_fleets_and_nodes_are_named(target: str, found: tuple[str, str]) -> None:
    assert find(target, [*PLACES, *PLACES]) == found


@pytest.mark.parametrize(("target", "reason"), [("two", "AMBIGUOUS_NODE"), ("three", "NO_SUCH_NODE"), ("", "NO_SUCH_NODE")])
def test_a_name_that_fits_none_or_several_is_an_error(target: str, reason: str) -> None:
    with pytest.raises(ThalwegError) as error:
        find(target, PLACES)
    assert error.value.reason == reason


def test_what_is_closed_is_listed_by_name_and_opened() -> None:
    closures = Closures([Closed("b", "", Closure.DRAINED, 1.0), Closed("a", "one", Closure.CORDONED, 2.0)])
    assert [each.place for each in closures.all] == [("a", "one"), ("b", "")]
    assert (closures.of("b"), closures.of("b", "one"), closures.of("a", "one")) == (
        Closure.DRAINED,
        Closure.OPEN,
        Closure.CORDONED,
    )
    assert closures.remove(("b", "")) == Closed("b", "", Closure.DRAINED, 1.0)
    assert closures.remove(("b", "")) is None
    assert closures
