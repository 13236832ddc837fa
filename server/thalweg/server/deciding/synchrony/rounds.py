"""Steps in order: each is applied when all its contributions are there, and some may be begun before it is.

Each chunk is added along the tree and applied independently, as soon as its contributions are complete, while others are still
on their way. Only reductions, as for clipping by the global norm, have to wait for the whole gradient.
"""

import math
from collections.abc import Iterable

from thalweg.server.deciding.chunks import bits, runs
from thalweg.server.deciding.decisions import ApplyRange, Decision, Promote, ReportStep, SendRange
from thalweg.server.deciding.events import ContributionReceived
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.synchrony.base import Policy
from thalweg.server.deciding.synchrony.contributions import Contributions
from thalweg.server.deciding.synchrony.diverged import diverged
from thalweg.server.deciding.synchrony.division import Part, divide
from thalweg.server.deciding.synchrony.waiting_tasks import WaitingTasks
from thalweg.server.deciding.values import Drop, Task, WorkerId

# The number of waiting tasks at which no further step is begun for now. A job may allow a thousand steps of thousands of tasks.
_ENOUGH = 1 << 14


class Rounds(Policy):
    """The decisions of one job's steps. A step's contributions may be computed up to `bound` versions before the step's own."""

    def __init__(self, plan: Plan, version: int = 0, applied: Iterable[int] = (), bound: int = 0) -> None:
        super().__init__(plan, version, applied)
        self._bound = bound
        self._began = version
        self._end = version  # of the epoch that is under way
        self._held_back = False
        self._workers: dict[WorkerId, bool] = {}  # whether each has the current parameters
        self._open: dict[int, Contributions] = {}
        self._waiting = WaitingTasks()
        self._applied = 0
        self._weights: dict[WorkerId, float] | None = None
        self._division: list[tuple[WorkerId | None, Part]] = []

    def current(self) -> list[WorkerId]:
        return [worker for worker, has in self._workers.items() if has]

    def whole(self) -> bool:
        return not self._applied

    def begin(self) -> list[Decision]:
        self._end = self.plan.end_of_epoch(self.version)
        self._begin_steps()
        return self._apply() + self.assign()

    def _begin_steps(self) -> None:
        """Begins the steps that may be begun, unless so many tasks wait that there is time for that later."""
        while (more := self._began <= self.version + self._bound and self._began < self._end) and len(self._waiting) < _ENOUGH:
            weights = self._tasks.weights(self.current())
            shared = self._divide(weights)
            step = self.plan.minibatch(self._began)
            self._open[step] = Contributions(self.plan, step, [task for _, task in shared])
            for worker, task in shared:
                self._waiting.add(task, worker)
            for unused in weights.keys() - {worker for worker, _ in shared}:
                self._tasks.passed_over(unused)
            self._began += 1
        self._held_back = more

    def _divide(self, weights: dict[WorkerId, float]) -> list[tuple[WorkerId | None, Task]]:
        """The next step's tasks, and who is to have each. Steps that are divided alike are looked at once."""
        step, end = self.plan.minibatch(self._began), self.plan.minibatch(self._began + 1)
        if weights != self._weights:
            self._weights, self._division = weights, divide(self.plan, weights)
        return [(worker, Task(step, end - step, *part)) for worker, part in self._division]

    def assign(self) -> list[Decision]:
        if self._held_back and len(self._waiting) < _ENOUGH // 2:
            self._begin_steps()
        decisions: list[Decision] = []
        for find in (self._waiting.take_share, lambda _: self._waiting.take_any()):
            for worker in self._idle() if self._waiting else ():
                decisions += [self._give(worker, task) for task in find(worker)]
        if self._tasks.any_idle:
            overdue = [task for task in self._tasks.overdue() if self._is_open(task)]
            idle = self._idle() if overdue else ()
            decisions += [self._give(worker, task, again=True) for worker, task in zip(idle, overdue, strict=False)]
        return decisions

    def _idle(self) -> list[WorkerId]:
        return [worker for worker in self._tasks.all_idle() if self._workers[worker]]

    def _is_open(self, task: Task) -> bool:
        return task.step in self._open and self._open[task.step].open(task)

    def joined(self, worker: WorkerId) -> list[Decision]:
        self._tasks.add(worker)
        return self._send_constants(worker) + self._catch_up(worker) + self.assign()

    def retire(self, worker: WorkerId) -> None:
        super().retire(worker)
        # It has no share in later steps, and needs no later parameters.
        if worker in self._workers:
            self._workers[worker] = False

    def _catch_up(self, worker: WorkerId) -> list[Decision]:
        self._workers[worker] = True
        changed = runs(self._applied & bits(self.plan.changing))
        return self._send_version(worker) + [SendRange((worker,), self.version + 1, chunks) for chunks in changed]

    def lost(self, worker: WorkerId) -> list[Decision]:
        self._workers.pop(worker, None)
        orphans = self._tasks.remove(worker)
        for task in orphans:
            if self._is_open(task):
                self._waiting.add(task, None)
        return self.assign()

    def received(self, event: ContributionReceived) -> list[Decision]:
        self._note_answer(event)
        decisions = self._take(event)
        if not self._workers[event.worker] and self._tasks.idle(event.worker):
            decisions += self._catch_up(event.worker)
        return decisions + self.assign()

    def _take(self, event: ContributionReceived) -> list[Decision]:
        if event.step < self.plan.minibatch(self.version):
            return self._drop(event, Drop.LATE)
        contributions = self._open.get(event.step)
        task = contributions.task_of(event) if contributions else None
        if contributions is None or task is None or not self._may_be_at(event.version, event.step):
            return self._drop(event, Drop.UNKNOWN)
        taken = contributions.take(event, task)
        return self._drop(event, Drop.DUPLICATE) if taken is None else taken + self._apply()

    def _may_be_at(self, version: int, step: int) -> bool:
        """Whether a contribution to a step may be computed at a version."""
        own = self.plan.version_of(step)
        return own - self._bound <= version <= min(own, self.version)

    def _apply(self) -> list[Decision]:
        """Applies what is complete of the next step. If that makes a version, nothing of the steps after it is applied yet."""
        contributions = self._open.get(self.plan.minibatch(self.version))
        if contributions is None:
            return []
        sums = contributions.sums
        if sums is not None and not math.isfinite(sums.loss):
            return diverged(f"the loss became {sums.loss}", self.version)
        ready = contributions.complete & ~self._applied
        if not ready or (self.plan.reductions and ready != self.plan.sent):
            return []
        decisions = self._reduce(contributions.step)
        workers, factor = tuple(self.current()), self.plan.schedule_factor(self.version)
        self._applied |= ready
        for chunks in runs(ready):
            decisions.append(ApplyRange(self.version, contributions.step, chunks, factor))
            changed = range(chunks.start, min(chunks.stop, self.plan.changing.stop))
            if changed:
                decisions.append(SendRange(workers, self.version + 1, changed))
        if self._applied == self.plan.sent:
            decisions += self._promote(contributions, factor)
        return decisions

    def _promote(self, contributions: Contributions, factor: float) -> list[Decision]:
        if contributions.sums is None or contributions.oldest_version is None:
            raise AssertionError("a step is complete without its sums")
        samples, staleness = self.plan.samples_of(self.version), self.version - contributions.oldest_version
        del self._open[contributions.step]
        self._applied = 0
        self.version += 1
        # A worker that still computes what is done already gets no parameters now, but the newest when it is free.
        for worker in self._workers:
            if any(not self._is_open(task) for task in self._tasks.tasks(worker)):
                self._workers[worker] = False
        return [
            Promote(self.version, contributions.step),
            ReportStep(self.version - 1, contributions.sums.loss / samples, samples, factor, staleness),
        ]
