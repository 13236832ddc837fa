"""How workers' speeds are learned, and what follows for who gets work."""

import sys

import pytest

from thalweg.server.deciding.workers.assignments import Assignments, Pace

SLOW, FAST, OTHER = 1, 2, 3


def step(tasks: Assignments[str], slow_seconds: float) -> None:
    """All three carry out a task of equal size."""
    begun = tasks.now
    for worker in (SLOW, FAST, OTHER):
        tasks.give(worker, f"of {worker}", 1)
    for seconds, worker in sorted([(0.1, FAST), (0.12, OTHER), (slow_seconds, SLOW)]):
        tasks.now = begun + seconds
        tasks.answered(worker, f"of {worker}")


@pytest.fixture
def tasks() -> Assignments[str]:
    """Three workers, one of which has taken ten times as long as the others."""
    tasks: Assignments[str] = Assignments()
    for worker in (SLOW, FAST, OTHER):
        tasks.add(worker)
    for _ in range(6):
        step(tasks, 1.0)
    return tasks


def test_faster_workers_get_more(tasks: Assignments[str]) -> None:
    weights = tasks.weights([SLOW, FAST, OTHER])
    assert weights[FAST] == pytest.approx(10 * weights[SLOW])


def test_stragglers_are_not_among_the_quick(tasks: Assignments[str]) -> None:
    assert tasks.quick([SLOW, OTHER, FAST]) == [FAST, OTHER]
    assert tasks.quick([SLOW]) == [SLOW]
    assert tasks.quick([]) == []


def test_a_worker_that_gets_nothing_is_trusted_again_by_the_time_not_by_the_number_of_steps(tasks: Assignments[str]) -> None:
    for _ in range(1000):
        tasks.passed_over(SLOW)
    assert SLOW not in tasks.quick([SLOW, FAST])
    tasks.now += 10
    tasks.passed_over(SLOW)
    assert SLOW in tasks.quick([SLOW, FAST])


def test_one_slow_step_is_not_taken_for_a_slow_worker() -> None:
    tasks: Assignments[str] = Assignments()
    for worker in (SLOW, FAST, OTHER):
        tasks.add(worker)
    for seconds in (5.0, 0.1, 5.0, 0.1, 0.1, 0.1, 5.0, 5.0):
        step(tasks, seconds)
        assert len(tasks.quick([SLOW, FAST, OTHER])) == 3


def test_a_worker_that_is_tried_again_is_judged_anew(tasks: Assignments[str]) -> None:
    tasks.now += 10
    tasks.passed_over(SLOW)
    step(tasks, 0.1)
    assert len(tasks.quick([SLOW, FAST, OTHER])) == 3
    tasks.passed_over(SLOW)
    step(tasks, 1.0)
    assert SLOW not in tasks.quick([SLOW, FAST, OTHER])


def test_idle_workers_that_get_tasks_leave_nothing_to_be_looked_through() -> None:
    """What was large once, and is looked through as a whole at every message, made each of them dear with 10,000 workers."""
    tasks: Assignments[str] = Assignments()
    empty = sys.getsizeof(tasks._idle)
    for worker in range(10_000):
        tasks.add(worker)
    for worker in range(10_000):
        tasks.give(worker, "task", 1.0)
    tasks.answered(7_000, "task")
    tasks.answered(20, "task")
    assert tasks.all_idle() == [20, 7_000]
    assert sys.getsizeof(tasks._idle) < empty + 1000


def test_the_pace_of_a_worker_tells_its_speed_what_it_has_and_how_long_it_was_busy() -> None:
    tasks: Assignments[str] = Assignments()
    tasks.add(SLOW)
    assert tasks.pace(SLOW) == Pace(None, 0, 0.0, 0.0)
    assert tasks.pace(FAST) is None
    # It is busy for one second of two.
    for number in range(8):
        tasks.give(SLOW, f"task {number}", 4)
        tasks.now += 1.0
        tasks.answered(SLOW, f"task {number}")
        tasks.now += 1.0
    assert tasks.pace(SLOW) == Pace(4.0, 0, 0.0, 0.5)
    tasks.give(SLOW, "a", 4)
    tasks.give(SLOW, "b", 4)
    tasks.now += 8.0
    assert tasks.pace(SLOW) == Pace(4.0, 2, 8.0, 16 / 24)
