"""Events and decisions take turns, and wait for each other where they have to."""

from collections.abc import Callable
from typing import Any

from thalweg.server.deciding.decision_queue import DecisionQueue
from thalweg.server.deciding.decisions import Decision, Evict, Finish, Promote, ReportReady
from thalweg.server.deciding.events import DriverFailed, Event, RangeNotFinite, Tick, WorkerJoined, WorkerLost
from thalweg.v1 import job_pb2

JOINED, LOST, TICK = WorkerJoined(1), WorkerLost(1), Tick()
PROMOTE, EVICT, READY = Promote(1, 0), Evict(1), ReportReady()
FINISH = Finish(job_pb2.JOB_STATE_FAILED)


class Driver:
    """What turns drive: says what was done, and lets nothing be promoted that is not `finite`."""

    def __init__(self, **decisions: list[Decision]) -> None:
        self.done: list[object] = []
        self.finite = False
        self.problem: Exception | None = None
        self._decisions = decisions
        self.turns = DecisionQueue(self)

    def decide(self, event: Event) -> list[Decision]:
        self.done.append(event)
        return list(self._decisions.get(type(event).__name__, ()))

    def carry_out(self, decision: Decision) -> Event | None:
        self.done.append(decision)
        if self.problem:
            problem, self.problem = self.problem, None
            raise problem
        return RangeNotFinite(3) if decision == EVICT else None

    def ready(self, decision: Decision) -> bool:
        return self.finite or not isinstance(decision, Promote)

    def failed(self, error: Exception) -> Event:
        return DriverFailed(str(error))


def driven(steps: Callable[[Driver], Any], **decisions: list[Decision]) -> list[object]:
    driver = Driver(**decisions)
    steps(driver)
    return driver.done


def test_decisions_are_carried_out_before_the_next_event() -> None:
    def steps(driver: Driver) -> None:
        driver.turns.handle(JOINED)
        driver.turns.handle(TICK)

    assert driven(steps, WorkerJoined=[READY, READY]) == [JOINED, READY, READY, TICK]


def test_what_is_behind_an_answer_waits_in_order_and_time_stands_still() -> None:
    def steps(driver: Driver) -> None:
        for event in (JOINED, TICK, LOST, TICK, LOST):
            driver.turns.handle(event)
        assert driver.done == [JOINED, READY]
        driver.turns.go_on()
        assert driver.done == [JOINED, READY]
        driver.finite = True
        driver.turns.go_on()
        driver.turns.handle(TICK)

    assert driven(steps, WorkerJoined=[READY, PROMOTE, READY]) == [JOINED, READY, PROMOTE, READY, LOST, LOST, TICK]


def test_what_did_not_happen_takes_the_place_of_what_follows_from_it() -> None:
    def steps(driver: Driver) -> None:
        driver.turns.handle(JOINED)
        driver.turns.handle(LOST)
        driver.turns.interrupt(RangeNotFinite(0))

    assert driven(steps, WorkerJoined=[PROMOTE, READY], RangeNotFinite=[FINISH]) == [
        JOINED,
        RangeNotFinite(0),
        FINISH,
        LOST,
    ]
    assert driven(lambda driver: driver.turns.handle(JOINED), WorkerJoined=[EVICT, READY], RangeNotFinite=[FINISH]) == [
        JOINED,
        EVICT,
        RangeNotFinite(3),
        FINISH,
    ]


def test_an_exception_is_an_event() -> None:
    def steps(driver: Driver) -> None:
        driver.problem = ValueError("no room")
        driver.turns.handle(JOINED)

    assert driven(steps, WorkerJoined=[READY, READY], DriverFailed=[FINISH]) == [
        JOINED,
        READY,
        DriverFailed("no room"),
        FINISH,
    ]


def test_nothing_happens_when_it_is_over() -> None:
    def steps(driver: Driver) -> None:
        driver.turns.handle(JOINED)
        driver.turns.close()
        driver.finite = True
        driver.turns.go_on()
        driver.turns.handle(LOST)
        driver.turns.interrupt(LOST)

    assert driven(steps, WorkerJoined=[PROMOTE]) == [JOINED]
