"""Where a job's arrays are to be: here, or in part at shards."""

import numpy as np

from thalweg.server.arrays.copies import Spare
from thalweg.server.arrays.interface import Arrays
from thalweg.server.arrays.local import LocalArrays
from thalweg.server.arrays.parameters import Parameters
from thalweg.server.arrays.pool import ArithmeticPool
from thalweg.server.arrays.sharded import ShardedArrays
from thalweg.server.deciding.plan import Plan
from thalweg.server.driving.decision_queue import DecisionQueue
from thalweg.server.driving.telemetry import Telemetry
from thalweg.server.sharding.registry import ShardRegistry
from thalweg.server.streams.memory_peers import JobSharing


def allocate(
    plan: Plan,
    sharing: JobSharing,
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
