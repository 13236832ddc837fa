"""Copies of a running job's arrays are made in slices, between other events, each of the version at which it was asked for."""

import asyncio
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.barrier import Barrier
from tests.end_to_end.cluster import running_server, stub_of
from tests.end_to_end.command import wait_for
from tests.server import test_training_service as training_service
from tests.server.specs import make_spec
from thalweg.contract import tree
from thalweg.contract.endpoint import Endpoint
from thalweg.contract.layout import Slab
from thalweg.learning.optimizers import OptimizerState
from thalweg.server.arrays import copies as copies_module
from thalweg.server.arrays.copies import Copies, between_events
from thalweg.server.arrays.parameters import Parameters
from thalweg.server.deciding import plan as plans
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.values import Facts
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub
from thalweg.workers.worker import work

ELEMENTS, CHUNK_BYTES = 100, 20


class Spare:
    """Time for copies, which a test gives. `turns` is how often it was used."""

    def __init__(self) -> None:
        self.act: Callable[[], bool] | None = None
        self.turns = 0

    def __call__(self, act: Callable[[], bool]) -> None:
        assert self.act is None, "it is asked for once, however many copies there are"
        self.act = act

    def give(self) -> bool:
        """Gives some. Whether it was wanted."""
        if self.act is None:
            return False
        self.turns += 1
        if not self.act():
            self.act = None
        return True


class Desk:
    """Parameters on their way, and what is copied of them."""

    def __init__(self) -> None:
        self.parameters = Parameters(Plan(make_spec(microbatches=1), Facts(ELEMENTS, 4, 0, metrics=())))
        self.spare = Spare()
        self.failures: list[Exception] = []
        self.copies = Copies(self.parameters, self.spare, self.failures.append)
        # What was copied, and what it should be, in the order in which it came.
        self.came: list[tuple[str, OptimizerState, OptimizerState]] = []

    def copy(self, name: str, then: Callable[[], object] = lambda: None) -> None:
        expected = {each: slab.copy() for each, slab in self.parameters.slabs.items()}
        into: OptimizerState = {each: np.full_like(slab, np.nan) for each, slab in expected.items()}

        def came() -> None:
            self.came.append((name, into, expected))
            then()

        self.copies.copy(into, came)

    def step(self) -> None:
        version, root = self.parameters.version, tree.root(1)
        for chunk in self.parameters.chunks:
            values: Slab = np.random.default_rng([version, chunk]).normal(size=5).astype(np.float32)
            self.parameters.keep(version, root, chunk, values)
            self.copies.before_update(version, range(chunk, chunk + 1))
            assert self.parameters.apply(version, version, range(chunk, chunk + 1), 1.0)
        self.parameters.promote(version + 1, version)

    def names(self) -> list[str]:
        for _, into, expected in self.came:
            assert {name: slab.tobytes() for name, slab in into.items()} == {
                name: slab.tobytes() for name, slab in expected.items()
            }
        return [name for name, _, _ in self.came]


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(plans, "CHUNK_BYTES", CHUNK_BYTES)
    monkeypatch.setattr(copies_module, "SLICE_BYTES", 2 * CHUNK_BYTES)
    desk = Desk()
    desk.step()
    return desk


@pytest.mark.parametrize("seed", range(20))
def test_a_copy_is_of_the_version_at_which_it_was_asked_for(desk: Desk, seed: int) -> None:
    random, asked = np.random.default_rng(seed), list[str]()
    for number in range(60):
        match random.integers(4):
            case 0:
                asked.append(str(number))
                desk.copy(asked[-1])
            case 1:
                desk.step()
            case _:
                desk.spare.give()
    while desk.spare.give():
        pass
    assert desk.names() == asked
    assert not desk.failures


def test_a_turn_copies_a_slice_and_no_more(desk: Desk) -> None:
    slabs = len(desk.parameters.slabs)
    desk.copy("one")
    assert desk.names() == []
    while desk.spare.give():
        pass
    assert desk.names() == ["one"]
    # The first slice was copied when the copy was asked for.
    assert desk.spare.turns == slabs * ELEMENTS * 4 // (2 * CHUNK_BYTES) - 1


def test_what_is_small_is_copied_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies_module, "SLICE_BYTES", 1 << 20)
    done: list[str] = []
    desk.copy("one", lambda: desk.copy("two"))
    desk.copies.after(lambda: done.append("after"))
    assert desk.names() == ["one", "two"]
    assert done == ["after"]
    assert desk.spare.act is None


