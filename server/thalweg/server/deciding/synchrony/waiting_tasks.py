"""The tasks of some steps that nobody has yet."""

from collections import OrderedDict
from typing import TypeAlias

from thalweg.server.deciding.values import Task, WorkerId

# In the order in which they were added. No dict: where the first are taken out one after the other, it is looked through for the
# first that is left.
_Ordered: TypeAlias = OrderedDict[Task, None]


class WaitingTasks:
    """Tasks that wait to be handed out, each for the worker whose share it is, or for any.

    Steps are added in rising order. How long it takes to find a task does not depend on how many workers there are.
    """

    def __init__(self) -> None:
        self._owners: dict[Task, WorkerId | None] = {}
        self._shares: dict[WorkerId | None, dict[int, _Ordered]] = {}
        self._steps: dict[int, _Ordered] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def add(self, task: Task, owner: WorkerId | None) -> None:
        """A task is to be handed out: to its owner when that is idle, or else to any other."""
        self._owners[task] = owner
        self._shares.setdefault(owner, {}).setdefault(task.step, OrderedDict())[task] = None
        self._steps.setdefault(task.step, OrderedDict())[task] = None

    def take_share(self, worker: WorkerId) -> list[Task]:
        """A worker's share of the first step of which it has one."""
        steps = self._shares.get(worker)
        return [self._taken(task) for task in list(next(iter(steps.values())))] if steps else []

    def take_any(self) -> list[Task]:
        """One task of the first step that has one: it waits for nobody, as its worker is lost, or for a worker that is slower."""
        return [self._taken(next(iter(self._steps[min(self._steps)])))] if self._steps else []

    def _taken(self, task: Task) -> Task:
        owner, step = self._owners.pop(task), task.step
        shares, tasks = self._shares[owner], self._steps[step]
        del shares[step][task], tasks[task]
        if not shares[step]:
            del shares[step]
        if not shares:
            del self._shares[owner]
        if not tasks:
            del self._steps[step]
        return task
