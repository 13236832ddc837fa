"""The life of a job as a state machine: every transition, and every sequence of what can happen to a job."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from thalweg.contract.errors import ThalwegError
from thalweg.server.deciding.lifecycle import decisions, events
from thalweg.server.deciding.lifecycle.decisions import (
    AbandonEnd,
    Answer,
    AwaitShortage,
    CancelRun,
    Decision,
    DeleteJob,
    FailRun,
    ForgetRun,
    GiveUpRun,
    KeepResult,
    PauseRun,
    PrioritizeRun,
    RecordEnd,
    RecordScale,
    RemoveCheckpoints,
    RemoveResult,
    ScaleRun,
    SetAside,
    Start,
    StartRun,
)
from thalweg.server.deciding.lifecycle.events import (
    Abandoned,
    Accepted,
    Ask,
    CancelRequested,
    Cleared,
    Deleted,
    DeleteFailed,
    DeleteRequested,
    DiskFull,
    EndDurable,
    EndFailed,
    Event,
    EventRejected,
    RestAwaited,
    ResultExpired,
    ResultKept,
    ResultRemoved,
    ResumeRequested,
    RunEnded,
    RunStarted,
    ScaleDurable,
    ScaleRequested,
    ServerStarted,
    ShardLost,
    StartFailed,
    WasSetAside,
)
from thalweg.server.deciding.lifecycle.life import RECORD_ATTEMPTS, TRANSITIONS, ImpossibleTransitionError, Life, State
from thalweg.server.deciding.story import Story, Teller, described
from thalweg.v1 import job_pb2

SUCCEEDED, FAILED, CANCELLED = job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED
# How a job gets into a state, from its beginning.
ACTIVE: list[Event] = [Accepted(0), RunStarted()]
RECORDING: list[Event] = [*ACTIVE, RunEnded(SUCCEEDED), ResultKept(SUCCEEDED)]
ENDED: list[Event] = [*RECORDING, EndDurable(), Cleared()]
WAYS: dict[State, list[Event]] = {
    State.RECORDED: [],
    State.STARTING: [Accepted(0)],
    State.ACTIVE: ACTIVE,
    State.PAUSED: [*ACTIVE, ScaleRequested(1, 0)],
    State.GOING_BACK: [*ACTIVE, ShardLost("a")],
    State.KEEPING: [*ACTIVE, RunEnded(SUCCEEDED)],
    State.RECORDING: RECORDING,
    State.CLEARING: [*RECORDING, EndDurable()],
    State.ABANDONING: [*RECORDING, DeleteRequested(2), DiskFull()],
    State.ENDED: ENDED,
    State.DELETING: [*ENDED, DeleteRequested(2)],
    State.EXPIRING: [*ENDED, ResultExpired()],
    State.DELETED: [*ENDED, DeleteRequested(2), Deleted()],
}
ERROR = OSError("the disk says no")
# One event of each kind.
EVENTS: list[Event] = [
    Accepted(9),
    ServerStarted(9),
    WasSetAside(),
    RunStarted(),
    StartFailed(ERROR),
    CancelRequested(9),
    ScaleRequested(9, 3, 1),
    ResumeRequested(9),
    DeleteRequested(9),
    RestAwaited(9),
    ShardLost("a"),
    EventRejected("a mistake"),
    ScaleDurable(1),
    RunEnded(CANCELLED),
    ResultKept(CANCELLED),
    EndDurable(),
    Cleared(),
    EndFailed("a mistake"),
    DiskFull(),
    Abandoned(),
    Deleted(),
    DeleteFailed(ERROR),
    ResultExpired(),
    ResultRemoved(),
]


def living(events: Iterable[Event]) -> tuple[Life, list[Decision]]:
    """A life after some events, and what was decided about the last one."""
    life, decisions = Life("job", Story()), list[Decision]()
    for time, event in enumerate(events):
        decisions = life.handle(event, float(time))
    return life, decisions


def after(state: State, *events: Event) -> tuple[State, list[Decision]]:
    """The state after some events that begin in another, and what is decided about the last one."""
    life, decisions = living([*WAYS[state], *events])
    return life.state, decisions


def answered(ask: Ask, decisions: Iterable[Decision]) -> Answer:
    """The answer to a call."""
    (answer,) = [decision for decision in decisions if isinstance(decision, Answer) and decision.ask == ask]
    return answer


def refused(ask: Ask, decisions: Iterable[Decision]) -> str:
    """Why a call is refused."""
    error = answered(ask, decisions).error
    assert isinstance(error, ThalwegError)
    return error.reason


def test_every_state_has_a_way_to_it() -> None:
    for state, way in WAYS.items():
        assert living(way)[0].state is state
    assert set(WAYS) == set(State)


def test_every_kind_of_event_and_decision_is_looked_at_here() -> None:
    kinds = {
        each
        for module in (decisions, events)
        for each in vars(module).values()
        if isinstance(each, type) and each.__module__ == module.__name__
    }
    assert {type(event) for event in EVENTS} == {kind for _, kind in TRANSITIONS}
    decided = {
        type(decision) for state in State for event in EVENTS if possible(state, event) for decision in after(state, event)[1]
    }
    decided |= {SetAside, FailRun, PauseRun, AbandonEnd}
    assert decided | {type(event) for event in EVENTS} == kinds - {Start}


def possible(state: State, event: Event) -> bool:
    return (state, type(event)) in TRANSITIONS


@pytest.mark.parametrize("state", State)
def test_what_is_impossible_raises_an_error_that_tells_the_story(state: State) -> None:
    way = WAYS[state]
    impossible = [event for event in EVENTS if not possible(state, event)]
    assert impossible
    for event in impossible:
        life, _ = living(way)
        with pytest.raises(ImpossibleTransitionError) as raised:
            life.handle(event, 99.0)
        assert f"job job: {described(event)} is impossible in state {state.name}" in str(raised.value)
        assert all(described(each) in str(raised.value) for each in way)
        # Nothing has changed by it.
        assert life.state is state


def test_a_call_is_possible_in_every_state_between_the_first_and_the_last() -> None:
    calls = (CancelRequested, ScaleRequested, ResumeRequested, DeleteRequested, RestAwaited)
    for state in set(State) - {State.RECORDED, State.DELETED}:
        assert all((state, call) in TRANSITIONS for call in calls)
    # The journal asks nobody before it rejects an event.
    assert all((state, EventRejected) in TRANSITIONS for state in State)


def test_a_job_is_accepted_runs_and_ends() -> None:
    assert after(State.RECORDED, Accepted(0)) == (State.STARTING, [StartRun(Start.ACCEPTED)])
    assert after(State.STARTING, RunStarted()) == (State.ACTIVE, [Answer(0)])
    assert after(State.ACTIVE, RunEnded(SUCCEEDED)) == (State.KEEPING, [KeepResult()])
    assert after(State.KEEPING, ResultKept(SUCCEEDED)) == (State.RECORDING, [RecordEnd()])
    assert after(State.RECORDING, EndDurable()) == (State.CLEARING, [RemoveCheckpoints()])
    assert after(State.CLEARING, Cleared()) == (State.ENDED, [ForgetRun()])


@pytest.mark.parametrize("state", [FAILED, CANCELLED])
def test_a_job_that_can_be_resumed_keeps_its_checkpoints(state: job_pb2.JobState.ValueType) -> None:
    assert after(State.KEEPING, ResultKept(state), EndDurable()) == (State.ENDED, [ForgetRun()])


def test_a_result_that_cannot_be_kept_fails_the_job() -> None:
    assert after(State.ACTIVE, RunEnded(SUCCEEDED), ResultKept(FAILED), EndDurable()) == (State.ENDED, [ForgetRun()])


def test_jobs_on_record_go_on_when_the_server_starts_or_are_set_aside() -> None:
    started = StartRun(Start.RESTART, "the server was restarted; the job")
    assert after(State.RECORDED, ServerStarted(0)) == (State.STARTING, [started])
    assert after(State.RECORDED, ServerStarted(0), RunStarted(paused=True)) == (State.PAUSED, [Answer(0)])
    assert after(State.RECORDED, ServerStarted(0), RunStarted(refusal="bad")) == (State.ACTIVE, [Answer(0), FailRun("bad")])
    assert after(State.RECORDED, ServerStarted(0, "3 deaths")) == (State.STARTING, [SetAside("3 deaths")])
    assert after(State.RECORDED, ServerStarted(0, "3 deaths"), WasSetAside()) == (State.ENDED, [Answer(0)])
    assert after(State.RECORDED, ServerStarted(0), StartFailed(ERROR)) == (State.ENDED, [Answer(0, ERROR)])


def test_a_job_that_had_begun_keeps_its_place_until_it_is_paused() -> None:
    begun: list[Event] = [ServerStarted(0, begun=True), RunStarted()]
    assert living(begun)[0].keeps_place
    assert not living([*begun, ScaleRequested(1, 0)])[0].keeps_place
    assert not living([ServerStarted(0), RunStarted()])[0].keeps_place
    assert living(WAYS[State.GOING_BACK])[0].keeps_place
    assert not living([*WAYS[State.PAUSED], ShardLost("a")])[0].keeps_place


def test_a_lost_shard_takes_the_job_back() -> None:
    state, decisions = after(State.ACTIVE, ShardLost("host:1"))
    assert state is State.GOING_BACK
    assert decisions == [
        GiveUpRun("shard host:1 was lost; the job returns to its last checkpoint"),
        StartRun(Start.CHECKPOINT, "shard host:1 was lost; the job"),
    ]
    assert after(State.GOING_BACK, RunStarted()) == (State.ACTIVE, [])


def test_a_job_that_cannot_go_back_fails() -> None:
    problem = "internal error: OSError: the disk says no"
    assert after(State.GOING_BACK, StartFailed(ERROR)) == (State.GOING_BACK, [StartRun(Start.FAILURE, problem)])
    assert after(State.GOING_BACK, StartFailed(ERROR), StartFailed(ERROR)) == (State.ENDED, [ForgetRun(problem)])


def test_a_rejected_event_fails_the_job() -> None:
    problem = "internal error: the job's events cannot be recorded: a mistake"
    rejected = EventRejected("a mistake")
    assert after(State.ACTIVE, rejected) == (State.GOING_BACK, [GiveUpRun(problem), StartRun(Start.FAILURE, problem)])
    # Others that the run had recorded follow.
    assert after(State.GOING_BACK, rejected) == (State.GOING_BACK, [])


def test_an_end_that_is_rejected_is_recorded_again_and_not_for_ever() -> None:
    again: list[Event] = [EventRejected("a mistake"), EndDurable()]
    assert after(State.RECORDING, *again) == (State.RECORDING, [RecordEnd()])
    assert after(State.RECORDING, *again, EndDurable()) == (State.CLEARING, [RemoveCheckpoints()])
    assert after(State.RECORDING, *again * RECORD_ATTEMPTS) == (State.ENDED, [ForgetRun("its events are rejected")])
    # One that was rejected before the end was recorded is none of it.
    assert after(State.KEEPING, EventRejected("a mistake"), ResultKept(FAILED), EndDurable()) == (State.ENDED, [ForgetRun()])
    assert after(State.RECORDING, EndFailed("a mistake")) == (State.ENDED, [ForgetRun("a mistake")])


def test_a_cancel_is_answered_when_the_job_has_ended() -> None:
    assert after(State.ACTIVE, CancelRequested(5)) == (State.ACTIVE, [CancelRun()])
    assert after(State.PAUSED, CancelRequested(5)) == (State.PAUSED, [CancelRun()])
    end: list[Event] = [CancelRequested(5), RunEnded(CANCELLED), ResultKept(CANCELLED), EndDurable()]
    assert after(State.ACTIVE, *end) == (State.ENDED, [ForgetRun(), Answer(5)])
    assert after(State.ENDED, CancelRequested(5)) == (State.ENDED, [Answer(5)])
    for state in (State.KEEPING, State.RECORDING, State.CLEARING):
        assert after(state, CancelRequested(5)) == (state, [])


def test_a_cancel_waits_for_the_run_that_replaces_a_given_up_one() -> None:
    assert after(State.GOING_BACK, CancelRequested(5)) == (State.GOING_BACK, [])
    assert after(State.GOING_BACK, CancelRequested(5), RunStarted()) == (State.ACTIVE, [CancelRun()])
    # Also if the first run had heard of it.
    assert after(State.ACTIVE, CancelRequested(5), ShardLost("a"), RunStarted()) == (State.ACTIVE, [CancelRun()])
    # A job that is to fail has no need of it.
    assert after(State.GOING_BACK, CancelRequested(5), RunStarted(refusal="no")) == (State.ACTIVE, [FailRun("no")])


def test_a_scale_is_answered_when_it_is_durable() -> None:
    assert after(State.ACTIVE, ScaleRequested(5, 3)) == (State.ACTIVE, [ScaleRun(3), RecordScale(5)])
    assert after(State.ACTIVE, ScaleRequested(5, 3), ScaleDurable(5)) == (State.ACTIVE, [Answer(5)])
    assert after(State.ACTIVE, ScaleRequested(5, 3), ScaleDurable(5), ScaleDurable(5)) == (State.ACTIVE, [])


def test_a_job_is_paused_and_goes_on() -> None:
    assert after(State.ACTIVE, ScaleRequested(5, 0)) == (State.PAUSED, [PauseRun(), RecordScale(5)])
    assert after(State.PAUSED, ScaleRequested(5, 0)) == (State.PAUSED, [RecordScale(5)])
    assert after(State.PAUSED, ScaleRequested(5, 2)) == (State.ACTIVE, [ScaleRun(2), RecordScale(5)])


def test_a_priority_changes_nothing_else() -> None:
    assert after(State.ACTIVE, ScaleRequested(5, None, 7)) == (State.ACTIVE, [PrioritizeRun(7), RecordScale(5)])
    assert after(State.PAUSED, ScaleRequested(5, None, -7)) == (State.PAUSED, [PrioritizeRun(-7), RecordScale(5)])
    assert after(State.PAUSED, ScaleRequested(5, 2, 0)) == (State.ACTIVE, [PrioritizeRun(0), ScaleRun(2), RecordScale(5)])
    given_up: list[Event] = [ScaleRequested(5, None, 7), ShardLost("a"), RunStarted()]
    assert after(State.ACTIVE, *given_up) == (State.ACTIVE, [PrioritizeRun(7), RecordScale(5)])


def test_a_scale_that_a_given_up_run_heard_of_is_repeated_to_the_next() -> None:
    scaled: list[Event] = [ScaleRequested(5, 3), ShardLost("a")]
    assert after(State.ACTIVE, *scaled, ScaleDurable(5)) == (State.GOING_BACK, [])
    assert after(State.ACTIVE, *scaled, RunStarted()) == (State.ACTIVE, [ScaleRun(3), RecordScale(5)])
    assert after(State.ACTIVE, *scaled, RunStarted(), ScaleDurable(5)) == (State.ACTIVE, [Answer(5)])
    assert after(State.GOING_BACK, ScaleRequested(5, 0), RunStarted()) == (State.PAUSED, [PauseRun(), RecordScale(5)])


def test_a_job_that_has_ended_is_not_scaled() -> None:
    assert refused(5, after(State.ENDED, ScaleRequested(5, 3))[1]) == "JOB_ENDED"
    assert refused(5, after(State.CLEARING, ScaleRequested(5, 3), Cleared())[1]) == "JOB_ENDED"
    assert refused(5, after(State.DELETING, ScaleRequested(5, 3))[1]) == "JOB_ENDED"
    # What was recorded before the end is durable with it, unless it was rejected.
    scaled: list[Event] = [ScaleRequested(5, 3), RunEnded(FAILED)]
    assert answered(5, after(State.ACTIVE, *scaled, ResultKept(FAILED), EndDurable())[1]).error is None
    rejected = [*scaled, EventRejected("a mistake"), ScaleDurable(5), ResultKept(FAILED), EndDurable()]
    assert refused(5, after(State.ACTIVE, *rejected)[1]) == "JOB_ENDED"


def test_only_a_job_that_has_ended_is_resumed() -> None:
    assert after(State.ENDED, ResumeRequested(5)) == (State.STARTING, [StartRun(Start.RESUME, "resumed; the job")])
    assert after(State.ENDED, ResumeRequested(5), RunStarted()) == (State.ACTIVE, [Answer(5)])
    assert after(State.ENDED, ResumeRequested(5), StartFailed(ERROR)) == (State.ENDED, [Answer(5, ERROR)])
    for state in (State.ACTIVE, State.PAUSED, State.GOING_BACK):
        assert after(state, ResumeRequested(5)) == (state, [Answer(5)])
    # One that is ending is resumed when it has ended.
    resumed = [ForgetRun(), StartRun(Start.RESUME, "resumed; the job")]
    assert after(State.CLEARING, ResumeRequested(5), Cleared()) == (State.STARTING, resumed)


def test_only_a_job_that_has_ended_is_deleted() -> None:
    for state in (State.STARTING, State.ACTIVE, State.PAUSED, State.GOING_BACK):
        still, decisions = after(state, DeleteRequested(5))
        assert (still, refused(5, decisions)) == (state, "JOB_NOT_ENDED")
    assert after(State.ENDED, DeleteRequested(5)) == (State.DELETING, [DeleteJob()])
    assert after(State.DELETING, Deleted()) == (State.DELETED, [Answer(2)])
    assert after(State.DELETING, DeleteFailed(ERROR)) == (State.ENDED, [Answer(2, ERROR)])
    assert refused(5, after(State.DELETING, ResumeRequested(5), Deleted())[1]) == "JOB_NOT_FOUND"
    assert after(State.DELETING, ResumeRequested(5), DeleteFailed(ERROR))[0] is State.STARTING


def test_a_result_that_waits_for_room_is_given_up_for_a_deletion() -> None:
    assert after(State.KEEPING, DeleteRequested(5)) == (State.KEEPING, [AwaitShortage()])
    assert after(State.KEEPING, DeleteRequested(5), DiskFull()) == (State.ABANDONING, [AbandonEnd()])
    assert after(State.ABANDONING, Abandoned()) == (State.DELETING, [ForgetRun(), DeleteJob()])
    # Nothing is given up for a full disk alone, and what finds room in time is deleted as usual.
    assert after(State.KEEPING, DiskFull()) == (State.KEEPING, [])
    assert after(State.CLEARING, DeleteRequested(5), Cleared()) == (State.DELETING, [ForgetRun(), DeleteJob()])


def test_a_job_whose_end_was_given_up_and_that_cannot_be_deleted_fails_on_record() -> None:
    """Without that its record would say that it runs, though it has no run."""
    given_up: list[Event] = [DeleteRequested(5), DiskFull(), Abandoned(), DeleteFailed(ERROR)]
    reason = f"its result was given up because the job was to be deleted, and the deletion failed: {ERROR}"
    for state in (State.KEEPING, State.RECORDING):
        assert after(state, *given_up) == (State.STARTING, [Answer(5, ERROR), SetAside(reason)])
        assert after(state, *given_up, WasSetAside()) == (State.ENDED, [])
        again: list[Event] = [*given_up, WasSetAside(), DeleteRequested(6)]
        assert after(state, *again) == (State.DELETING, [DeleteJob()])
        assert after(state, *again, DeleteFailed(ERROR)) == (State.ENDED, [Answer(6, ERROR)])
    # Here the end was durable before.
    assert after(State.CLEARING, *given_up) == (State.ENDED, [Answer(5, ERROR)])


def test_who_waits_for_rest_hears_of_a_run_or_of_the_end() -> None:
    assert after(State.ACTIVE, RestAwaited(5)) == (State.ACTIVE, [Answer(5)])
    assert after(State.GOING_BACK, RestAwaited(5), RunStarted()) == (State.ACTIVE, [Answer(5)])
    assert after(State.CLEARING, RestAwaited(5), Cleared()) == (State.ENDED, [ForgetRun(), Answer(5)])
    assert after(State.DELETING, RestAwaited(5), Deleted())[1] == [Answer(2), Answer(5)]


def test_the_result_of_a_job_that_has_ended_expires_and_what_is_asked_meanwhile_waits() -> None:
    assert after(State.ENDED, ResultExpired()) == (State.EXPIRING, [RemoveResult()])
    for removed in (ResultRemoved(), ResultRemoved("the disk says no")):
        assert after(State.EXPIRING, removed) == (State.ENDED, [])
        resumed = [StartRun(Start.RESUME, "resumed; the job")]
        assert after(State.EXPIRING, ResumeRequested(5), removed) == (State.STARTING, resumed)
        assert after(State.EXPIRING, DeleteRequested(5), removed) == (State.DELETING, [DeleteJob()])
        assert after(State.EXPIRING, RestAwaited(5), removed) == (State.ENDED, [Answer(5)])
    # It has been resumed since its age was found, or is being deleted.
    for state in set(State) - {State.ENDED}:
        assert after(state, ResultExpired()) == (state, [])


def test_a_job_is_resumed_with_the_time_limit_that_was_asked_for_last() -> None:
    resume = "resumed; the job"
    assert after(State.ENDED, ResumeRequested(5, 60.0)) == (State.STARTING, [StartRun(Start.RESUME, resume, 60.0)])
    later: list[Event] = [ResumeRequested(5, 60.0), ResumeRequested(6), ResumeRequested(7, 0.0), Cleared()]
    assert after(State.CLEARING, *later) == (State.STARTING, [ForgetRun(), StartRun(Start.RESUME, resume, 0.0)])
    # The limit of a run does not change.
    assert refused(5, after(State.ACTIVE, ResumeRequested(5, 60.0))[1]) == "JOB_NOT_ENDED"
    assert refused(5, after(State.GOING_BACK, ResumeRequested(5, 60.0))[1]) == "JOB_NOT_ENDED"


class World:
    """What carries the decisions of one life out, and answers each in its own time."""

    def __init__(self) -> None:
        self.life = Life("job", Story())
        # What is being done, and how it may end, well first.
        self.work: list[Event] | None = None
        self.run = self.over = False
        self.cancelled = self.failing = False
        self.workers = self.durable = 1
        self.scales: set[Ask] = set()
        self.full = False
        self.watched = False
        self.open: dict[Ask, Event] = {}
        self.answers: dict[Ask, Answer] = {}
        self.outcome = FAILED
        # Whether the record says that the job has ended, or the log that it cannot.
        self.end_known = False
        self._asks = iter(range(1, 10_000))

    def begin(self) -> None:
        self.ask(Accepted(0))

    def call(self, kind: str, workers: int) -> None:
        ask = next(self._asks)
        event: dict[str, Event] = {
            "cancel": CancelRequested(ask),
            "scale": ScaleRequested(ask, workers),
            "resume": ResumeRequested(ask),
            "delete": DeleteRequested(ask),
            "rest": RestAwaited(ask),
        }
        self.ask(event[kind])

    def ask(self, event: Event) -> None:
        self.open[getattr(event, "ask")] = event  # noqa: B009 - calls alone have one
        self.handle(event)

    def handle(self, event: Event) -> None:
        for decision in self.life.handle(event, 0.0):
            self.carry_out(decision)

    def carry_out(self, decision: Decision) -> None:
        match decision:
            case StartRun(start):
                assert not self.run
                assert self.work is None
                asked = any(isinstance(each, ResumeRequested) for each in self.open.values())
                assert self.over == (start is Start.RESUME)
                assert not self.over or asked, "a job that had ended runs without having been resumed"
                self.over = self.cancelled = self.end_known = False
                refusal = decision.reason if start is Start.FAILURE else ""
                self.work = [RunStarted(self.workers == 0, refusal), StartFailed(ERROR)]
            case GiveUpRun():
                assert self.run
                self.run = self.cancelled = self.failing = False
            case FailRun():
                assert self.run
                self.failing = True
            case CancelRun():
                assert self.run
                self.cancelled = True
            case PauseRun():
                assert self.run
                self.workers = 0
            case ScaleRun(workers):
                assert self.run
                self.workers = workers
            case RecordScale(ask):
                self.scales.add(ask)
            case _:
                self.carry_out_at_the_end(decision)
        if isinstance(decision, ScaleRun | PauseRun):
            self.last_scaled = self.workers

    def carry_out_at_the_end(self, decision: Decision) -> None:
        match decision:
            case KeepResult():
                self.work = [ResultKept(self.outcome), ResultKept(FAILED)]
            case RecordEnd():
                self.work = [EndDurable(), EndFailed("a mistake")]
            case RemoveCheckpoints():
                self.work = [Cleared(), EndFailed("a mistake")]
            case AwaitShortage():
                self.watched = True
            case AbandonEnd():
                self.work = [Abandoned()]
            case SetAside():
                assert self.over
                self.work = [WasSetAside(), StartFailed(ERROR)]
            case ForgetRun(problem):
                assert self.work is None
                self.over, self.watched = True, False
                self.end_known |= bool(problem)
            case DeleteJob():
                assert self.over
                self.work = [Deleted(), DeleteFailed(ERROR)]
            case RemoveResult():
                assert self.over
                self.work = [ResultRemoved(), ResultRemoved("the disk says no")]
            case Answer(ask, error):
                asked = self.open.pop(ask)
                assert ask not in self.answers
                self.answers[ask] = decision
                if isinstance(asked, CancelRequested):
                    assert error is None
                    assert self.life.over or self.over, "a cancel was answered before the job had ended"
                if isinstance(asked, ScaleRequested) and error is None:
                    later = [each for each, event in self.open.items() if isinstance(event, ScaleRequested)]
                    assert later or self.workers == self.last_scaled or self.over

    last_scaled = 1

    def go_on(self, well: bool) -> bool:
        """Something that is under way ends. False if there is nothing."""
        if self.work:
            event = self.work[0] if well else self.work[-1]
            self.work = None
            if isinstance(event, RunStarted):
                # The record is read when all that was recorded before is durable or rejected.
                event = replace(event, paused=self.workers == 0)
            self.run = isinstance(event, RunStarted)
            self.end_known |= isinstance(event, EndDurable | WasSetAside | StartFailed)
            self.over |= isinstance(event, StartFailed) and self.life.state is State.STARTING
            self.handle(event)
            return True
        if self.scales:
            self.durable = self.workers
            self.handle(ScaleDurable(self.scales.pop()))
            return True
        return False

    def end_run(self, outcome: job_pb2.JobState.ValueType) -> None:
        if self.run:
            self.run, self.outcome = False, outcome
            self.cancelled = self.failing = False
            self.handle(RunEnded(outcome))

    def mishap(self, kind: str) -> None:
        if kind == "shard" and self.run:
            self.handle(ShardLost("a"))
        elif kind == "rejected":
            if self.scales:
                # What was recorded and is not durable is dropped.
                self.workers = self.durable
            self.handle(EventRejected("a mistake"))
        elif kind == "full" and self.watched:
            self.handle(DiskFull())
        elif kind == "old" and self.life.state is State.ENDED:
            self.handle(ResultExpired())

    def settle(self) -> None:
        """Nothing more is asked, and all goes well."""
        while True:
            if self.go_on(well=True):
                continue
            if self.run and (self.cancelled or self.failing):
                self.end_run(CANCELLED if self.cancelled else FAILED)
                continue
            return


steps = st.one_of(
    st.tuples(st.just("call"), st.sampled_from(["cancel", "scale", "scale", "resume", "delete", "rest"]), st.integers(0, 3)),
    st.tuples(st.just("mishap"), st.sampled_from(["shard", "shard", "rejected", "full", "old"]), st.just(0)),
    st.tuples(st.just("work"), st.sampled_from(["well", "well", "well", "badly"]), st.just(0)),
    st.tuples(st.just("end"), st.sampled_from(["succeeded", "failed"]), st.just(0)),
)


# What is too rare to be drawn: an end that finds no room is given up for a deletion, which fails.
GIVEN_UP = [
    ("work", "well", 0),
    ("end", "succeeded", 0),
    ("call", "delete", 0),
    ("mishap", "full", 0),
    ("work", "well", 0),
    ("work", "badly", 0),
]


@settings(max_examples=2000, deadline=None)
@given(st.lists(steps, max_size=40))
@example(GIVEN_UP)
def test_whatever_happens_calls_are_answered_and_jobs_that_are_to_end_do(happenings: list[tuple[str, str, int]]) -> None:
    world = World()
    world.begin()
    for what, kind, number in happenings:
        if world.life.state is State.DELETED:
            break
        if what == "call":
            world.call(kind, number)
        elif what == "mishap":
            world.mishap(kind)
        elif what == "work":
            world.go_on(well=kind == "well")
        else:
            world.end_run(SUCCEEDED if kind == "succeeded" else FAILED)
    world.settle()
    assert not world.open, f"{world.open} wait for ever:\n{world.life.story}"
    assert world.life.over or (world.run and not world.cancelled), str(world.life.story)
    assert world.end_known or world.life.state is not State.ENDED, f"the record says that it runs:\n{world.life.story}"
    if world.life.state is not State.DELETED:
        # No state is a dead end.
        world.call("cancel", 0)
        world.settle()
        assert world.life.over
        assert not world.open


@settings(max_examples=500, deadline=None)
@given(st.lists(steps, max_size=30), st.integers(1, 3))
def test_no_scale_is_lost_on_the_way(happenings: list[tuple[str, str, int]], workers: int) -> None:
    world = World()
    world.begin()
    world.go_on(well=True)
    world.call("scale", workers)
    ask = next(ask for ask, event in world.open.items() if isinstance(event, ScaleRequested))
    for what, kind, _ in happenings:
        if what == "mishap":
            world.mishap(kind)
        elif what == "work":
            world.go_on(well=kind == "well")
    world.settle()
    answer = world.answers[ask]
    # It holds, or it is refused because the job has ended.
    assert world.workers == workers if answer.error is None else world.life.over


def test_a_story_is_bounded_and_in_order() -> None:
    story = Story(limit=3)
    story.add(1.0, Teller.LIFECYCLE, "accepted")
    for time in range(10):
        story.add(2.0 + time, Teller.COORDINATOR, f"event {time}")
    story.add(20.0, Teller.LIFECYCLE, "ended " + "x" * 1000)
    entries = story.entries()
    assert [entry.text[:8] for entry in entries] == ["accepted", "event 7", "event 8", "event 9", "ended xx"]
    assert max(len(entry.text) for entry in entries) == 240
    assert str(story).splitlines()[0] == "   -19.000 s  lifecycle    accepted"


def test_a_job_is_resumed_after_the_cancellation_that_came_before() -> None:
    assert after(State.GOING_BACK, CancelRequested(5), ResumeRequested(6)) == (State.GOING_BACK, [])
    cancelled: list[Event] = [RunEnded(CANCELLED), ResultKept(CANCELLED), EndDurable()]
    for state in (State.STARTING, State.GOING_BACK):
        asked: list[Event] = [CancelRequested(5), ResumeRequested(6), RunStarted()]
        began = [Answer(0)] if state is State.STARTING else []
        assert after(state, *asked) == (State.ACTIVE, [*began, CancelRun()])
        again = StartRun(Start.RESUME, "resumed; the job")
        assert after(state, *asked, *cancelled) == (State.STARTING, [ForgetRun(), Answer(5), again])
        assert after(state, *asked, *cancelled, RunStarted()) == (State.ACTIVE, [Answer(6)])


def test_a_job_is_cancelled_after_it_was_resumed() -> None:
    asked: list[Event] = [ResumeRequested(5), CancelRequested(6), RunStarted()]
    assert after(State.STARTING, *asked) == (State.ACTIVE, [Answer(0), Answer(5), CancelRun()])
    assert after(State.GOING_BACK, *asked) == (State.ACTIVE, [CancelRun()])
