"""Asynchronous training: a step's gradient is one worker's task, and applied as it comes (Dean et al. 2012).

All steps of an epoch are applied before those of the next are handed out.
"""

import math
from collections.abc import Iterable

from thalweg.contract import tree
from thalweg.server.chunks import bits
from thalweg.server.messages import (
    ApplyRange,
    ContributionReceived,
    Decision,
    Drop,
    MeasureGradient,
    Promote,
    ReportStep,
    Task,
    WorkerId,
)
from thalweg.server.plan import Plan
from thalweg.server.synchrony.base import Policy
from thalweg.server.synchrony.diverged import diverged
from thalweg.server.synchrony.gathering import Gathering


class Asynchronous(Policy):
    """The decisions of one job's steps. `applied` holds the steps of the epoch that are done."""

    def __init__(self, plan: Plan, version: int = 0, applied: Iterable[int] = ()) -> None:
        super().__init__(plan, version, applied)
        self._scaled = plan.spec.training.synchrony.asynchronous.scale_by_staleness
        self._has: dict[WorkerId, int] = {}  # the version of the parameters that each was sent last
        self._open: dict[int, Gathering] = {}
        self._waiting: list[Task] = []

    def current(self) -> list[WorkerId]:
        return [worker for worker, version in self._has.items() if version == self.version and self._tasks.idle(worker)]

    def whole(self) -> bool:
        return True

    def begin(self) -> list[Decision]:
        if not self._open:
            start, end = self.plan.start_of_epoch(self.version), self.plan.end_of_epoch(self.version)
            if self.version == start:
                self.applied.clear()
            for step in range(start, end):
                if step not in self.applied:
                    task = Task(step, 1, tree.root(self.plan.microbatches), 0, self.plan.chunks)
                    self._open[step] = Gathering(self.plan, step, [task])
                    self._waiting.append(task)
        return self.assign()

    def assign(self) -> list[Decision]:
        decisions: list[Decision] = []
        idle = [worker for worker in self._has if self._tasks.idle(worker)]
        while idle and self._waiting:
            decisions += self._hand_out(idle.pop(0), self._waiting.pop(0))
        overdue = [task for task in self._tasks.overdue() if task.step in self._open] if idle else []
        for worker, task in zip(idle, overdue, strict=False):
            decisions += self._hand_out(worker, task, again=True)
        return decisions

    def _hand_out(self, worker: WorkerId, task: Task, again: bool = False) -> list[Decision]:
        return [*self._bring(worker), self._give(worker, task, again)]

    def _bring(self, worker: WorkerId) -> list[Decision]:
        if self._has[worker] == self.version:
            return []
        self._has[worker] = self.version
        return self._send_all(worker)

    def refresh(self) -> list[Decision]:
        return [decision for worker in self._has if self._tasks.idle(worker) for decision in self._bring(worker)]

    def joined(self, worker: WorkerId) -> list[Decision]:
        self._tasks.add(worker)
        self._has[worker] = self.version
        return self._send_all(worker) + self.assign()

    def lost(self, worker: WorkerId) -> list[Decision]:
        self._has.pop(worker, None)
        self._waiting = [task for task in self._tasks.remove(worker) if task.step in self._open] + self._waiting
        return self.assign()

    def received(self, event: ContributionReceived) -> list[Decision]:
        self._note_answer(event)
        return self._take(event) + self.assign()

    def _take(self, event: ContributionReceived) -> list[Decision]:
        gathering = self._open.get(event.step)
        if gathering is None:
            known = event.step in self.applied or event.step < self.plan.start_of_epoch(self.version)
            return self._drop(event, Drop.LATE if known else Drop.UNKNOWN)
        task = gathering.task_of(event)
        if task is None or event.version > self.version:
            return self._drop(event, Drop.UNKNOWN)
        taken = gathering.take(event, task)
        if taken is None:
            return self._drop(event, Drop.DUPLICATE)
        return taken + (self._apply(gathering) if gathering.complete == bits(range(self.plan.chunks)) else [])

    def _apply(self, gathering: Gathering) -> list[Decision]:
        sums = gathering.sums
        if sums is None or gathering.oldest_version is None:
            raise AssertionError("a step is complete without its sums")
        if not math.isfinite(sums.loss):
            return diverged(f"the loss became {sums.loss}", self.version)
        step, samples, staleness = gathering.step, self.plan.samples_of(gathering.step), self.version - gathering.oldest_version
        factor = self.plan.schedule_factor(self.version) / (max(1, staleness) if self._scaled else 1)
        decisions: list[Decision] = [MeasureGradient(step)] if self._clipped else []
        decisions.append(ApplyRange(self.version, step, range(self.plan.chunks), factor))
        del self._open[step]
        self.applied.add(step)
        self.version += 1
        decisions.append(Promote(self.version, step))
        decisions.append(ReportStep(self.version - 1, sums.loss / samples, samples, factor, staleness))
        return decisions
