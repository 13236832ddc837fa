"""How many workers each fleet runs for each job. Level-triggered: each fleet is always sent its whole allotment."""

import logging
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from typing import NamedTuple, TypeAlias

from thalweg.contract.worker_size import Size, size_of
from thalweg.server.deciding.allotment.attending import Allotment, Applicant, AttendingFleet, need_of
from thalweg.server.deciding.allotment.closures import Closure, Closures
from thalweg.server.deciding.allotment.room import Node, Room
from thalweg.server.deciding.allotment.view import FleetView
from thalweg.server.deciding.values import Place
from thalweg.v1 import fleet_service_pb2, job_pb2

_log = logging.getLogger(__name__)
# How many workers each fleet gives to each job.
Allotments: TypeAlias = list[list[int]]
# The most workers that each fleet may give to each job; None where there is no such limit.
Limits: TypeAlias = Sequence[Sequence[int | None]]


class Wish(NamedTuple):
    """What a job requests: a number of workers, each of a number of CPU slots and GPUs."""

    workers: int
    slots: int
    priority: int = 0
    gpus: float = 0.0

    @property
    def size(self) -> Size:
        """What each worker takes."""
        return Size(self.slots, self.gpus)


class Fleets:
    """All fleets that attend, in the order in which they came."""

    def __init__(self) -> None:
        self.attending: list[AttendingFleet] = []
        self.closures = Closures()
        # Whether no fleet is to start workers any more, because the server is about to end.
        self.closing = False

    def add(self, fleet: AttendingFleet) -> None:
        """A fleet came."""
        self.attending.append(fleet)

    def know(self, fleet: AttendingFleet, id_: str, running: Iterable[fleet_service_pb2.Allotment]) -> None:
        """A fleet says who it is, and what it runs. One that attends already, by a stream that broke, is that fleet no longer."""
        fleet.known, fleet.id = True, id_
        for other in [other for other in self.attending if other is not fleet and id_ and other.id == id_]:
            other.superseded = True
            other.changed.set()
            self.remove(other)
        fleet.allotments = {each.job_id: Allotment(each.workers, each.slots_per_worker) for each in running}
        _log.info("fleet %s joined with %d CPU slots", fleet.name, fleet.slots)

    def remove(self, fleet: AttendingFleet) -> None:
        """A fleet is gone."""
        if fleet in self.attending:
            self.attending.remove(fleet)
            if fleet.known:
                _log.info("fleet %s %s", fleet.name, "reconnected" if fleet.superseded else "left")

    def admit(self, spec: job_pb2.JobSpec) -> list[AttendingFleet]:
        """Those that may run a job's workers, as far as their code is concerned."""
        need = need_of(spec)
        return [fleet for fleet in self.attending if fleet.admits(need)]

    def have_room(self, spec: job_pb2.JobSpec) -> bool:
        """Whether one of them could run a job's worker, if it had nothing else to do."""
        return any(Room(fleet.by_node).has(size_of(spec)) for fleet in self.admit(spec))

    def have_open_room(self, spec: job_pb2.JobSpec) -> bool:
        """Whether one of them could, where workers are started."""
        return any(Room(self.view(fleet).nodes()).has(size_of(spec)) for fleet in self.admit(spec))

    @property
    def closed(self) -> bool:
        """Whether a fleet or a node is closed."""
        return self.closing or bool(self.closures) or any(fleet.leaving for fleet in self.attending)

    def view(self, fleet: AttendingFleet) -> FleetView:
        """What a fleet has where it is not closed."""
        closure = Closure.DRAINED if self.closing or fleet.leaving else self.closures.of(fleet.name)
        by_node = {node: self.closures.of(fleet.name, name) for node, name in fleet.names.items()} if self.closures else {}
        return FleetView(fleet, closure, by_node)

    def closure_at(self, place: Place) -> Closure:
        """Whether workers are started at a place, and whether those that are there stay."""
        fleet = next((fleet for fleet in self.attending if fleet.id == place.fleet and fleet.id), None)
        if fleet is None:
            return Closure.DRAINED if self.closing else Closure.OPEN
        return self.view(fleet).at(place.node)

    @property
    def places(self) -> list[tuple[str, str]]:
        """The names of the fleets and the nodes that there are, or that are closed; with an empty one of the node for a fleet."""
        there = [(fleet.name, node) for fleet in self.attending if fleet.known for node in ("", *fleet.names.values())]
        return [*there, *(each.place for each in self.closures.all)]

    def allot(self, applicants: Sequence[Applicant]) -> None:
        """Shares the fleets' slots out among the jobs, and tells the fleets what changed."""
        views = [self.view(fleet) for fleet in self.attending]
        # Workers that are connected stay before those that may still be starting.
        works = [[view.staying(each) for each in applicants] for view in views]
        now = [[max(0, view.fleet.gives(each.job.id) - view.going(each)) for each in applicants] for view in views]
        limits = [[view.limit(each) for each in applicants] for view in views]
        wishes = [_wish(each.job) for each in applicants]
        shares = allot([view.nodes(applicants) for view in views], wishes, now, limits, works)
        for view, share in zip(views, shares, strict=True):
            allotments = {
                each.job.id: view.allotment(each, workers)
                for each, workers in zip(applicants, share, strict=True)
                if workers or view.going(each)
            }
            view.fleet.give(allotments, [each.job.id for each in applicants])


