"""The life of one job on a server as a state machine: events in, decisions out. No I/O, no clock.

A *run* is one attempt to bring the job to its end; its coordinator decides about training. Here it is decided when a run starts,
when it is given up and replaced by one from the last checkpoint, what of its end is made durable and in which order, and when
calls about the job are answered. `TRANSITIONS` lists what is possible.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias, TypeVar, cast

from thalweg.contract.errors import ThalwegError
from thalweg.contract.states import state_name
from thalweg.server.deciding.impossible import ImpossibleError
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
from thalweg.server.deciding.story import Story, Teller, described
from thalweg.v1 import job_pb2

# How often the end of a job is recorded again if its event is rejected.
RECORD_ATTEMPTS = 3


class State(Enum):
    """Where a job is in its life."""

    RECORDED = "on record, without a run"
    STARTING = "its run is being made"
    ACTIVE = "queued or running: it has a run, and may have workers"
    PAUSED = "it has a run, and is to have no workers"
    GOING_BACK = "its run was given up, and is being replaced"
    KEEPING = "its run has ended, and what it leaves is being written"
    RECORDING = "its end is being recorded"
    CLEARING = "its end is durable, and what it needs no more is being removed"
    ABANDONING = "what it leaves finds no room and is given up, because it is to be deleted"
    ENDED = "ended"
    DELETING = "being deleted"
    EXPIRING = "its result is being removed because of its age"
    DELETED = "deleted"


class ImpossibleTransitionError(ImpossibleError):
    """Something happened to a job that cannot happen in its state. The message contains the job's story."""

    def __init__(self, job_id: str, state: State, event: Event, story: Story) -> None:
        super().__init__(f"job {job_id}: {described(event)} is impossible in state {state.name} ({state.value}). Story:\n{story}")
        self.story = story


@dataclass(slots=True)
class _Scale:
    """A call that scales the job. `applied` to the run that the job has, and not known to be durable."""

    workers: int | None
    priority: int | None
    applied: bool = False


