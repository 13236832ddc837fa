"""The contributions of one step: which have come, and how they are added along the tree, chunk by chunk."""

from collections.abc import Iterable

from thalweg.contract import tree
from thalweg.contract.sums import Sums
from thalweg.contract.tree import Node
from thalweg.server.messages import ContributionReceived, Decision, Keep, Merge, Task
from thalweg.server.plan import Plan


class Gathering:
    """One step's contributions, each of which is taken once."""

    def __init__(self, plan: Plan, step: int, tasks: Iterable[Task]) -> None:
        self.step = step
        self.complete: set[int] = set()
        self.oldest_version: int | None = None
        self._microbatches = plan.microbatches
        self._root = tree.root(plan.microbatches)
        self._missing = {task: set(range(task.first_chunk, task.end_chunk)) for task in tasks}
        self._tasks_of_node: dict[Node, list[Task]] = {}
        for task in self._missing:
            self._tasks_of_node.setdefault(task.node, []).append(task)
        self._present: dict[int, set[Node]] = {}
        self._sums: dict[Node, Sums] = {}

    @property
    def sums(self) -> Sums | None:
        """The whole step's sums; None as long as they are not complete."""
        return self._sums.get(self._root)

    def open(self, task: Task) -> bool:
        """Whether a task's answer is waited for."""
        return bool(self._missing.get(task))

    def task_of(self, node: Node, chunk: int) -> Task | None:
        """The task that a chunk of a node's gradient belongs to."""
        tasks = self._tasks_of_node.get(node, ())
        return next((task for task in tasks if task.first_chunk <= chunk < task.end_chunk), None)

    def take(self, event: ContributionReceived, task: Task) -> list[Decision] | None:
        """Takes a chunk of a task's answer. None if it has come before."""
        if event.chunk not in self._missing[task]:
            return None
        self._missing[task].discard(event.chunk)
        self.oldest_version = event.version if self.oldest_version is None else min(self.oldest_version, event.version)
        if event.sums is not None:
            self._sums[event.node] = event.sums
        return [Keep(self.step, event.node, event.chunk, event.payload), *self._add_up(event.node, event.chunk)]

    def _add_up(self, node: Node, chunk: int) -> list[Decision]:
        """Adds a chunk along the tree as far as siblings are there."""
        decisions: list[Decision] = []
        present = self._present.setdefault(chunk, set())
        present.add(node)
        while node != self._root:
            left, right = node.parent.children
            if right.exists(self._microbatches):
                if left not in present or right not in present:
                    return decisions
                present -= {left, right}
                decisions.append(Merge(self.step, node.parent, chunk))
                if chunk == 0:
                    self._sums[node.parent] = self._sums[left] + self._sums[right]
            elif chunk == 0:
                self._sums[node.parent] = self._sums[left]
            node = node.parent
            present.add(node)
        self.complete.add(chunk)
        return decisions
