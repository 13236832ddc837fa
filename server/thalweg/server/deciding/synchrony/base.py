"""What a coordinator asks of a synchrony policy, and what policies have in common: workers, their tasks, their parameters."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from thalweg.server.deciding.decisions import AssignDifferentiate, Decision, Dropped, Reduce, SendRange
from thalweg.server.deciding.events import ContributionReceived
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.synchrony.division import size
from thalweg.server.deciding.values import Drop, Task, WorkerId
from thalweg.server.deciding.workers.assignments import Assignments, Pace


class Policy(ABC):
    """Decides, while steps are taken, who computes what and when it is applied.

    `version` counts the updates applied, `applied` holds steps that were applied though ones before them were not: a policy takes
    up where an earlier one was. After each call the coordinator looks at the version: at the end of an epoch it evaluates, and it
    calls `begin` for what follows.
    """

    def __init__(self, plan: Plan, version: int = 0, applied: Iterable[int] = ()) -> None:
        self.plan = plan
        self.version = version
        self.applied = set(applied)
        self._tasks: Assignments[Task] = Assignments()

    def at(self, now: float) -> None:
        """What follows happens at this time, in seconds."""
        self._tasks.now = now

    @abstractmethod
    def current(self) -> list[WorkerId]:
        """The workers that have the parameters at `version`."""

    def quick(self, workers: Iterable[WorkerId]) -> list[WorkerId]:
        """Those of the workers that are not known for stragglers, the fastest first."""
        return self._tasks.quick(workers)

    def pace(self, worker: WorkerId) -> Pace | None:
        """How a worker does, in microbatches; None if it has not joined."""
        return self._tasks.pace(worker)

    def weights(self, workers: Iterable[WorkerId]) -> dict[WorkerId, float]:
        """How much of the work each of the workers, which have joined, gets, in proportion."""
        return self._tasks.weights(workers)

    @abstractmethod
    def begin(self) -> list[Decision]:
        """Continues after `version`, up to the end of the epoch and not beyond."""

    @abstractmethod
    def joined(self, worker: WorkerId) -> list[Decision]:
        """A worker came. It gets the parameters."""

    def retire(self, worker: WorkerId) -> None:
        """A worker carries out the tasks that it has, and gets no more."""
        self._tasks.retire(worker)

    def busy(self, worker: WorkerId) -> bool:
        """Whether a worker has tasks."""
        return bool(self._tasks.tasks(worker))

    @abstractmethod
    def lost(self, worker: WorkerId) -> list[Decision]:
        """A worker is gone."""

    @abstractmethod
    def received(self, event: ContributionReceived) -> list[Decision]:
        """A chunk of a gradient arrived."""

    @abstractmethod
    def assign(self) -> list[Decision]:
        """Gives work to those who have none: what nobody has, then what takes too long."""

    def refresh(self) -> list[Decision]:
        """Brings the workers that are idle to the current version."""
        return []

    @abstractmethod
    def whole(self) -> bool:
        """Whether parameters and optimizer state are at `version` in all parts, and not in the middle of an update."""

    def _reduce(self, step: int) -> list[Decision]:
        """What has to be known of a step, whose gradient is whole, before it is applied to the current version."""
        return [Reduce(self.version, step, number) for number in range(len(self.plan.reductions))]

    def _send_constants(self, worker: WorkerId) -> list[Decision]:
        """Sends a worker that came what all versions have in common: once, before anything else."""
        return [SendRange((worker,), self.version, self.plan.constant)] if self.plan.constant else []

    def _send_version(self, worker: WorkerId) -> list[Decision]:
        """Sends a worker, which has the constants, the rest of the current version."""
        return [SendRange((worker,), self.version, self.plan.changing)] if self.plan.changing else []

    def _give(self, worker: WorkerId, task: Task, again: bool = False) -> AssignDifferentiate:
        self._tasks.give(worker, task, size(self.plan, task))
        return AssignDifferentiate(worker, self.version, task, again)

    def _note_answer(self, event: ContributionReceived) -> None:
        """A worker sends a task's chunks in order: the last one means that it is free again, whatever becomes of the answer."""
        for task in self._tasks.tasks(event.worker):
            if (task.step, task.node, task.end_chunk) == (event.step, event.node, event.chunks.stop):
                self._tasks.answered(event.worker, task)

    @staticmethod
    def _drop(event: ContributionReceived, reason: Drop) -> list[Decision]:
        return [Dropped(event.worker, reason)]
