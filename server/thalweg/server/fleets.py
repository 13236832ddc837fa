"""Which fleet gives how many workers to which job. Level-triggered: each fleet is always told its whole allotment."""

import asyncio
from dataclasses import dataclass, field

from thalweg.v1 import fleet_service_pb2, job_pb2


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


class Fleets:
    """All fleets that attend, in the order in which they came."""

    def __init__(self) -> None:
        self.attending: list[AttendingFleet] = []

    def allot(self, jobs: list[job_pb2.Job]) -> None:
        """Shares the fleets' slots out among the jobs, the first ones first, and tells the fleets what changed."""
        shares = allot([fleet.slots for fleet in self.attending], [_wish(job) for job in jobs])
        for fleet, share in zip(self.attending, shares, strict=True):
            allotments = {
                job.id: (workers, job.spec.training.threads_per_worker)
                for job, workers in zip(jobs, share, strict=True)
                if workers
            }
            if allotments != fleet.allotments:
                fleet.allotments = allotments
                fleet.changed.set()


def _wish(job: job_pb2.Job) -> tuple[int, int]:
    return job.spec.training.workers, job.spec.training.threads_per_worker


def allot(capacities: list[int], wishes: list[tuple[int, int]]) -> list[list[int]]:
    """How many workers each fleet gives to each job, from the fleets' CPU slots and the jobs' (workers, slots per worker).

    First come, first served, in jobs and in fleets.
    """
    free = list(capacities)
    shares = [[0] * len(wishes) for _ in capacities]
    for job, (workers, slots) in enumerate(wishes):
        wanted = workers
        for fleet, room in enumerate(free):
            given = min(wanted, room // slots)
            shares[fleet][job] = given
            free[fleet] -= given * slots
            wanted -= given
    return shares
