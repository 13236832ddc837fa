"""Bulk-synchronous training: a step is applied when all its contributions are there (Valiant 1990).

Each chunk is added along the tree and applied for itself, as soon as its contributions are complete, while others are still
on their way. Only clipping by the global norm has to wait for the whole gradient.
"""

import math
from collections.abc import Iterable

from thalweg.contract import tree
from thalweg.contract.sums import Sums
from thalweg.contract.tree import Node
from thalweg.server.messages import (
    ApplyRange,
    AssignDifferentiate,
    ContributionReceived,
    Decision,
    Dropped,
    Finish,
    Keep,
    MeasureGradient,
    Merge,
    Promote,
    ReportStep,
    SendRange,
    Task,
    WorkerId,
)
from thalweg.server.plan import Plan
from thalweg.v1 import job_pb2


class Bulk:
    """The decisions of one job's steps."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.version = 0
        self._root = tree.root(plan.microbatches)
        self._clipped = plan.spec.optimizer.HasField("clip_global_norm")
        self._workers: dict[WorkerId, None] = {}
        self._open = False
        self._owners: dict[Task, WorkerId | None] = {}
        self._missing: dict[Task, set[int]] = {}
        self._tasks_of_node: dict[Node, list[Task]] = {}
        self._present: dict[int, set[Node]] = {}
        self._complete: set[int] = set()
        self._applied: set[int] = set()
        self._sums: dict[Node, Sums] = {}

    def begin(self, workers: Iterable[WorkerId]) -> list[Decision]:
        self._workers = dict.fromkeys(workers)
        self._open = True
        self._owners.clear()
        self._missing.clear()
        self._tasks_of_node.clear()
        self._present = {chunk: set() for chunk in range(self.plan.chunks)}
        self._complete.clear()
        self._applied.clear()
        self._sums.clear()
        shares = max(1, len(self._workers))
        owners: list[WorkerId | None] = [*self._workers] or [None]
        decisions: list[Decision] = []
        for share, owner in zip(range(shares), owners, strict=True):
            for task in self._share(share, shares):
                self._missing[task] = set(range(task.first_chunk, task.end_chunk))
                self._tasks_of_node.setdefault(task.node, []).append(task)
                decisions += self._assign(task, owner)
        return decisions

    def _share(self, share: int, shares: int) -> list[Task]:
        """One worker's tasks: a run of microbatches, or, where differentiation is numerical, chunks from all over the slab."""
        plan = self.plan
        if plan.numerical:
            return [Task(self.version, self._root, chunk, chunk + 1) for chunk in range(share, plan.chunks, shares)]
        nodes = tree.cover(_run(plan.microbatches, share, shares), plan.microbatches)
        return [Task(self.version, node, 0, plan.chunks) for node in nodes]

    def _assign(self, task: Task, worker: WorkerId | None) -> list[Decision]:
        self._owners[task] = worker
        return [] if worker is None else [AssignDifferentiate(worker, task)]

    def joined(self, worker: WorkerId) -> list[Decision]:
        self._workers[worker] = None
        return self._assign_orphans()

    def lost(self, worker: WorkerId) -> list[Decision]:
        self._workers.pop(worker, None)
        for task, owner in self._owners.items():
            if owner == worker:
                self._owners[task] = None
        return self._assign_orphans()

    def _assign_orphans(self) -> list[Decision]:
        if not self._open or not self._workers:
            return []
        decisions: list[Decision] = []
        load = dict.fromkeys(self._workers, 0)
        for task, owner in self._owners.items():
            if owner is not None and self._missing[task]:
                load[owner] += len(task.node.leaves(self.plan.microbatches))
        for task, owner in list(self._owners.items()):
            if owner is None and self._missing[task]:
                least = min(load, key=load.__getitem__)
                load[least] += len(task.node.leaves(self.plan.microbatches))
                decisions += self._assign(task, least)
        return decisions

    def received(self, event: ContributionReceived) -> list[Decision]:
        task = self._task_of(event)
        if task is None:
            return [Dropped(event.worker, "late" if event.version < self.version or not self._open else "unknown task")]
        if event.chunk not in self._missing[task]:
            return [Dropped(event.worker, "duplicate")]
        self._missing[task].discard(event.chunk)
        decisions: list[Decision] = [Keep(event.node, event.chunk, event.payload)]
        if event.sums is not None:
            self._sums[event.node] = event.sums
        decisions += self._add_up(event.node, event.chunk)
        if event.chunk in self._complete:
            decisions += self._apply(event.chunk)
        return decisions

    def _task_of(self, event: ContributionReceived) -> Task | None:
        if not self._open or event.version != self.version:
            return None
        tasks = self._tasks_of_node.get(event.node, ())
        return next((task for task in tasks if task.first_chunk <= event.chunk < task.end_chunk), None)

    def _add_up(self, node: Node, chunk: int) -> list[Decision]:
        """Adds a chunk along the tree as far as siblings are there."""
        decisions: list[Decision] = []
        present = self._present[chunk]
        present.add(node)
        while node != self._root:
            left, right = node.parent.children
            if right.exists(self.plan.microbatches):
                if left not in present or right not in present:
                    return decisions
                present -= {left, right}
                decisions.append(Merge(node.parent, chunk))
                if chunk == 0:
                    self._sums[node.parent] = self._sums[left] + self._sums[right]
            elif chunk == 0:
                self._sums[node.parent] = self._sums[left]
            node = node.parent
            present.add(node)
        self._complete.add(chunk)
        return decisions

    def _apply(self, chunk: int) -> list[Decision]:
        if self._root in self._sums and not math.isfinite(self._sums[self._root].loss):
            self._open = False
            return [Finish(job_pb2.JOB_STATE_FAILED, not_finite(f"the loss became {self._sums[self._root].loss}", self.version))]
        factor = self.plan.schedule_factor(self.version)
        decisions: list[Decision] = []
        if self._clipped:
            if len(self._complete) < self.plan.chunks:
                return []
            decisions.append(MeasureGradient())
            ready = range(self.plan.chunks)
        else:
            ready = range(chunk, chunk + 1)
        workers = tuple(self._workers)
        for each in ready:
            self._applied.add(each)
            decisions.append(ApplyRange(self.version, each, factor))
            decisions.append(SendRange(workers, self.version + 1, each))
        if len(self._applied) == self.plan.chunks:
            loss, samples = self._sums[self._root].loss, self.plan.samples_of(self.version)
            self._open = False
            self.version += 1
            decisions.append(Promote(self.version))
            decisions.append(ReportStep(self.version - 1, loss / samples, samples, factor))
        return decisions

    def applied_chunks(self) -> list[int]:
        return sorted(self._applied) if self._open else []


def _run(total: int, share: int, shares: int) -> range:
    return range(share * total // shares, (share + 1) * total // shares)


def not_finite(what: str, step: int) -> str:
    """The error of a training that diverged."""
    return (
        f"{what} at step {step}. Lower the optimizer's learning_rate, set optimizer.clip_global_norm (1.0, say), or look for "
        "extreme values in the data (data.standardize = true helps). The last finite parameters were kept."
    )
