"""How many workers each fleet runs for each job. Level-triggered: each fleet is always sent its whole allotment."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import NamedTuple, Protocol, TypeAlias

from thalweg.contract.code import entry_points
from thalweg.contract.worker_size import Size, size_of
from thalweg.server.deciding.allotment.room import Node, Room
from thalweg.server.deciding.values import Place
from thalweg.v1 import fleet_service_pb2, job_pb2

_log = logging.getLogger(__name__)
# How many workers each fleet gives to each job.
Allotments: TypeAlias = list[list[int]]
# The most workers that each fleet may give to each job; None where there is no such limit.
Limits: TypeAlias = Sequence[Sequence[int | None]]


class Allotment(NamedTuple):
    """What a job gets from a fleet: workers, with CPU slots and GPUs each, no new ones on some nodes, and with some packages."""

    workers: int
    slots: int
    avoid: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    gpus: float = 0.0


class Applicant(Protocol):
    """A job that wants workers, as a `JobDriver` is."""

    @property
    def job(self) -> job_pb2.Job:
        """What it wants."""
        ...

    @property
    def avoided(self) -> tuple[Place, ...]:
        """Where it is to get no more workers for now."""
        ...

    def workers_of(self, fleet: str) -> int:
        """How many workers that a fleet started are connected."""
        ...


@dataclass(eq=False)
class AttendingFleet:
    """A fleet that attends."""

    name: str = ""
    slots: int = 0
    id: str = ""
    nodes: frozenset[str] = frozenset()
    # What each node has. A fleet that does not tell counts as one node.
    capacities: tuple[Node, ...] = ()
    # Whether its workers run code of jobs' authors, and whether it installs packages for that.
    allow_code: bool = False
    allow_requirements: bool = False
    allotments: dict[str, Allotment] = field(default_factory=dict)
    # How many workers of each job may be running there: as many as it was ever told to start, less those of which it said that
    # they ended and that it was not to replace.
    started: dict[str, int] = field(default_factory=dict)
    # Whether it has said what it can hold, and whether it has come again on another stream.
    known: bool = False
    superseded: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def message(self, token_of: Callable[[str], str | None]) -> fleet_service_pb2.AttendResponse:
        """The allotment, as it is sent to the fleet, with the tokens of jobs' workers."""
        return fleet_service_pb2.AttendResponse(
            allotments=[
                fleet_service_pb2.Allotment(
                    job_id=job_id,
                    workers=each.workers,
                    slots_per_worker=each.slots,
                    avoid=each.avoid,
                    requirements=each.requirements,
                    gpus_per_worker=each.gpus,
                    # None if the job ended just now: then it is not in the next allotment.
                    token=token_of(job_id) or "",
                )
                for job_id, each in self.allotments.items()
            ]
        )

    @property
    def allotted(self) -> int:
        """The CPU slots that are given to jobs."""
        return sum(allotment.workers * allotment.slots for allotment in self.allotments.values())

    @property
    def by_node(self) -> Sequence[Node]:
        """What its nodes have."""
        return self.capacities or (Node(self.slots),)

    def gives(self, job_id: str) -> int:
        """How many workers a job gets from it."""
        allotment = self.allotments.get(job_id)
        return allotment.workers if allotment else 0

    def give(self, allotments: dict[str, Allotment], jobs: Iterable[str]) -> None:
        """Tells it what it gives to `jobs`, if that has changed."""
        self.started = {job_id: max(self.started.get(job_id, 0), self.gives(job_id)) for job_id in jobs}
        if allotments != self.allotments:
            self.allotments = allotments
            self.changed.set()

    def exited(self, job_id: str) -> bool:
        """The fleet reports that a worker of a job ended. Whether it can be one that it was asked to start."""
        most = max(self.started.get(job_id, 0), self.gives(job_id))
        self.started[job_id] = max(most - 1, self.gives(job_id))
        return most > 0

    def avoids(self, applicant: Applicant) -> tuple[str, ...]:
        """The nodes on which a job is to get no more workers; the empty id stands for those that are not known."""
        return tuple(sorted(place.node for place in applicant.avoided if place.fleet == self.id))

    def admits(self, need: "Need") -> bool:
        """Whether it may run a job's workers, as far as their code is concerned."""
        return (self.allow_code or not need.code) and (self.allow_requirements or not need.requirements)

    def limit(self, applicant: Applicant) -> int | None:
        """The most workers that a job may get: none, if it may run none here; those that it has, if it is to get no more."""
        if not self.admits(need_of(applicant.job.spec)):
            return 0
        avoided = self.avoids(applicant)
        return applicant.workers_of(self.id) if avoided and self.nodes.issubset(avoided) else None


class Need(NamedTuple):
    """What a job's workers do beside what all do: run code of its author's, with packages installed for it."""

    code: bool
    requirements: bool


def need_of(spec: job_pb2.JobSpec) -> Need:
    """What a fleet has to allow for a job."""
    return Need(bool(entry_points(spec)), bool(spec.code.requirements))


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

    def allot(self, applicants: Sequence[Applicant]) -> None:
        """Shares the fleets' slots out among the jobs, and tells the fleets what changed."""
        # Workers that are connected stay before those that may still be starting.
        works = [[each.workers_of(fleet.id) if fleet.id else 0 for each in applicants] for fleet in self.attending]
        now = [[fleet.gives(each.job.id) for each in applicants] for fleet in self.attending]
        limits = [[fleet.limit(each) for each in applicants] for fleet in self.attending]
        wishes = [_wish(each.job) for each in applicants]
        shares = allot([fleet.by_node for fleet in self.attending], wishes, now, limits, works)
        for fleet, share in zip(self.attending, shares, strict=True):
            allotments = {
                each.job.id: _allotment(each.job.spec, workers, fleet.avoids(each))
                for each, workers in zip(applicants, share, strict=True)
                if workers
            }
            fleet.give(allotments, [each.job.id for each in applicants])


def _allotment(spec: job_pb2.JobSpec, workers: int, avoid: tuple[str, ...]) -> Allotment:
    size = size_of(spec)
    return Allotment(workers, size.slots, avoid, tuple(spec.code.requirements), size.gpus)


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
