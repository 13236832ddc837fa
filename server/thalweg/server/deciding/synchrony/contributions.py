"""The contributions of one step: which have come, and how they are added along the tree, chunk by chunk."""

from collections.abc import Iterable, Iterator

from thalweg.contract import tree
from thalweg.contract.sums import Sums
from thalweg.contract.tree import Node
from thalweg.server.deciding.chunks import bits, runs
from thalweg.server.deciding.decisions import Decision, Keep, Merge
from thalweg.server.deciding.events import ContributionReceived
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.values import Task


class Contributions:
    """One step's contributions, each of which is taken once. `complete` is the set of chunks to which all have come."""

    def __init__(self, plan: Plan, step: int, tasks: Iterable[Task]) -> None:
        self.step = step
        self.complete = 0
        self.oldest_version: int | None = None
        self._microbatches = plan.microbatches
        self._last = 1 << max(plan.chunks, 1) - 1
        self._root = tree.root(plan.microbatches)
        self._missing = {task: plan.sent & bits(range(task.first_chunk, task.end_chunk)) for task in tasks}
        self._tasks_of_node: dict[Node, list[Task]] = {}
        for task in self._missing:
            self._tasks_of_node.setdefault(task.node, []).append(task)
        self._present: dict[Node, int] = {}
        self._sums: dict[Node, Sums] = {}

    @property
    def sums(self) -> Sums | None:
        """The whole step's sums; None as long as they are not complete."""
        return self._sums.get(self._root)

    def open(self, task: Task) -> bool:
        """Whether a task's answer is waited for."""
        return bool(self._missing.get(task))

    def task_of(self, event: ContributionReceived) -> Task | None:
        """The task that a contribution belongs to."""
        tasks, chunks = self._tasks_of_node.get(event.node, ()), event.chunks
        return next((task for task in tasks if task.first_chunk <= chunks.start and chunks.stop <= task.end_chunk), None)

    def take(self, event: ContributionReceived, task: Task) -> list[Decision] | None:
        """Takes what is new of a contribution to a task. None if all of it has come before."""
        new = self._missing[task] & bits(event.chunks)
        if not new:
            return None
        self._missing[task] &= ~new
        self.oldest_version = event.version if self.oldest_version is None else min(self.oldest_version, event.version)
        if event.sums is not None and new & self._last:
            self._sums[event.node] = event.sums
        kept: list[Decision] = [Keep(self.step, event.node, chunks, event.payload) for chunks in runs(new)]
        return kept + list(self._add_up(event.node, new))

    def _add_up(self, node: Node, new: int) -> Iterator[Decision]:
        """Adds chunks along the tree as far as siblings are there."""
        while new:
            self._present[node] = self._present.get(node, 0) | new
            if node == self._root:
                self.complete |= new
                return
            parent = node.parent
            left, right = parent.children
            if right.exists(self._microbatches):
                new &= self._present.get(left, 0) & self._present.get(right, 0)
                self._present[left] = self._present.get(left, 0) & ~new
                self._present[right] = self._present.get(right, 0) & ~new
                for chunks in runs(new):
                    yield Merge(self.step, parent, chunks)
                if new & self._last:
                    self._sums[parent] = self._sums[left] + self._sums[right]
            elif new & self._last:
                self._sums[parent] = self._sums[left]
            node = parent
