"""The metrics over one set of samples at one version, block by block."""

from collections import deque
from collections.abc import Mapping

from thalweg.contract.sums import Sums
from thalweg.server.deciding.decisions import AssignEvaluate, Decision
from thalweg.server.deciding.events import EvaluationReceived
from thalweg.server.deciding.values import EvaluationTask, Split, WorkerId
from thalweg.server.deciding.workers.assignments import Assignments
from thalweg.v1 import job_pb2

# Evaluation is divided and summed in blocks of this many samples: a constant, so that metrics are a property of the job.
EVALUATION_BLOCK = 1024


class Evaluation:
    """One evaluation, while it lasts. `paces` is what is known of how long samples take; `before` are the metrics, of evaluations
    at the same version, that are kept for later."""

    def __init__(
        self, version: int, split: Split, samples: int, paces: deque[float], before: Mapping[Split, job_pb2.Metrics]
    ) -> None:
        self.split = split
        self.samples = samples
        self.before = before
        self.open: dict[int, EvaluationTask] = {
            first: EvaluationTask(version, split, first, min(first + EVALUATION_BLOCK, samples))
            for first in range(0, samples, EVALUATION_BLOCK)
        }
        self._waiting = list(self.open.values())
        self._tasks: Assignments[EvaluationTask] = Assignments(paces)
        self._workers: dict[WorkerId, None] = {}
        self._sums: dict[int, Sums] = {}

    def assign(self, workers: list[WorkerId], quick: list[WorkerId], now: float) -> list[Decision]:
        """Gives `quick` workers that are idle blocks that nobody has, and any that are idle those that take another too long."""
        self._tasks.now = now
        if not self._waiting and not self._tasks.overdue():
            return []
        for worker in workers:
            if worker not in self._workers:
                self._workers[worker] = None
                self._tasks.add(worker)
        free = [worker for worker in quick if self._tasks.idle(worker)]
        decisions: list[Decision] = [self._give(worker, task) for worker, task in zip(free, self._waiting, strict=False)]
        del self._waiting[: len(decisions)]
        idle = [worker for worker in workers if self._tasks.idle(worker)]
        overdue = [task for task in self._tasks.overdue() if task.first in self.open] if idle else []
        return decisions + [self._give(worker, task) for worker, task in zip(idle, overdue, strict=False)]

    def _give(self, worker: WorkerId, task: EvaluationTask) -> AssignEvaluate:
        self._tasks.give(worker, task, task.end - task.first)
        return AssignEvaluate(worker, task)

    def busy(self, worker: WorkerId) -> bool:
        """Whether a worker has blocks to evaluate."""
        return bool(self._tasks.tasks(worker))

    def remove(self, worker: WorkerId) -> None:
        """Nobody has the blocks any more that only this worker had."""
        if self._workers.pop(worker, 0) is None:
            self._waiting += [task for task in self._tasks.remove(worker) if task.first in self.open]

    def received(self, event: EvaluationReceived, now: float) -> bool:
        """Takes an answer. False if it is not expected."""
        self._tasks.now = now
        answer = (event.version, event.split, event.first)
        for task in self._tasks.tasks(event.worker):
            if task[:3] == answer:
                self._tasks.answered(event.worker, task)
        if event.first not in self.open or self.open[event.first][:3] != answer:
            return False
        task = self.open.pop(event.first)
        self._sums[event.first] = event.sums
        if task in self._waiting:
            self._waiting.remove(task)
        return True

    def total(self) -> Sums:
        """The sums over all blocks, added in their order."""
        total = Sums()
        for first in sorted(self._sums):
            total += self._sums[first]
        return total
