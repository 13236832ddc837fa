"""Asynchronous training: a step's gradient is one worker's task, and applied as it comes (Dean et al. 2012).

All steps of an epoch are applied before those of the next are handed out.
"""

import math
from collections import deque
from collections.abc import Iterable

from thalweg.contract import tree
from thalweg.server.deciding.chunks import runs
from thalweg.server.deciding.decisions import ApplyRange, Decision, Promote, ReportStep
from thalweg.server.deciding.events import ContributionReceived
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.synchrony.base import Policy
from thalweg.server.deciding.synchrony.contributions import Contributions
from thalweg.server.deciding.synchrony.diverged import diverged
from thalweg.server.deciding.values import Drop, Task, WorkerId


class Asynchronous(Policy):
    """The decisions of one job's steps. `applied` holds the steps that are done though one before them is not.

    Earlier releases kept all steps of the epoch that are done there, which means the same.
    """

    def __init__(self, plan: Plan, version: int = 0, applied: Iterable[int] = ()) -> None:
        super().__init__(plan, version, applied)
        self._scaled = plan.spec.training.synchrony.asynchronous.scale_by_staleness
        self._has: dict[WorkerId, int] = {}  # the version of the parameters that each was sent last
        self._open: dict[int, Contributions] = {}  # the steps whose tasks somebody has, or had
        self._first = version - len(self.applied)  # the first step that is not done
        self._advance()
        self._next = self._first  # the first step whose task nobody has had
        self._end = self._first  # of the epoch, as soon as it has begun
        self._returned: deque[Task] = deque()  # the tasks of workers that were lost

    def current(self) -> list[WorkerId]:
        return [worker for worker in self._tasks.all_idle() if self._has[worker] == self.version]

    def whole(self) -> bool:
        return True

    def begin(self) -> list[Decision]:
        self._end = self.plan.end_of_epoch(self.version)
        return self.assign()

    def _advance(self) -> None:
        """Keeps in mind only what is done beyond the first step that is not."""
        while self._first in self.applied:
            self.applied.remove(self._first)
            self._first += 1

    def assign(self) -> list[Decision]:
        decisions: list[Decision] = []
        # Where there is nothing to be done, many are idle: they are only put in order if there is.
        for worker in self._tasks.all_idle() if self._tasks.any_idle and self._task_waits() else ():
            if self._task_waits():
                decisions += self._hand_out(worker, self._take_task())
        if self._tasks.any_idle:
            overdue = [task for task in self._tasks.overdue() if task.step in self._open]
            for worker, task in zip(self._tasks.all_idle() if overdue else (), overdue, strict=False):
                decisions += self._hand_out(worker, task, again=True)
        return decisions

    def _task_waits(self) -> bool:
        """Whether there is a task that nobody has."""
        # Steps that an earlier run did may lie right after those that are done, and are not in `applied` any more.
        self._next = max(self._next, self._first)
        while self._next < self._end and self._next in self.applied:
            self._next += 1
        return bool(self._returned) or self._next < self._end

    def _take_task(self) -> Task:
        """The first task that nobody has."""
        if self._returned:
            return self._returned.popleft()
        task = Task(self._next, 1, tree.root(self.plan.microbatches), 0, self.plan.chunks)
        self._open[task.step] = Contributions(self.plan, task.step, [task])
        self._next += 1
        return task

    def _hand_out(self, worker: WorkerId, task: Task, again: bool = False) -> list[Decision]:
        return [*self._bring(worker), self._give(worker, task, again)]

    def _bring(self, worker: WorkerId) -> list[Decision]:
        if self._has[worker] == self.version:
            return []
        self._has[worker] = self.version
        return self._send_version(worker)

    def refresh(self) -> list[Decision]:
        return [decision for worker in self._tasks.all_idle() for decision in self._bring(worker)]

    def joined(self, worker: WorkerId) -> list[Decision]:
        self._tasks.add(worker)
        self._has[worker] = self.version
        return self._send_constants(worker) + self._send_version(worker) + self.assign()

    def lost(self, worker: WorkerId) -> list[Decision]:
        self._has.pop(worker, None)
        self._returned.extendleft(reversed([task for task in self._tasks.remove(worker) if task.step in self._open]))
        return self.assign()

    def received(self, event: ContributionReceived) -> list[Decision]:
        self._note_answer(event)
        return self._take(event) + self.assign()

    def _take(self, event: ContributionReceived) -> list[Decision]:
        contributions = self._open.get(event.step)
        if contributions is None:
            known = event.step < self._first or event.step in self.applied
            return self._drop(event, Drop.LATE if known else Drop.UNKNOWN)
        task = contributions.task_of(event)
        if task is None or event.version > self.version:
            return self._drop(event, Drop.UNKNOWN)
        taken = contributions.take(event, task)
        if taken is None:
            return self._drop(event, Drop.DUPLICATE)
        return taken + (self._apply(contributions) if contributions.complete == self.plan.sent else [])

    def _apply(self, contributions: Contributions) -> list[Decision]:
        sums = contributions.sums
        if sums is None or contributions.oldest_version is None:
            raise AssertionError("a step is complete without its sums")
        if not math.isfinite(sums.loss):
            return diverged(f"the loss became {sums.loss}", self.version)
        step, samples, staleness = (
            contributions.step,
            self.plan.samples_of(contributions.step),
            self.version - contributions.oldest_version,
        )
        factor = self.plan.schedule_factor(self.version) / (max(1, staleness) if self._scaled else 1)
        decisions = self._reduce(step)
        decisions += [ApplyRange(self.version, step, chunks, factor) for chunks in runs(self.plan.sent)]
        del self._open[step]
        self.applied.add(step)
        self._advance()
        self.version += 1
        decisions.append(Promote(self.version, step))
        decisions.append(ReportStep(self.version - 1, sums.loss / samples, samples, factor, staleness))
        return decisions
