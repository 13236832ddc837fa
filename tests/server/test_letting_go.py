"""Workers that are let go finish what they have, get nothing more, and are not missed."""

import pytest

from tests.server.specs import PAYLOAD
from tests.server.test_coordinator import CHUNKS, LEFT, RIGHT, ROOT, Desk, of
from thalweg.contract.sums import Sums
from thalweg.server.deciding import plan
from thalweg.server.deciding.decisions import AssignEvaluate, AssignInitialize, Dropped, LetGo
from thalweg.server.deciding.events import (
    EvaluationReceived,
    InitialReceived,
    WorkerJoined,
    WorkerPrepared,
    WorkersReleased,
)
from thalweg.server.deciding.values import Drop

WHY = "its node is being drained"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "CHUNK_BYTES", 8)


def two_at_work() -> Desk:
    """Two workers have a half each of the second step."""
    desk = Desk()
    desk.join(1)
    desk.join(2)
    desk.answer(1, 0, ROOT)
    return desk


def test_a_released_worker_goes_after_its_task_which_counts() -> None:
    desk = two_at_work()
    assert desk.handle(WorkersReleased((2,), WHY)) == []
    assert of(LetGo, desk.answer(1, 1, LEFT)) == []
    decisions = desk.answer(2, 1, RIGHT)
    assert of(LetGo, decisions) == [LetGo(2, WHY)]
    assert desk.coordinator.version == 2, "its contribution was lost"
    assert desk.tasks(decisions) == [(1, 2, ROOT)], "it has no share in later steps"


def test_a_worker_that_is_released_at_once_leaves_its_task_to_others() -> None:
    desk = two_at_work()
    desk.answer(1, 1, LEFT)
    decisions = desk.handle(WorkersReleased((2,), WHY, at_once=True))
    assert of(LetGo, decisions) == [LetGo(2, WHY)]
    assert desk.tasks(decisions) == [(1, 1, RIGHT)]
    late = desk.answer(2, 1, RIGHT)
    assert {each.reason for each in of(Dropped, late)} == {Drop.STALE_INCARNATION}


def test_an_idle_worker_goes_immediately() -> None:
    desk = two_at_work()
    desk.answer(2, 1, RIGHT)
    assert desk.handle(WorkersReleased((2, 7), WHY)) == [LetGo(2, WHY)]


def test_when_all_are_released_the_step_is_finished_and_no_other_begins() -> None:
    desk = two_at_work()
    desk.handle(WorkersReleased((1, 2), WHY))
    first = desk.answer(1, 1, LEFT)
    assert (of(LetGo, first), desk.tasks(first)) == ([LetGo(1, WHY)], [])
    last = desk.answer(2, 1, RIGHT)
    assert (of(LetGo, last), desk.tasks(last)) == ([LetGo(2, WHY)], [])
    assert desk.coordinator.version == 2
    desk.now += 100.0
    desk.join(3)
    assert desk.tasks()[-1] == (3, 2, ROOT)


@pytest.mark.parametrize("policy", [{"bulk": {}}, {"local": {"steps": 2}}, {"stale": {"bound": 1}}, {"asynchronous": {}}])
def test_every_policy_lets_workers_go(policy: dict[str, object]) -> None:
    desk = Desk(synchrony=policy)
    desk.join(1, 2)
    desk.handle(WorkersReleased((1, 2), WHY))
    given = desk.tasks()
    for worker, step, node in given:
        desk.answer(worker, step, node, version=0)
    assert desk.tasks() == given, "a released worker got another task"
    assert {each.worker for each in of(LetGo, desk.decisions)} == {1, 2}


def test_who_makes_the_initial_parameters_makes_them_before_it_goes() -> None:
    desk = Desk()
    desk.handle(WorkerJoined(1))
    desk.handle(WorkerPrepared(1, desk.facts))
    desk.handle(WorkerJoined(2))
    desk.handle(WorkerPrepared(2, desk.facts))
    assert of(AssignInitialize, desk.decisions) == [AssignInitialize(1)]
    assert desk.handle(WorkersReleased((1, 2), WHY)) == [LetGo(2, WHY)]
    decisions = [each for chunk in range(CHUNKS) for each in desk.handle(InitialReceived(1, chunk, PAYLOAD))]
    assert of(LetGo, decisions) == [LetGo(1, WHY)]
    assert desk.tasks() == []


def test_a_worker_that_evaluates_finishes_its_block() -> None:
    desk = Desk(validation_samples=2000, epochs=1)
    desk.join(1)
    desk.answer(1, 0, ROOT)
    (evaluates,) = of(AssignEvaluate, desk.answer(1, 1, ROOT))
    assert desk.handle(WorkersReleased((1,), WHY)) == []
    _, split, first, _ = evaluates.task
    decisions = desk.handle(EvaluationReceived(1, 2, split, first, Sums(1.0, 1, (0,))))
    assert decisions == [LetGo(1, WHY)]
