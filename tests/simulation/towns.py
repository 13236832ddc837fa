"""Towns, each drawn from a seed, and what the guarantees say of every one of them."""

import asyncio
import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.simulation.cluster import small_chunks
from tests.simulation.ground import FolderGround, MemoryGround
from tests.simulation.schedules import undisturbed
from tests.simulation.town import JOBS, MISHAPS, Town, excused
from tests.simulation.town_loop import SimulatedLoop
from thalweg.contract.states import ENDED, state_name
from thalweg.server import validation
from thalweg.server.storage.interface import Storage
from thalweg.server.storage.thinning import BOUNDS, Bounds
from thalweg.server.telemetry import steps_end
from thalweg.v1 import job_pb2

_ROUNDS = 25
# So small that older events are merged all the time.
SMALL = Bounds(recent_bytes=200, losses=10, parcels=3, parcel_losses=4, notices=2, routine=2, step_events=7, step_losses=20)


def check(seed: int, folder: Path | None = None, rounds: int = _ROUNDS) -> Town:
    """Lives through a seed, in memory or in a folder, and holds the end to the guarantees. Raises AssertionError."""
    drawn = random.Random(seed)
    kinds = drawn.sample(MISHAPS, drawn.randint(0, len(MISHAPS)))
    bounds = drawn.choice([BOUNDS, SMALL])
    ground = FolderGround(folder) if folder else MemoryGround(random.Random(seed))
    with small_chunks(), _without_collection(), asyncio.Runner(loop_factory=lambda: SimulatedLoop(random.Random(seed))) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, SimulatedLoop)
        town = Town(ground, loop, drawn, kinds, bounds)
        loop.set_exception_handler(lambda _, context: town.problems.extend(_problem(context)))
        runner.run(town.live(rounds))
        assert not town.problems, town.problems[0]
    storage = ground.open(bounds)
    try:
        _hold(storage, town)
    finally:
        storage.close()
    return town


@contextmanager
def _without_collection() -> Iterator[None]:
    """Copies of parameters are shared as long as somebody has one: when that ends must not depend on what ran before."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _problem(context: dict[str, object]) -> list[str]:
    """What a callback or a task raised that nobody waits for; not that it was cancelled, as all is when a server dies."""
    error = context.get("exception")
    return [f"{context['message']}: {error!r}"] if isinstance(error, Exception) else []


def _hold(storage: Storage, town: Town) -> None:
    for _, job in storage.jobs(1000):
        assert job.state in ENDED, f"{job.id} has not ended: {state_name(job.state)}, {job.status}"
        events = storage.events(job.id, 0, 10_000)
        numbers = [event.sequence for event in events]
        assert numbers == sorted(set(numbers)), f"events of {job.id} have no order"
        states = [event.state_changed.job for event in events if event.HasField("state_changed")]
        # An upgrade leaves out of the record what an earlier release did not know.
        job.spec.CopyFrom(validation.complete(job.spec))
        states[-1].owner, states[-1].shared = job.owner, job.shared
        assert states[-1] == job, f"{job.id} is on record otherwise than it was told"
        # All were resumed at the end, after the last cancellation.
        may_fail = job.id in town.poisoned or excused(job)
        assert may_fail or job.state == job_pb2.JOB_STATE_SUCCEEDED, f"{job.id} ended as {state_name(job.state)}: {job.error}"
        _hold_steps(storage, job, poisoned=job.id in town.poisoned)
        if job.state == job_pb2.JOB_STATE_SUCCEEDED:
            kept = storage.parameters(job.id)
            assert kept, f"{job.id} has no parameters"
            expected = undisturbed(JOBS[job.spec.name], 0)[0]
            assert b"".join(array.tobytes() for array in kept.arrays) == expected, f"{job.id} has other parameters"


def _hold_steps(storage: Storage, job: job_pb2.Job, poisoned: bool) -> None:
    """Each step is told once."""
    steps = 0
    for event in storage.events(job.id, 0, 10_000):
        if event.HasField("steps_taken") and not poisoned:
            assert event.steps_taken.first_step == steps, f"steps of {job.id} were told twice, or not at all"
            steps = steps_end(event.steps_taken)
    assert poisoned or storage.told(job.id)[0] == steps