def _wish(job: job_pb2.Job) -> Wish:
    size = size_of(job.spec)
    return Wish(job.spec.training.workers, size.slots, job.spec.priority, size.gpus)


def allot(
    capacities: Sequence[Sequence[Node]],
    wishes: Sequence[Wish],
    now: Allotments,
    limits: Limits | None = None,
    works: Allotments | None = None,
) -> Allotments:
    """How many workers each fleet gives to each job, from what the fleets' nodes have, the jobs' wishes and what each gets `now`.

    A job of higher priority is served first. Jobs of equal priority share alike: worker by worker, the job that has the fewest
    slots gets the next one, the first job where several have the fewest, until no wish is open or none fits anywhere (max-min
    fairness; Bertsekas and Gallager, Data Networks, 6.5.2).

    How many workers a job gets depends on capacities, wishes and limits alone. They stay on the fleets where they are, as far as
    there is room for them; first those that are at work, if `works` says how many.
    """
    offer = _Offer(capacities, wishes, limits)
    fair = _fill(offer)
    return (
        _settle(offer, [sum(share[job] for share in fair) for job in range(len(wishes))], [*([works] if works else []), now])
        or fair
    )


class _Offer(NamedTuple):
    """What there is to give, and who wants it."""

    capacities: Sequence[Sequence[Node]]
    wishes: Sequence[Wish]
    limits: Limits | None

    def most(self, fleet: int, job: int, wanted: int, given: int) -> int:
        """How many of the workers that a job still wants a fleet may give, which has given some."""
        limit = self.limits[fleet][job] if self.limits else None
        return wanted if limit is None else max(0, min(wanted, limit - given))

    def free(self) -> list[Room]:
        """The fleets' nodes, with nothing on them."""
        return [Room(nodes) for nodes in self.capacities]

    def none(self) -> Allotments:
        """Nothing for anybody."""
        return [[0] * len(self.wishes) for _ in self.capacities]


def _fill(offer: _Offer) -> Allotments:
    """Fair shares, on the first fleets that have room."""
    free, shares = offer.free(), offer.none()
    for priority in sorted({wish.priority for wish in offer.wishes}, reverse=True):
        # By what each job has: slots, then its place in the order, then workers.
        poorest = [(0, job, 0) for job, wish in enumerate(offer.wishes) if wish.priority == priority and wish.workers]
        heapify(poorest)
        while poorest:
            taken, job, workers = heappop(poorest)
            wish = offer.wishes[job]
            fleets = (
                each for each in range(len(free)) if free[each].take(wish.size, offer.most(each, job, 1, shares[each][job]))
            )
            fleet = next(fleets, None)
            # Room only gets less: this job gets no more.
            if fleet is None:
                continue
            shares[fleet][job] += 1
            if workers + 1 < wish.workers:
                heappush(poorest, (taken + wish.slots, job, workers + 1))
    return shares


def _settle(offer: _Offer, workers: list[int], present: Sequence[Allotments]) -> Allotments | None:
    """Places for each job's `workers`, on the fleets where they are if that can be: `present` says where, what counts most first.

    None if that leads nowhere, or leaves room for a worker that a job still wants.
    """
    free, left, wishes = offer.free(), list(workers), offer.wishes
    shares = offer.none()

    def give(fleet: int, job: int, wanted: int) -> None:
        most = offer.most(fleet, job, min(wanted, left[job]), shares[fleet][job])
        given = free[fleet].take(wishes[job].size, most)
        shares[fleet][job] += given
        left[job] -= given

    for now in present:
        # A job that gets fewer gives up those where room is short.
        pairs = zip(now, offer.capacities, strict=True)
        shortage = [_used(wishes, share) - sum(node.slots for node in nodes) for share, nodes in pairs]
        for fleet in sorted(range(len(free)), key=lambda each: shortage[each]):
            for job in range(len(wishes)):
                give(fleet, job, max(0, now[fleet][job] - shares[fleet][job]))
    # The widest workers are the hardest to place.
    for job in sorted(range(len(wishes)), key=lambda job: (-wishes[job].gpus, -wishes[job].slots)):
        for fleet in range(len(free)):
            give(fleet, job, left[job])
    hungry = [job for job, wish in enumerate(wishes) if workers[job] < wish.workers]
    room = any(
        offer.most(fleet, job, 1, shares[fleet][job]) and free[fleet].has(wishes[job].size)
        for job in hungry
        for fleet in range(len(free))
    )
    return None if room or any(left) else shares


def _used(wishes: Sequence[Wish], share: list[int]) -> int:
    return sum(workers * wish.slots for workers, wish in zip(share, wishes, strict=True))