class Life:
    """The life of one job, from when it is accepted, found on record or asked for, until it has ended and nobody waits."""

    def __init__(self, job_id: str, story: Story, state: State = State.RECORDED, outcome: str = "") -> None:
        """`outcome` is the name of the state in which a job that has ended is."""
        self.job_id = job_id
        self.story = story
        self.state = state
        # Whether the job keeps its place among those that run, as one that has begun.
        self.keeps_place = False
        self._outcome = outcome
        self._starts: list[Ask] = []
        self._cancels: list[Ask] = []
        self._scales: dict[Ask, _Scale] = {}
        self._resumes: list[Ask] = []
        # The time limit with which the job is to be resumed; None leaves it.
        self._max_seconds: float | None = None
        self._deletes: list[Ask] = []
        self._rests: list[Ask] = []
        self._failing = self._rejected = False
        self._attempts = 0
        # Whether the end was given up for a deletion before it was durable: until then the record says that the job runs.
        self._end_given_up = False

    @property
    def runs(self) -> bool:
        """Whether the job has a run that has neither ended nor been given up."""
        return self.state in _RUNS

    @property
    def ending(self) -> bool:
        """Whether the job's run has ended, and its end is not durable."""
        return self.state in _ENDING

    @property
    def over(self) -> bool:
        """Whether there is nothing left to be decided."""
        return self.state in (State.ENDED, State.DELETED)

    def handle(self, event: Event, now: float) -> list[Decision]:
        """Decides about an event that comes at a time, in seconds since 1970. Raises ImpossibleTransitionError."""
        decide = TRANSITIONS.get((self.state, type(event)))
        if decide is None:
            raise ImpossibleTransitionError(self.job_id, self.state, event, self.story)
        before = self.state
        decisions = list(decide(self, event))
        change = f", {before.name} → {self.state.name}" if self.state is not before else ""
        self.story.add(now, Teller.LIFECYCLE, f"{described(event)}{change}")
        for decision in decisions:
            self.story.add(now, Teller.LIFECYCLE, f"  {described(decision)}")
        return decisions

    def _accepted(self, event: Accepted) -> Iterable[Decision]:
        self.state = State.STARTING
        self._starts.append(event.ask)
        yield StartRun(Start.ACCEPTED)

    def _server_started(self, event: ServerStarted) -> Iterable[Decision]:
        self.state = State.STARTING
        self._starts.append(event.ask)
        if event.aside:
            self._outcome = state_name(job_pb2.JOB_STATE_FAILED)
            yield SetAside(event.aside)
        else:
            self.keeps_place = event.begun
            yield StartRun(Start.RESTART, "the server was restarted; the job")

    def _was_set_aside(self, _: WasSetAside) -> Iterable[Decision]:
        yield from self._rest_ended()

    def _run_started(self, event: RunStarted) -> Iterable[Decision]:
        self.state = State.PAUSED if event.paused else State.ACTIVE
        self._failing = False
        # A call that resumes the job after a cancellation is answered when the job runs again after it.
        first = min(self._cancels, default=math.inf)
        resumes, self._resumes = self._resumes, [ask for ask in self._resumes if ask > first]
        yield from _answers(self._starts, [ask for ask in resumes if ask < first], self._rests)
        if event.refusal:
            yield FailRun(event.refusal)
            return
        for ask, scale in list(self._scales.items()):
            yield from self._apply(ask, scale)
        if self._cancels:
            yield CancelRun()

    def _start_failed(self, event: StartFailed) -> Iterable[Decision]:
        for ask in _taken(self._starts, self._resumes):
            yield Answer(ask, event.error)
        yield from self._rest_ended()

    def _going_back_failed(self, event: StartFailed) -> Iterable[Decision]:
        problem = f"internal error: {type(event.error).__name__}: {event.error}"
        if self._failing:
            yield from self._end(problem)
        else:
            self._failing = True
            yield StartRun(Start.FAILURE, problem)

    def _cancel(self, event: CancelRequested) -> Iterable[Decision]:
        self._cancels.append(event.ask)
        if self.runs:
            yield CancelRun()

    def _cancel_ended(self, event: CancelRequested) -> Iterable[Decision]:
        yield Answer(event.ask)

    def _scale(self, event: ScaleRequested) -> Iterable[Decision]:
        scale = self._scales[event.ask] = _Scale(event.workers, event.priority)
        if self.runs:
            yield from self._apply(event.ask, scale)

    def _apply(self, ask: Ask, scale: _Scale) -> Iterable[Decision]:
        scale.applied = True
        if scale.priority is not None:
            yield PrioritizeRun(scale.priority)
        if scale.workers:
            self.state = State.ACTIVE
            yield ScaleRun(scale.workers)
        elif scale.workers == 0 and self.state is not State.PAUSED:
            self.state = State.PAUSED
            # Others would wait for nothing.
            self.keeps_place = False
            yield PauseRun()
        yield RecordScale(ask)

    def _scale_ended(self, event: ScaleRequested) -> Iterable[Decision]:
        yield Answer(event.ask, self._has_ended())

    def _has_ended(self) -> ThalwegError:
        return ThalwegError("JOB_ENDED", {"job": self.job_id, "state": self._outcome})

    def _scale_durable(self, event: ScaleDurable) -> Iterable[Decision]:
        scale = self._scales.get(event.ask)
        if scale and scale.applied:
            del self._scales[event.ask]
            yield Answer(event.ask)

    def _resume_later(self, event: ResumeRequested) -> Iterable[Decision]:
        self._add_resume(event)
        yield from ()

    def _add_resume(self, event: ResumeRequested) -> None:
        self._resumes.append(event.ask)
        if event.max_seconds is not None:
            self._max_seconds = event.max_seconds

    def _resume_going_back(self, event: ResumeRequested) -> Iterable[Decision]:
        if self._cancels:
            self._add_resume(event)
        else:
            yield from self._resume_running(event)

    def _resume_running(self, event: ResumeRequested) -> Iterable[Decision]:
        """There is nothing to be resumed; the limit of a run does not change."""
        unchanged = event.max_seconds is None
        yield Answer(event.ask, None if unchanged else ThalwegError("JOB_NOT_ENDED", {"job": self.job_id}))

    def _resume_ended(self, event: ResumeRequested) -> Iterable[Decision]:
        self._add_resume(event)
        yield from self._go_on()

    def _answer(self, event: RestAwaited) -> Iterable[Decision]:
        yield Answer(event.ask)

    def _delete_ended(self, event: DeleteRequested) -> Iterable[Decision]:
        self._deletes.append(event.ask)
        yield from self._go_on()

    def _delete_ending(self, event: DeleteRequested) -> Iterable[Decision]:
        self._deletes.append(event.ask)
        yield AwaitShortage()

    def _delete_later(self, event: DeleteRequested) -> Iterable[Decision]:
        self._deletes.append(event.ask)
        yield from ()

    def _delete_refused(self, event: DeleteRequested) -> Iterable[Decision]:
        yield Answer(event.ask, ThalwegError("JOB_NOT_ENDED", {"job": self.job_id}))

    def _rest_later(self, event: RestAwaited) -> Iterable[Decision]:
        self._rests.append(event.ask)
        yield from ()

    def _shard_lost(self, event: ShardLost) -> Iterable[Decision]:
        reason = f"shard {event.address} was lost"
        self.keeps_place = self.state is State.ACTIVE
        yield from self._go_back(f"{reason}; the job returns to its last checkpoint", Start.CHECKPOINT, f"{reason}; the job")

    def _event_rejected(self, event: EventRejected) -> Iterable[Decision]:
        failure = f"internal error: the job's events cannot be recorded: {event.problem}"
        self._failing = True
        yield from self._go_back(failure, Start.FAILURE, failure)

    def _go_back(self, reason: str, start: Start, why: str) -> Iterable[Decision]:
        self.state = State.GOING_BACK
        self._forget_scales()
        yield GiveUpRun(reason)
        yield StartRun(start, why)

    def _forget_scales(self) -> None:
        """What calls changed may not be durable: the next run hears of it again."""
        for scale in self._scales.values():
            scale.applied = False

    def _event_rejected_at_the_end(self, _: EventRejected) -> Iterable[Decision]:
        self._forget_scales()
        self._rejected = True
        yield from ()

    def _run_ended(self, event: RunEnded) -> Iterable[Decision]:
        self.state = State.KEEPING
        self._outcome = state_name(event.state)
        yield KeepResult()

    def _result_kept(self, event: ResultKept) -> Iterable[Decision]:
        self.state = State.RECORDING
        self._outcome = state_name(event.state)
        self._attempts = 0
        yield from self._record_end()

    def _record_end(self) -> Iterable[Decision]:
        self._attempts += 1
        self._rejected = False
        yield RecordEnd()

    def _end_durable(self, _: EndDurable) -> Iterable[Decision]:
        if self._rejected and self._attempts < RECORD_ATTEMPTS:
            yield from self._record_end()
        elif not self._rejected and self._outcome == state_name(job_pb2.JOB_STATE_SUCCEEDED):
            self.state = State.CLEARING
            yield RemoveCheckpoints()
        else:
            yield from self._end("its events are rejected" if self._rejected else "")

    def _cleared(self, _: Cleared) -> Iterable[Decision]:
        yield from self._end()

    def _end_failed(self, event: EndFailed) -> Iterable[Decision]:
        yield from self._end(event.problem)

    def _disk_full(self, _: DiskFull) -> Iterable[Decision]:
        if self._deletes:
            self._end_given_up = self.state is not State.CLEARING
            self.state = State.ABANDONING
            yield AbandonEnd()

    def _abandoned(self, _: Abandoned) -> Iterable[Decision]:
        self._forget_scales()
        yield from self._end()

    def _end(self, problem: str = "") -> Iterable[Decision]:
        yield ForgetRun(problem)
        yield from self._rest_ended()

    def _rest_ended(self) -> Iterable[Decision]:
        """The job has ended: answers those who waited for that, and does what was asked of a job that has ended."""
        self.state = State.ENDED
        self.keeps_place = False
        yield from _answers(self._starts, self._cancels, self._rests)
        for ask, scale in self._scales.items():
            # What was recorded before the end is durable with it.
            yield Answer(ask, None if scale.applied else self._has_ended())
        self._scales.clear()
        yield from self._go_on()

    def _go_on(self) -> Iterable[Decision]:
        if self._deletes:
            self.state = State.DELETING
            yield DeleteJob()
        elif self._resumes:
            self.state = State.STARTING
            max_seconds, self._max_seconds = self._max_seconds, None
            yield StartRun(Start.RESUME, "resumed; the job", max_seconds)

    def _deleted(self, _: Deleted) -> Iterable[Decision]:
        self.state = State.DELETED
        yield from _answers(self._deletes, self._rests)
        for ask in _taken(self._resumes):
            yield Answer(ask, ThalwegError("JOB_NOT_FOUND", {"job": self.job_id}))

    def _delete_failed(self, event: DeleteFailed) -> Iterable[Decision]:
        for ask in _taken(self._deletes):
            yield Answer(ask, event.error)
        if not self._end_given_up:
            yield from self._rest_ended()
            return
        self._end_given_up = False
        self.state = State.STARTING
        self._outcome = state_name(job_pb2.JOB_STATE_FAILED)
        yield SetAside(f"its result was given up because the job was to be deleted, and the deletion failed: {event.error}")

    def _expired(self, _: ResultExpired) -> Iterable[Decision]:
        self.state = State.EXPIRING
        yield RemoveResult()

    def _result_removed(self, _: ResultRemoved) -> Iterable[Decision]:
        yield from self._rest_ended()

    def _nothing(self, _: Event) -> Iterable[Decision]:
        yield from ()


