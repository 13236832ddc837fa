"""A fleet as far as it is open: what it may give to jobs, and which of its workers are to go."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from thalweg.contract.worker_size import size_of
from thalweg.server.deciding.allotment.attending import Allotment, Applicant, AttendingFleet, need_of
from thalweg.server.deciding.allotment.closures import Closure
from thalweg.server.deciding.allotment.room import Node


class FleetView(NamedTuple):
    """A fleet as far as it is open: what it may give, and which of its workers are to go.

    `closure` is the whole fleet's, `by_node` those of nodes by their ids.
    """

    fleet: AttendingFleet
    closure: Closure
    by_node: Mapping[str, Closure]

    def at(self, node: str) -> Closure:
        """Whether workers are started on a node."""
        return max(self.closure, self.by_node.get(node, Closure.OPEN))

    def nodes(self, applicants: Sequence[Applicant] = ()) -> Sequence[Node]:
        """What its nodes have for the jobs. A cordoned node has room for the workers that are connected, and no others."""
        fleet = self.fleet
        if self.closure is Closure.DRAINED:
            return ()
        if self.closure is Closure.OPEN and not any(self.by_node.values()):
            return fleet.by_node
        if not fleet.node_ids:
            # Where its workers are is not known. The limits keep it from getting more.
            return fleet.by_node if applicants else ()
        return [
            has if self.at(node) is Closure.OPEN else self._kept(node, applicants)
            for node, has in zip(fleet.node_ids, fleet.capacities, strict=True)
        ]

    def _kept(self, node: str, applicants: Sequence[Applicant]) -> Node:
        """What those workers take on a closed node that stay there."""
        if self.at(node) is Closure.DRAINED:
            return Node(0)
        sizes = [(size_of(each.job.spec), each.workers_on(self.fleet.id, node)) for each in applicants]
        return Node(sum(size.slots * count for size, count in sizes), math.ceil(sum(size.gpus * count for size, count in sizes)))

    def going(self, applicant: Applicant) -> int:
        """How many workers of a job are connected that are to go."""
        if self.closure is Closure.DRAINED:
            return applicant.workers_of(self.fleet.id)
        drained = [node for node, closure in self.by_node.items() if closure is Closure.DRAINED]
        return sum(applicant.workers_on(self.fleet.id, node) for node in drained)

    def staying(self, applicant: Applicant) -> int:
        """How many workers of a job are connected, and are not to go."""
        return applicant.workers_of(self.fleet.id) - self.going(applicant) if self.fleet.id else 0

    def avoids(self, applicant: Applicant) -> tuple[str, ...]:
        """The nodes on which a job is to get no more workers."""
        closed = self.fleet.nodes if self.closure else [node for node, closure in self.by_node.items() if closure]
        return tuple(sorted({*self.fleet.avoids(applicant), *closed}))

    def limit(self, applicant: Applicant) -> int | None:
        """The most workers that a job may get: none, if it may run none here; those that stay, if it is to get no more."""
        if not self.fleet.admits(need_of(applicant.job.spec)):
            return 0
        avoided = self.avoids(applicant)
        none_more = self.closure is not Closure.OPEN or (avoided and self.fleet.nodes.issubset(avoided))
        return self.staying(applicant) if none_more else None

    def allotment(self, applicant: Applicant, workers: int) -> Allotment:
        """What a job gets, with the workers that are about to go."""
        spec, going = applicant.job.spec, self.going(applicant)
        size, packages = size_of(spec), tuple(spec.code.requirements)
        return Allotment(workers + going, size.slots, self.avoids(applicant), packages, size.gpus, going > 0)
