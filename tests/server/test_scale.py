"""What a message costs the coordinator does not grow with the workers, and a step ahead costs nothing. Counted, not timed."""

import random
import sys
from collections import deque
from types import FrameType
from typing import Any

import pytest

from tests.server.specs import PAYLOAD, make_spec
from thalweg.contract.sums import Sums
from thalweg.contract.tree import Node
from thalweg.server.deciding.coordinator import Coordinator
from thalweg.server.deciding.decisions import AssignDifferentiate, Decision
from thalweg.server.deciding.events import ContributionReceived, InitialReceived, WorkerJoined, WorkerPrepared
from thalweg.server.deciding.phases.course import Course
from thalweg.server.deciding.synchrony import POLICIES, rounds
from thalweg.server.deciding.synchrony.rounds import Rounds
from thalweg.server.deciding.synchrony.waiting_tasks import WaitingTasks
from thalweg.server.deciding.values import Facts, Task
from thalweg.server.settings import RunSettings


class Counter:
    """Counts the instructions that Python carries out within it."""

    def __init__(self) -> None:
        self.count = 0

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self.count += event == "opcode"
        return self._trace

    def __enter__(self) -> "Counter":
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)


def started(workers: int, samples: int, **training: Any) -> tuple[Coordinator, list[AssignDifferentiate]]:
    """A job with some workers that have their first tasks."""
    coordinator = Coordinator(make_spec(epochs=100, **training), RunSettings())
    decisions: list[Decision] = []
    for worker in range(workers):
        coordinator.handle(WorkerJoined(worker), 0.0)
    for worker in range(workers):
        decisions += coordinator.handle(WorkerPrepared(worker, Facts(10, samples, 0, metrics=("accuracy",))), 0.0)
    decisions += coordinator.handle(InitialReceived(0, 0, PAYLOAD), 0.0)
    return coordinator, [each for each in decisions if isinstance(each, AssignDifferentiate)]


def instructions_a_message(workers: int, parts: int, synchrony: dict[str, Any], samples: int, steps: int = 3) -> float:
    """What the answers of some steps, each of some parts, cost the coordinator, each."""
    microbatches = 1 if "asynchronous" in synchrony else parts
    training: dict[str, Any] = {"batch_size": workers, "microbatches": microbatches, "synchrony": synchrony}
    coordinator, tasks = started(workers, samples, **training)
    now, count = 0.0, 0
    with Counter() as counter:
        for _ in range(steps):
            following: list[AssignDifferentiate] = []
            for given in tasks:
                now, count, task = now + 0.1, count + 1, given.task
                answer = ContributionReceived(
                    given.worker, given.version, task.step, task.node, range(1), Sums(1.0, 1, (0,)), PAYLOAD
                )
                following += [each for each in coordinator.handle(answer, now) if isinstance(each, AssignDifferentiate)]
            tasks = following
    assert count
    return counter.count / count


SYNCHRONIES: dict[str, dict[str, Any]] = {
    "bulk": {"bulk": {}},
    "stale": {"stale": {"bound": 3}},
    "asynchronous": {"asynchronous": {}},
    "local": {"local": {"steps": 2}},
}


def test_every_policy_is_measured() -> None:
    assert SYNCHRONIES.keys() == POLICIES.keys()


@pytest.mark.parametrize("synchrony", SYNCHRONIES.values(), ids=SYNCHRONIES)
def test_a_message_costs_the_same_with_many_workers(synchrony: dict[str, Any]) -> None:
    few, many = (instructions_a_message(workers, workers, synchrony, 1000 * workers) for workers in (16, 256))
    assert many < 2 * few


@pytest.mark.parametrize("synchrony", SYNCHRONIES.values(), ids=SYNCHRONIES)
def test_workers_for_whom_there_are_no_microbatches_cost_nothing(synchrony: dict[str, Any]) -> None:
    few, many = (instructions_a_message(workers, workers // 2, synchrony, 1000 * workers) for workers in (16, 256))
    assert many < 2 * few


def test_workers_that_have_nothing_to_do_cost_nothing() -> None:
    few, many = (instructions_a_message(workers, 1, {"asynchronous": {}}, 20 * workers) for workers in (16, 256))
    assert many < 2 * few


def test_an_epoch_of_many_asynchronous_steps_costs_nothing_before_they_are_taken() -> None:
    counts = []
    for samples in (100, 1_000_000):
        with Counter() as counter:
            started(1, samples, batch_size=1, microbatches=1, synchrony={"asynchronous": {}})
        counts.append(counter.count)
    assert counts[1] < 2 * counts[0]


def test_what_is_done_of_an_epoch_takes_no_room() -> None:
    coordinator, (given,) = started(1, 1000, batch_size=1, microbatches=1, synchrony={"asynchronous": {}})
    assert isinstance(coordinator.stage, Course)
    for step in range(500):
        answer = ContributionReceived(0, step, step, given.task.node, range(1), Sums(1.0, 1, (0,)), PAYLOAD)
        coordinator.handle(answer, float(step))
        assert coordinator.version == step + 1
        assert not coordinator.stage.policy.applied


@pytest.mark.parametrize("workers", [1, 40])
def test_steps_that_nobody_can_take_soon_are_not_begun(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(rounds, "_ENOUGH", 64)
    stale = {"batch_size": 16, "microbatches": 16, "synchrony": {"stale": {"bound": 1000}}, "codec": {"int8": {}}}
    coordinator, given = started(workers, 16 * 50, **stale)
    assert isinstance(coordinator.stage, Course)
    policy = coordinator.stage.policy
    assert isinstance(policy, Rounds)
    tasks = deque(given)
    most, answered = 0, 0
    while coordinator.version < 120:
        task = tasks.popleft()
        answer = ContributionReceived(
            task.worker, task.version, task.task.step, task.task.node, range(1), Sums(1.0, 1, (0,)), PAYLOAD
        )
        answered += 1
        tasks.extend(each for each in coordinator.handle(answer, 0.001 * answered) if isinstance(each, AssignDifferentiate))
        most = max(most, len(policy._open))
    # One step has 16 tasks, and each worker has those of one step at most.
    assert most <= 64 // 16 + workers + 1
    assert answered >= 120 * 16


def test_tasks_wait_in_order() -> None:
    """Holds the pool of waiting tasks against a list that is searched."""
    drawn = random.Random(0)
    waiting = WaitingTasks()
    expected: list[tuple[Task, int | None]] = []
    step = 0
    for _ in range(3000):
        action = drawn.random()
        if action < 0.3:
            step += drawn.randint(0, 1)
            task = Task(step, 1, Node(0, drawn.randrange(1 << 30)), 0, 1)
            owner = drawn.randrange(5)
            waiting.add(task, owner)
            expected.append((task, owner))
        elif action < 0.4 and expected:
            # A lost worker's.
            task = Task(expected[0][0].step, 1, Node(1, drawn.randrange(1 << 30)), 0, 1)
            waiting.add(task, None)
            expected.append((task, None))
        elif action < 0.7:
            worker = drawn.randrange(5)
            own = [each for each, owner in expected if owner == worker]
            share = [each for each in own if each.step == own[0].step]
            assert waiting.take_share(worker) == share
            expected = [each for each in expected if each[0] not in share]
        else:
            first = [min((each for each, _ in expected), key=lambda task: task.step)] if expected else []
            assert waiting.take_any() == first
            expected = [each for each in expected if each[0] not in first]
        assert bool(waiting) is bool(expected)