def test_what_comes_after_copies_waits_for_them(desk: Desk) -> None:
    done: list[list[str]] = []
    desk.copy("one")
    desk.copies.after(lambda: done.append(desk.names()))
    desk.copy("two")
    while desk.spare.give():
        pass
    assert done == [["one"]]
    assert desk.names() == ["one", "two"]


def test_what_fails_after_a_copy_is_told_and_others_go_on(desk: Desk) -> None:
    def fail() -> None:
        raise ValueError("no")

    desk.copy("one", fail)
    desk.copy("two")
    while desk.spare.give():
        pass
    assert desk.names() == ["one", "two"]
    assert [str(failure) for failure in desk.failures] == ["no"]
    with pytest.raises(ValueError, match="no"):
        desk.copies.after(fail)
    desk.copy("three")
    while desk.spare.give():
        pass
    assert desk.names() == ["one", "two", "three"]


def test_before_anything_may_change_all_is_copied(desk: Desk) -> None:
    desk.copy("one")
    desk.copies.before_change()
    for slab in desk.parameters.slabs.values():
        slab[:] = 7
    while desk.spare.give():
        pass
    assert desk.names() == ["one"]


def test_copies_that_are_dropped_do_not_come(desk: Desk) -> None:
    desk.copy("one")
    desk.copies.drop()
    while desk.spare.give():
        pass
    assert desk.names() == []


def test_the_event_loop_does_other_things_between_two_slices() -> None:
    order: list[str] = []

    async def other() -> None:
        for _ in range(3):
            order.append("other")
            await asyncio.sleep(0)

    def copy() -> bool:
        order.append("slice")
        return order.count("slice") < 3

    async def test() -> None:
        task = asyncio.create_task(other())
        between_events(copy)
        await task
        while order.count("slice") < 3:
            await asyncio.sleep(0)

    asyncio.run(test())
    assert order == ["other", "slice"] * 3


def test_checkpoints_and_downloads_of_a_running_job_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, barrier: Barrier
) -> None:
    """On a running server, with a slice for each slab: a job continues from its checkpoint, to an undisturbed one's bits."""
    monkeypatch.setattr(copies_module, "SLICE_BYTES", 1)

    def spec_of(epochs: int) -> job_pb2.JobSpec:
        training = {"epochs": epochs, "batch_size": 4, "microbatches": 1}
        return training_service.make_spec(training=training, optimizer={"adam": {}})

    def header(stub: TrainingServiceStub) -> pb.ParametersHeader:
        first, *parts = stub.DownloadParameters(pb.DownloadParametersRequest(job_id="a"))
        assert hashlib.sha256(b"".join(part.data for part in parts)).hexdigest() == first.header.sha256
        return first.header

    def checkpoint_step(stub: TrainingServiceStub) -> int:
        return stub.GetJob(pb.GetJobRequest(job_id="a")).job.progress.checkpoints.step

    reached = 0
    for first in (True, False):
        with running_server(tmp_path / "sliced", checkpoint_seconds=0.0) as server, stub_of(server) as stub:
            # Far enough for steps to be taken while checkpoints and downloads are copied.
            barrier.hold(reached + 500)
            if first:
                stub.CreateJob(pb.CreateJobRequest(spec=spec_of(2000), job_id="a"))
            else:
                stub.ResumeJob(pb.ResumeJobRequest(job_id="a"))
            worker = threading.Thread(target=work, args=(Endpoint(server.address), "a", "w"), daemon=True)
            worker.start()
            wait_for(lambda: checkpoint_step(stub) > reached)  # noqa: B023 - it is called here
            assert header(stub).version > reached
            stub.CancelJob(pb.CancelJobRequest(job_id="a"))
            barrier.release()
            worker.join()
            end = header(stub)
            reached = end.version
    # One step is an epoch here.
    with running_server(tmp_path / "plain", checkpoint_seconds=1000.0) as server, stub_of(server) as stub:
        stub.CreateJob(pb.CreateJobRequest(spec=spec_of(reached), job_id="b"))
        work(Endpoint(server.address), "b", "w")
        assert stub.GetJob(pb.GetJobRequest(job_id="b")).job.result.weights_sha256 == end.sha256
