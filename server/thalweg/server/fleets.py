"""Which fleet gives how many workers to which job. Level-triggered: each fleet is always told its whole allotment."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import NamedTuple, TypeAlias

from thalweg.v1 import fleet_service_pb2, job_pb2

# How many workers each fleet gives to each job.
Shares: TypeAlias = list[list[int]]


@dataclass(eq=False)
class AttendingFleet:
    """A fleet that attends."""

    name: str = ""
    slots: int = 0
    allotments: dict[str, tuple[int, int]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def message(self) -> fleet_service_pb2.AttendResponse:
        """The allotment, as the fleet is told."""
        return fleet_service_pb2.AttendResponse(
            allotments=[
                fleet_service_pb2.Allotment(job_id=job_id, workers=workers, slots_per_worker=slots)
                for job_id, (workers, slots) in self.allotments.items()
            ]
        )

    @property
    def allotted(self) -> int:
        """The CPU slots that are given to jobs."""
        return sum(workers * slots for workers, slots in self.allotments.values())

    def gives(self, job_id: str) -> int:
        """How many workers a job gets from it."""
        workers, _ = self.allotments.get(job_id, (0, 0))
        return workers


class Wish(NamedTuple):
    """What a job wants: so many workers of so many CPU slots each."""

    workers: int
    slots: int
    priority: int = 0


class Fleets:
    """All fleets that attend, in the order in which they came."""

    def __init__(self) -> None:
        self.attending: list[AttendingFleet] = []

    def have_room(self, slots: int) -> bool:
        """Whether one of them could run a worker of so many CPU slots, if it had nothing else to do."""
        return any(fleet.slots >= slots for fleet in self.attending)

    def allot(self, jobs: list[job_pb2.Job]) -> None:
        """Shares the fleets' slots out among the jobs, and tells the fleets what changed."""
        now = [[fleet.gives(job.id) for job in jobs] for fleet in self.attending]
        shares = allot([fleet.slots for fleet in self.attending], [_wish(job) for job in jobs], now)
        for fleet, share in zip(self.attending, shares, strict=True):
            allotments = {
                job.id: (workers, job.spec.training.threads_per_worker)
                for job, workers in zip(jobs, share, strict=True)
                if workers
            }
            if allotments != fleet.allotments:
                fleet.allotments = allotments
                fleet.changed.set()


def _wish(job: job_pb2.Job) -> Wish:
    return Wish(job.spec.training.workers, job.spec.training.threads_per_worker, job.spec.priority)


def allot(capacities: Sequence[int], wishes: Sequence[Wish], now: Shares) -> Shares:
    """How many workers each fleet gives to each job, from the fleets' CPU slots, the jobs' wishes and what each gets `now`.

    A job of higher priority is served first. Jobs of equal priority share alike: worker by worker, the job that has the fewest
    slots gets the next one, the first job where several have the fewest, until no wish is open or none fits anywhere (max-min
    fairness; Bertsekas and Gallager, Data Networks, 6.5.2).

    How many workers a job gets depends on capacities and wishes alone. They stay on the fleets where they are, as far as there is
    room for them.
    """
    fair = _fill(capacities, wishes)
    settled = _settle(capacities, wishes, [sum(share[job] for share in fair) for job in range(len(wishes))], now)
    return fair if settled is None or _leaves_room(capacities, wishes, settled) else settled


def _fill(capacities: Sequence[int], wishes: Sequence[Wish]) -> Shares:
    """Fair shares, on the first fleets that have room."""
    free = list(capacities)
    shares = _none(capacities, wishes)
    for priority in sorted({wish.priority for wish in wishes}, reverse=True):
        # By what each job has: slots, then its place in the order, then workers.
        poorest = [(0, job, 0) for job, wish in enumerate(wishes) if wish.priority == priority and wish.workers]
        heapify(poorest)
        while poorest:
            taken, job, workers = heappop(poorest)
            wish = wishes[job]
            fleet = next((fleet for fleet, room in enumerate(free) if room >= wish.slots), None)
            # Room only gets less: this job gets no more.
            if fleet is None:
                continue
            free[fleet] -= wish.slots
            shares[fleet][job] += 1
            if workers + 1 < wish.workers:
                heappush(poorest, (taken + wish.slots, job, workers + 1))
    return shares


def _settle(capacities: Sequence[int], wishes: Sequence[Wish], workers: list[int], now: Shares) -> Shares | None:
    """A place for so many workers of each job, on the fleets where they are `now` if that can be. None if that leads nowhere."""
    free, left = list(capacities), list(workers)
    shares = _none(capacities, wishes)

    def give(fleet: int, job: int, most: int) -> None:
        given = min(most, left[job], free[fleet] // wishes[job].slots)
        shares[fleet][job] += given
        free[fleet] -= given * wishes[job].slots
        left[job] -= given

    # A job that gets fewer gives up those where room is short.
    for fleet in sorted(range(len(free)), key=lambda fleet: _used(wishes, now[fleet]) - capacities[fleet]):
        for job in range(len(wishes)):
            give(fleet, job, now[fleet][job])
    # The widest workers are the hardest to place.
    for job in sorted(range(len(wishes)), key=lambda job: -wishes[job].slots):
        for fleet in range(len(free)):
            give(fleet, job, left[job])
    return None if any(left) else shares


def _leaves_room(capacities: Sequence[int], wishes: Sequence[Wish], shares: Shares) -> bool:
    """Whether a job could have one more worker."""
    room = max((capacity - _used(wishes, share) for capacity, share in zip(capacities, shares, strict=True)), default=0)
    return any(sum(share[job] for share in shares) < wish.workers and wish.slots <= room for job, wish in enumerate(wishes))


def _none(capacities: Sequence[int], wishes: Sequence[Wish]) -> Shares:
    return [[0] * len(wishes) for _ in capacities]


def _used(wishes: Sequence[Wish], share: list[int]) -> int:
    return sum(workers * wish.slots for workers, wish in zip(share, wishes, strict=True))
