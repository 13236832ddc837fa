"""How workers' speeds are learned, and what follows for who gets work."""

import pytest

from thalweg.server.assignments import Assignments

SLOW, FAST, OTHER = 1, 2, 3


@pytest.fixture
def tasks() -> Assignments[str]:
    """Three workers, one of which has taken ten times as long as the others."""
    tasks: Assignments[str] = Assignments()
    for worker in (SLOW, FAST, OTHER):
        tasks.add(worker)
        tasks.give(worker, f"of {worker}", 1)
    for worker, seconds in ((FAST, 0.1), (OTHER, 0.12), (SLOW, 1.0)):
        tasks.now = seconds
        tasks.answered(worker, f"of {worker}")
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
