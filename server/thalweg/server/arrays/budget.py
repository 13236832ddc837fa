"""The memory that jobs need on a server or a shard: computed from their plans, and reserved before anything is allocated.

Memory is counted in slabs: arrays with one number for each parameter. docs/cluster.md lists them; a test holds it to this.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from thalweg.contract import resources
from thalweg.contract.resources import size_text
from thalweg.learning import optimizers
from thalweg.server.arrays.downloads import MAX_COPIES
from thalweg.server.arrays.trajectory import Trajectory
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.synchrony.division import divide


class OverBudgetError(Exception):
    """More memory is needed than there can ever be. The message names both numbers."""


class Slabs(NamedTuple):
    """How many slabs a job takes at most, by what they are for."""

    # Two versions of the parameters, and the optimizer's state.
    training: int
    # What is on its way: sums of gradients that wait for others, and a version that is being sent.
    exchange: int
    # A checkpoint's copy of parameters and state, and those of the parameters that are being downloaded.
    copies: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def slabs(plan: Plan) -> Slabs:
    """The slabs that a job takes on a server without shards, with the workers that its specification wants."""
    state = len(optimizers.make(plan.optimizer).slots)
    # A gradient waits for reductions as for its norm, which are computed from the sum of its two last terms.
    whole = bool(plan.reductions)
    return Slabs(2 + state, _waiting(plan) + 2 * whole + 1, (1 + state) + MAX_COPIES)


def _waiting(plan: Plan) -> int:
    """How many sums of gradients wait at most for others to be added to them, in all steps that are open at once."""
    synchrony, workers = plan.spec.training.synchrony, plan.spec.training.workers
    if plan.numerical:
        return 1
    if synchrony.HasField("asynchronous"):
        return workers
    tasks = len(divide(plan, dict.fromkeys(range(workers), 1.0)))
    # Two are read where they came, by the update. Else, of two siblings in the tree one at most waits, and sums have slabs of
    # their own. A worker answers in order, so that as many of its gradients wait as a binary counter of them has digits.
    digits = math.ceil(tasks / workers).bit_length()
    waiting = 1 if tasks <= 2 else min(tasks, workers * digits)
    # Workers get shares that they end at the same time: as a rule they are one step ahead at most, whatever the bound.
    return waiting * (1 + min(synchrony.stale.bound, 1))


def of_server(plan: Plan, shards: int = 0) -> int:
    """The bytes that a job takes on a server, which shares the parameters with some shards.

    Copies are of the whole, wherever its parts lie: the server puts them together.
    """
    need = slabs(plan)
    own = -(-plan.chunks // (shards + 1)) / plan.chunks
    return math.ceil(((need.training + need.exchange) * own + need.copies) * _slab_bytes(plan)) + Trajectory(plan).max_bytes


def of_shard(plan: Plan, chunks: int) -> int:
    """The bytes that a job takes on a shard that holds some of its chunks. It copies what it sends for a checkpoint."""
    return math.ceil(slabs(plan).total * chunks / plan.chunks * _slab_bytes(plan))


def _slab_bytes(plan: Plan) -> int:
    return plan.elements * np.dtype(plan.spec.model.dtype).itemsize


class Budget:
    """What has been promised of this process's memory, and to whom.

    Memory that was promised is often not in use yet. So what is free is what is available now, less what was promised beyond what
    this process has grown by since the budget was made. `memory` and `resident` say what is available and in use.
    """

    def __init__(
        self,
        memory: Callable[[], resources.Memory] = resources.memory,
        resident: Callable[[], int] = resources.resident,
    ) -> None:
        self._memory = memory
        self._resident = resident
        self._base = resident()
        self._promised: dict[object, int] = {}

    def reserve(self, owner: object, need: int) -> str:
        """Promises memory to an owner, who has none yet. If there is too little now, says so; "" means that it was promised.

        Raises OverBudgetError if it could not be had though nobody else had any.
        """
        total, available = self._memory()
        most = total - self._base
        if need > most:
            raise OverBudgetError(
                f"about {size_text(need)} of memory are needed; this machine has at most {size_text(max(0, most))}"
            )
        promised = sum(self._promised.values())
        free = max(0, available - max(0, promised - (self._resident() - self._base)))
        if need > free:
            others = f"; {size_text(promised)} are reserved for other jobs" if promised else ""
            return f"about {size_text(need)} of memory are needed, but {size_text(free)} are free{others}"
        self._promised[owner] = need
        return ""

    def release(self, owner: object) -> None:
        """Takes back what an owner was promised, if anything."""
        self._promised.pop(owner, None)
