"""A fleet that attends, and what it gives to each job. What a job wants, as far as fleets see it."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from thalweg.contract.code import entry_points
from thalweg.server.deciding.allotment.room import Node
from thalweg.server.deciding.values import Place
from thalweg.v1 import fleet_service_pb2, job_pb2


class Allotment(NamedTuple):
    """What a job gets from a fleet: workers, with CPU slots and GPUs each, no new ones on some nodes, and with some packages."""

    workers: int
    slots: int
    avoid: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    gpus: float = 0.0
    # Whether the server lets workers go, so that the fleet is to end none.
    letting_go: bool = False


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

    def workers_on(self, fleet: str, node: str) -> int:
        """How many of them run on a node."""
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
    # The ids of these nodes, in the same order, and the names of nodes by their ids.
    node_ids: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    # When it came, in seconds since 1970, and whether it is about to end.
    since: float = 0.0
    leaving: bool = False
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
                    letting_go=each.letting_go,
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

    def starting(self, applicants: Iterable[Applicant]) -> int:
        """How many workers it was asked to run that are not connected."""
        return sum(max(0, self.gives(each.job.id) - each.workers_of(self.id)) for each in applicants)


class Need(NamedTuple):
    """What a job's workers do beside what all do: run code of its author's, with packages installed for it."""

    code: bool
    requirements: bool


def need_of(spec: job_pb2.JobSpec) -> Need:
    """What a fleet has to allow for a job."""
    return Need(bool(entry_points(spec)), bool(spec.code.requirements))
