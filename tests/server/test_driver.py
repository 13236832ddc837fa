"""A job's driver: what cannot be ends the job and not the server, and parameters are had when they are there."""

import asyncio
from typing import Any

import numpy as np
import pytest

from tests.server.specs import PAYLOAD, make_spec
from tests.simulation.cluster import ImaginaryJournal
from tests.simulation.worker import ELEMENTS, LAYOUT
from thalweg.contract import frames
from thalweg.contract.errors import ThalwegError
from thalweg.contract.layout import Slab
from thalweg.contract.tree import Node
from thalweg.server.arrays.unallocated import Unallocated
from thalweg.server.deciding.decisions import ApplyRange, ForArrays, Keep, KeepInitial, Merge, Promote, Reduce
from thalweg.server.deciding.events import CheckpointDone, Event, RangeNotFinite
from thalweg.server.deciding.impossible import ImpossibleError
from thalweg.server.deciding.values import NOWHERE
from thalweg.server.driving.job.driver import JobDriver
from thalweg.server.driving.job.outcome import JobOutcome
from thalweg.v1 import job_pb2
from thalweg.v1 import parameter_service_pb2 as pb

PREPARED = pb.Prepared(layout=LAYOUT, train_samples=4)


class Silent:
    """A worker that says nothing of itself."""

    worker = 1
    name = "silent"
    place = NOWHERE

    def __init__(self) -> None:
        self.sent: list[pb.WorkResponse] = []

    def send(self, message: pb.WorkResponse) -> None:
        self.sent.append(message)

    def send_parameters(self, version: int, serialized: bytes, *, constant: bool) -> None:
        self.sent.append(pb.WorkResponse.FromString(serialized))

    def evict(self, error: ThalwegError | None = None) -> None:
        raise AssertionError(f"it was sent away: {error}")


def driver_of(ended: list[JobOutcome], **options: Any) -> JobDriver:
    job = job_pb2.Job(id="imaginary", spec=make_spec(), state=job_pb2.JOB_STATE_QUEUED)
    return JobDriver(job, ImaginaryJournal(), ended.append, lambda _: None, **options)


@pytest.mark.parametrize("event", [CheckpointDone(0.1), RangeNotFinite(0)])
def test_a_state_that_cannot_be_ends_the_job(event: Event) -> None:
    ended: list[JobOutcome] = []
    driver = driver_of(ended)
    driver.handle(event)
    (outcome,) = ended
    assert outcome.state == job_pb2.JOB_STATE_FAILED
    assert outcome.error == f"internal error: ImpossibleError: {type(event).__name__} before the job has parameters"
    assert driver.over.is_set()


@pytest.mark.parametrize(
    "decision",
    [
        Keep(0, Node(0, 0), range(1), PAYLOAD),
        KeepInitial(0, PAYLOAD),
        Merge(0, Node(1, 0), range(1)),
        Reduce(0, 0, 0),
        ApplyRange(0, 0, range(1), 1.0),
        Promote(1, 0),
    ],
)
def test_nothing_is_computed_before_there_are_arrays(decision: ForArrays) -> None:
    with pytest.raises(ImpossibleError, match=f"{type(decision).__name__} is decided before the job's arrays are allocated"):
        Unallocated().carry_out(decision)


def test_given_parameters_are_not_downloaded_before_they_are_read() -> None:
    slab = np.arange(ELEMENTS, dtype=np.float32)

    async def scenario() -> None:
        read = asyncio.get_running_loop().create_future()

        async def initial(_: job_pb2.Layout) -> Slab:
            await read
            return slab

        driver, worker = driver_of([], initial=initial), Silent()
        driver.join(worker)
        driver.receive(worker.worker, frames.unpacked(pb.WorkRequest(prepared=PREPARED)))
        with pytest.raises(ThalwegError) as caught:
            await driver.snapshot()
        assert caught.value.reason == "NO_PARAMETERS"
        read.set_result(None)
        while driver.job.status != "training":
            await asyncio.sleep(0)
        download = await driver.snapshot()
        assert download is not None
        assert download.arrays[0].tolist() == slab.tolist()
        driver.give_up("the test ends")

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_what_a_worker_says_of_its_memory_after_it_was_let_go_is_no_lie() -> None:
    driver, worker = driver_of([]), Silent()
    driver.join(worker)
    driver.leave(worker.worker)
    late = pb.Prepared(layout=LAYOUT, train_samples=4, shared_memory=True)
    driver.receive(worker.worker, frames.unpacked(pb.WorkRequest(prepared=late)))
    driver.give_up("the test ends")