def _taken(*asks: list[Ask]) -> list[Ask]:
    """The calls in some lists, which are empty afterwards."""
    taken = [ask for each in asks for ask in each]
    for each in asks:
        each.clear()
    return taken


def _answers(*asks: list[Ask]) -> list[Decision]:
    return [Answer(ask) for ask in _taken(*asks)]


_RUNS = (State.ACTIVE, State.PAUSED)
_ENDING = (State.KEEPING, State.RECORDING, State.CLEARING, State.ABANDONING)
_WITHOUT_RUN = (State.STARTING, State.GOING_BACK)
_ALL = tuple(State)

E = TypeVar("E", bound=Event)
Decide: TypeAlias = Callable[[Life, Event], Iterable[Decision]]
# What is possible: how an event is decided about in a state.
TRANSITIONS: dict[tuple[State, type[object]], Decide] = {}


def _on(event: type[E], decide: Callable[[Life, E], Iterable[Decision]], *states: State) -> None:
    for state in states:
        TRANSITIONS[state, event] = cast(Decide, decide)


_on(Accepted, Life._accepted, State.RECORDED)
_on(ServerStarted, Life._server_started, State.RECORDED)
_on(WasSetAside, Life._was_set_aside, State.STARTING)
_on(RunStarted, Life._run_started, *_WITHOUT_RUN)
_on(StartFailed, Life._start_failed, State.STARTING)
_on(StartFailed, Life._going_back_failed, State.GOING_BACK)
_on(CancelRequested, Life._cancel, *_WITHOUT_RUN, *_RUNS, *_ENDING)
_on(CancelRequested, Life._cancel_ended, State.ENDED, State.DELETING, State.EXPIRING)
_on(ScaleRequested, Life._scale, *_WITHOUT_RUN, *_RUNS, *_ENDING)
_on(ScaleRequested, Life._scale_ended, State.ENDED, State.DELETING, State.EXPIRING)
_on(ResumeRequested, Life._resume_running, *_RUNS)
_on(ResumeRequested, Life._resume_going_back, State.GOING_BACK)
_on(ResumeRequested, Life._resume_later, State.STARTING, *_ENDING, State.DELETING, State.EXPIRING)
_on(ResumeRequested, Life._resume_ended, State.ENDED)
_on(DeleteRequested, Life._delete_refused, *_WITHOUT_RUN, *_RUNS)
_on(DeleteRequested, Life._delete_ending, State.KEEPING, State.RECORDING, State.CLEARING)
_on(DeleteRequested, Life._delete_later, State.ABANDONING, State.DELETING, State.EXPIRING)
_on(DeleteRequested, Life._delete_ended, State.ENDED)
_on(RestAwaited, Life._answer, *_RUNS, State.ENDED)
_on(RestAwaited, Life._rest_later, *_WITHOUT_RUN, *_ENDING, State.DELETING, State.EXPIRING)
_on(ShardLost, Life._shard_lost, *_RUNS)
_on(EventRejected, Life._nothing, *_ALL)
_on(EventRejected, Life._event_rejected, *_RUNS)
_on(EventRejected, Life._event_rejected_at_the_end, State.KEEPING, State.RECORDING)
_on(ScaleDurable, Life._scale_durable, *_ALL)
_on(RunEnded, Life._run_ended, *_RUNS)
_on(ResultKept, Life._result_kept, State.KEEPING)
_on(EndDurable, Life._end_durable, State.RECORDING)
_on(Cleared, Life._cleared, State.CLEARING)
_on(EndFailed, Life._end_failed, State.RECORDING, State.CLEARING)
_on(DiskFull, Life._nothing, *_ALL)
_on(DiskFull, Life._disk_full, State.KEEPING, State.RECORDING, State.CLEARING)
_on(Abandoned, Life._abandoned, State.ABANDONING)
_on(Deleted, Life._deleted, State.DELETING)
_on(DeleteFailed, Life._delete_failed, State.DELETING)
# It may have been resumed, or be about to be deleted, since its age was found.
_on(ResultExpired, Life._nothing, *_ALL)
_on(ResultExpired, Life._expired, State.ENDED)
_on(ResultRemoved, Life._result_removed, State.EXPIRING)
