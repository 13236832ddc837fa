"""Workers that are prepared wait until there is memory for their job's arrays."""

from collections.abc import Iterator

from thalweg.server.arrays import budget as budgets
from thalweg.server.arrays.budget import Budget, OverBudgetError
from thalweg.server.arrays.sharded.registry import ShardRegistry
from thalweg.server.deciding.events import DriverFailed, Event, WorkerPrepared
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.values import Facts, WorkerId
from thalweg.server.telemetry import NO_MEMORY, PREPARING, Clock, Telemetry
from thalweg.v1 import job_pb2

# How often a job that waits for memory asks for it.
_ASK_SECONDS = 1.0


class Admission:
    """The prepared workers of one job that have not begun. `budget` promises memory, `shards` may take some of the arrays."""

    def __init__(self, budget: Budget | None, shards: ShardRegistry | None, telemetry: Telemetry, clock: Clock) -> None:
        self._budget = budget
        self._shards = shards
        self._telemetry = telemetry
        self._clock = clock
        self._waiting: dict[WorkerId, WorkerPrepared] = {}
        self._reserved = False
        self._asked = 0.0

    @property
    def due(self) -> bool:
        """Whether workers wait, and it is time to ask for memory again."""
        return bool(self._waiting) and self._clock() - self._asked >= _ASK_SECONDS

    def add(self, prepared: WorkerPrepared) -> None:
        """A worker is prepared."""
        self._waiting[prepared.worker] = prepared

    def leave(self, worker: WorkerId) -> None:
        """A worker is gone."""
        self._waiting.pop(worker, None)

    def admit(self) -> Iterator[Event]:
        """The events of the workers that may begin, as soon as there is memory for the job's arrays."""
        self._asked = self._clock()
        try:
            while self._waiting and self._has_memory(next(iter(self._waiting.values())).facts):
                yield self._waiting.pop(next(iter(self._waiting)))
        except OverBudgetError as error:
            elements = next(iter(self._waiting.values())).facts.elements
            self._waiting.clear()
            yield DriverFailed(f"model.layers: {elements:,} parameters do not fit in this server's memory: {error}")

    def _has_memory(self, facts: Facts) -> bool:
        """Whether the memory for a job's arrays is reserved. Raises OverBudgetError if it never can be."""
        if self._reserved or self._budget is None or not facts.elements:
            return True
        plan, job = Plan(self._telemetry.job.spec, facts), self._telemetry.job
        lack = self._budget.reserve(self, budgets.of_server(plan, len(self._shards.suitable(plan)) if self._shards else 0))
        if lack:
            # It is reported once; the amount of free memory changes all the time.
            if job.waiting_for != job_pb2.WAITING_FOR_MEMORY:
                job.waiting_for = job_pb2.WAITING_FOR_MEMORY
                self._telemetry.enter(job.state, f"{NO_MEMORY}: {lack}")
            job.status = f"{NO_MEMORY}: {lack}"
            return False
        self._reserved = True
        job.ClearField("waiting_for")
        job.status = PREPARING
        return True

    def close(self) -> None:
        """Nobody begins any more: gives the memory back."""
        self._waiting.clear()
        if self._budget:
            self._budget.release(self)
