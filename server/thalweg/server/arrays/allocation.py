"""Where a job's arrays are to be: here, or in part at shards."""

from typing import Protocol

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.server.arrays.copies import Spare
from thalweg.server.arrays.interface import Arrays
from thalweg.server.arrays.local import LocalArrays
from thalweg.server.arrays.parameters import Parameters
from thalweg.server.arrays.pool import ArithmeticPool
from thalweg.server.arrays.sharded.arrays import ShardedArrays
from thalweg.server.arrays.sharded.registry import ShardRegistry
from thalweg.server.deciding.decision_queue import DecisionQueue
from thalweg.server.deciding.plan import Plan
from thalweg.server.telemetry import Telemetry


class SharedMemory(Protocol):
    """Memory that a job shares with workers on this machine."""

    def allocate(self, elements: int, dtype: np.dtype[np.floating]) -> tuple[Slab, Slab] | None:
        """The two versions of the parameters, if they are to be shared."""
        ...

    def withdraw(self) -> None:
        """Nothing will be shared."""
        ...


def allocate(
    plan: Plan,
    sharing: SharedMemory,
    shards: ShardRegistry | None,
    queue: DecisionQueue,
    telemetry: Telemetry,
    crew: ArithmeticPool | None,
    spare: Spare,
) -> Arrays:
    """Makes a job's arrays.

    They are split over the shards that are there, if there are any that suit the job; else the parameters lie where `sharing`
    lets workers read them. `crew` shares in the arithmetic, `spare` gives time for copies. Raises MemoryError or ValueError if
    they do not fit.
    """
    suitable = shards.suitable(plan) if shards else []
    if shards and suitable:
        sharing.withdraw()
        sharded = ShardedArrays(plan, suitable, shards, queue, telemetry, crew, spare)
        telemetry.notice(f"the parameters are split over this server and {', '.join(sharded.addresses)}")
        return sharded
    buffers = sharing.allocate(plan.elements, np.dtype(plan.spec.model.dtype))
    return LocalArrays(Parameters(plan, buffers, crew), telemetry, spare, queue.fail)
