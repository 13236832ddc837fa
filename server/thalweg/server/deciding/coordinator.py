"""The state machine of one running job: events in, decisions out.

It is pure: no I/O, no threads, no clock, no randomness; time comes in with events. The same events at the same times give the
same decisions. A thin driver carries them out (`driving/job/driver.py`). A job goes through phases, each a type:

- `Expecting`: no worker has said yet what the job is about;
- `Initialization`: a worker makes the initial parameters, unless they are given;
- `Course`: steps, about which the synchrony policy decides, and evaluations: at the end of an epoch on the validation set, at the
  end of the job on the training set too.

Then its end is decided, and it has finished when the driver says that the end was carried out.
"""

from collections.abc import Iterable
from enum import Enum, auto
from typing import NamedTuple

from thalweg.contract.code import entry_points
from thalweg.learning import optimizers
from thalweg.server.deciding.decisions import (
    AdmitWorker,
    Allocate,
    Decision,
    Dismiss,
    Dropped,
    Evict,
    Finish,
    LetGo,
    LoadGiven,
    Refuse,
    ReportReady,
    Tell,
)
from thalweg.server.deciding.events import (
    CancelRequested,
    CheckpointDone,
    CheckpointRequested,
    ContributionReceived,
    DataChanged,
    DriverFailed,
    EvaluationReceived,
    Event,
    HeartbeatReceived,
    InitialReceived,
    PauseRequested,
    RangeNotFinite,
    Tick,
    WorkerDied,
    WorkerExited,
    WorkerFailed,
    WorkerJoined,
    WorkerLost,
    WorkerMisbehaved,
    WorkerPrepared,
    WorkerRefused,
    WorkersReleased,
)
from thalweg.server.deciding.impossible import ImpossibleError
from thalweg.server.deciding.phases.course import Course
from thalweg.server.deciding.phases.initialization import Initialization
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.synchrony.diverged import diverged
from thalweg.server.deciding.time_limit import TimeLimit, reached
from thalweg.server.deciding.values import Drop, Facts, Position, Scope, WorkerId
from thalweg.server.deciding.workers.assignments import Pace
from thalweg.server.deciding.workers.failures import Kind
from thalweg.server.deciding.workers.machines import ADVICE, Machines, Premises
from thalweg.server.deciding.workers.workforce import Workforce
from thalweg.server.settings import RunSettings
from thalweg.v1 import job_pb2, parameter_service_pb2


class Phase(Enum):
    """Where a job is."""

    PREPARING = auto()
    TRAINING = auto()
    EVALUATING = auto()
    ENDING = auto()
    FINISHED = auto()


class Standing(NamedTuple):
    """How a worker does: whether it is prepared, the seconds since it was heard, its share of a step's work, and its pace."""

    prepared: bool
    silent_seconds: float
    share: float
    pace: Pace | None


class Expecting:
    """No worker has been prepared: it is not known what the job is about."""


class Coordinator:
    """Decides for one job. An event that cannot come in its phase raises ImpossibleError.

    `position` is where an earlier run of it was, if its parameters are given by a checkpoint, and `machines` are the kinds of
    machines that computed them; `given` says that those of version 0 are. `used` are the seconds that count for its time limit.
    """

    def __init__(
        self,
        spec: job_pb2.JobSpec,
        settings: RunSettings,
        position: Position | None = None,
        given: bool = False,
        machines: Iterable[Premises] = (),
        used: float = 0.0,
    ) -> None:
        self.spec = spec
        self.machines = Machines(spec.training.mixed_machines, machines)
        self.stage: Expecting | Initialization | Course = Expecting()
        # ENDING or FINISHED, when the end is decided.
        self._end: Phase | None = None
        self._settings = settings
        self._position = position or (Position(0, 0.0, 0) if given else None)
        self._now = 0.0
        uses = entry_points(spec)
        code = f"{uses[0].field}: {uses[0].title}" if uses else ""
        self._workers = Workforce(contributed=position is not None and position.version > 0, code=code)
        self._facts: Facts | None = None
        self.limit = TimeLimit(spec.training.max_seconds if spec.training.HasField("max_seconds") else None, used)
        # The workers that are to go when they have nothing left to do, and why.
        self._released: dict[WorkerId, str] = {}

    @property
    def version(self) -> int:
        """The number of updates applied."""
        return self.stage.version if isinstance(self.stage, Course) else 0

    @property
    def plan(self) -> Plan | None:
        """The job's plan, as soon as it is known."""
        return None if isinstance(self.stage, Expecting) else self.stage.plan

    @property
    def phase(self) -> Phase:
        """Where the job is."""
        if self._end:
            return self._end
        if isinstance(self.stage, Course):
            return Phase.EVALUATING if self.stage.evaluating else Phase.TRAINING
        return Phase.PREPARING

    def trouble(self, now: float) -> str:
        """What keeps the job from having workers that contribute, in words for people; empty if nothing does."""
        return self._workers.trouble(now)

    def standing(self, now: float) -> dict[WorkerId, Standing]:
        """How the workers that are there do at a time, in the order in which they came."""
        policy = None
        if isinstance(self.stage, Course):
            self.stage.set_time(now)
            policy = self.stage.policy
        joined = [worker for worker in self._workers if policy and policy.pace(worker)]
        weights = policy.weights(joined) if policy and joined else {}
        total = sum(weights.values())
        return {
            worker: Standing(
                worker in self._workers.prepared,
                self._workers.silence(worker, now),
                weights[worker] / total if worker in weights else 0.0,
                policy.pace(worker) if policy else None,
            )
            for worker in self._workers
        }

    def handle(self, event: Event, now: float) -> list[Decision]:
        """The decisions that follow from an event at a time, in seconds, which never runs backwards."""
        if self._end:
            return self._after_end(event)
        self._now = now
        self.limit.at(now, working=bool(self._workers))
        self._workers.set_time(now)
        if isinstance(self.stage, Course):
            self.stage.set_time(now)
        self._workers.hear(getattr(event, "worker", None))
        decisions = self._decide(event)
        if any(isinstance(decision, Finish) for decision in decisions):
            self._end = Phase.ENDING
        elif self._released:
            decisions += self._let_go()
        return decisions

    def _after_end(self, event: Event) -> list[Decision]:
        """Until the end is carried out, all else may still happen, and changes nothing; contributions are accounted for."""
        if self._end is Phase.ENDING and isinstance(event, DriverFailed):
            return [Finish(job_pb2.JOB_STATE_FAILED, event.problem)]
        if self._end is Phase.ENDING and isinstance(event, ContributionReceived):
            return [Dropped(event.worker, Drop.LATE if event.worker in self._workers else Drop.STALE_INCARNATION)]
        return []

    @property
    def over(self) -> bool:
        """Whether the end is decided: nothing but a failure to carry it out changes anything."""
        return self._end is not None

    def finished(self) -> None:
        """The end was carried out."""
        self._end = Phase.FINISHED

    def _decide(self, event: Event) -> list[Decision]:
        match event:
            case WorkerJoined(worker, place):
                self._workers.join(worker, place)
                return []
            case WorkerPrepared(worker, facts, premises):
                return self._worker_prepared(worker, facts, premises)
            case WorkerLost(worker):
                return self._worker_lost(worker)
            case WorkerExited(place, problem, killed):
                return self._workers.failed(Kind.KILLED if killed else Kind.NODE, place, problem)
            case WorkerDied(place, problem, line):
                return self._workers.died(place, problem, line)
            case WorkerRefused(place, problem):
                return self._workers.failed(Kind.NODE, place, problem)
            case WorkerFailed(worker, problem, scope):
                return self._worker_failed(worker, problem, scope)
            case WorkerMisbehaved(worker, problem):
                return self._worker_misbehaved(worker, problem)
            case DataChanged(worker, problem):
                return self._data_changed(worker, problem)
            case DriverFailed(problem):
                return [Finish(job_pb2.JOB_STATE_FAILED, problem)]
            case InitialReceived():
                return self._initial_received(event)
            case ContributionReceived():
                return self._contribution_received(event)
            case EvaluationReceived():
                return self._evaluation_received(event)
            case RangeNotFinite(version):
                self._course(event)
                return diverged("the update produced NaN or infinite parameters", version)
            case HeartbeatReceived():
                return []
            case CheckpointDone(seconds):
                return self._course(event).checkpoint_done(seconds)
            case CheckpointRequested():
                # Before there are parameters, there is nothing to be kept.
                return self.stage.checkpoint_requested() if isinstance(self.stage, Course) else []
            case Tick(missed):
                return self._tick(missed)
            case WorkersReleased(workers, reason, at_once):
                return self._release(workers, reason, at_once)
            case PauseRequested():
                return self._pause()
            case CancelRequested():
                return [self._cancelled()]

    def _cancelled(self, status: str = "") -> Finish:
        """The end of a job that can be resumed."""
        position = self.stage.position if isinstance(self.stage, Course) else None
        return Finish(job_pb2.JOB_STATE_CANCELLED, position=position, status=status)

    def _course(self, event: Event) -> Course:
        """The job's course, from which alone an event can follow."""
        if not isinstance(self.stage, Course):
            raise ImpossibleError(f"{type(event).__name__} before the job has parameters")
        return self.stage

    def _worker_prepared(self, worker: WorkerId, facts: Facts, premises: Premises) -> list[Decision]:
        # It may count as lost by now, or say so twice.
        if worker not in self._workers or worker in self._workers.prepared:
            return []
        if self._facts is None:
            return self._first_prepared(worker, facts, premises)
        if facts != self._facts:
            problem = f"it found {_words(facts)}, but the others found {_words(self._facts)}"
            return self._refuse(worker, Refuse(worker, problem), f"a worker disagrees with the others: {problem}")
        if not self._workers.prepared:
            self.machines.all_left()
        if problem := self.machines.problem(premises):
            refusal = Refuse(worker, problem, "OTHER_MACHINE")
            return self._refuse(worker, refusal, f"it would not compute the same bits as others: {problem}; {ADVICE}")
        return [*self._admit(worker, premises), *self._worker_ready(worker)]

    def _first_prepared(self, worker: WorkerId, facts: Facts, premises: Premises) -> list[Decision]:
        """It is known what the job is about."""
        if facts.elements == 0:
            return [Finish(job_pb2.JOB_STATE_FAILED, _without_parameters(self.spec.model.WhichOneof("kind")))]
        problem = optimizers.mistake(self.spec, facts.segments)
        if problem:
            return [Finish(job_pb2.JOB_STATE_FAILED, problem)]
        self._facts = facts
        plan = Plan(self.spec, facts)
        known = [Allocate(plan), *self._admit(worker, premises)]
        if self._position:
            return [*known, LoadGiven(), *self._start(plan, self._position)]
        self.stage = Initialization(plan)
        return known + self._worker_ready(worker)

    def _admit(self, worker: WorkerId, premises: Premises) -> list[Decision]:
        self._workers.prepared[worker] = None
        notice = self.machines.admit(premises)
        return [Tell(notice), AdmitWorker(worker)] if notice else [AdmitWorker(worker)]

    def _refuse(self, worker: WorkerId, refusal: Refuse, problem: str) -> list[Decision]:
        """A worker cannot work beside the others: it is refused, and its node is left alone for a while."""
        following = self._workers.failed(Kind.NODE, self._workers.place(worker), problem)
        return [refusal, *self._worker_lost(worker), *following]

    def _worker_ready(self, worker: WorkerId) -> list[Decision]:
        match self.stage:
            case Initialization() as making:
                return making.assign(self._available(), self._now)
            case Course() as course:
                return course.joined(worker)
            case Expecting():
                raise ImpossibleError(f"worker {worker} is ready for an unknown job")

    def _initial_received(self, event: InitialReceived) -> list[Decision]:
        if isinstance(self.stage, Expecting):
            raise ImpossibleError("initial parameters of an unknown job")
        # Other workers may have made them, or they were given; the worker may count as lost.
        if not isinstance(self.stage, Initialization) or event.worker not in self._workers.prepared:
            return []
        decisions = self.stage.received(event)
        if decisions:
            self.machines.contributed()
        return decisions + self._start(self.stage.plan, Position(0, 0.0, 0)) if self.stage.complete else decisions

    def _start(self, plan: Plan, position: Position) -> list[Decision]:
        """The parameters are there: training begins, or goes on, where it is."""
        course = self.stage = Course(plan, self._settings, position, self._now)
        return [ReportReady(), *course.begin(self._available())]

    def _worker_lost(self, worker: WorkerId) -> list[Decision]:
        # It may have been evicted or dismissed before.
        if worker not in self._workers:
            return []
        self._released.pop(worker, None)
        prepared = self._workers.leave(worker)
        match self.stage:
            case Initialization() as making if prepared:
                making.lost(worker)
                return making.assign(self._available(), self._now)
            case Course() as course if prepared:
                return course.lost(worker)
            case _:
                return []

    def _worker_failed(self, worker: WorkerId, problem: str, scope: Scope) -> list[Decision]:
        """A failure is the job's if the worker says so, and no other worker got further with the same job."""
        if worker not in self._workers:
            return []
        others_prepared = self._facts is not None and worker not in self._workers.prepared
        others_got_further = others_prepared or self._workers.others_contributed(worker)
        if scope == parameter_service_pb2.Failure.SCOPE_JOB and not others_got_further:
            return [Finish(job_pb2.JOB_STATE_FAILED, problem)]
        node = scope == parameter_service_pb2.Failure.SCOPE_NODE or others_prepared
        place = self._workers.place(worker)
        lost = self._worker_lost(worker)
        return [Dismiss(worker, problem), *lost, *self._workers.failed(Kind.NODE if node else Kind.REPORTED, place, problem)]

    def _worker_misbehaved(self, worker: WorkerId, problem: str) -> list[Decision]:
        if worker not in self._workers:
            return []
        place = self._workers.place(worker)
        return [*self._worker_lost(worker), *self._workers.failed(Kind.NODE, place, problem)]

    def _data_changed(self, worker: WorkerId, problem: str) -> list[Decision]:
        """If workers are prepared, its node alone has other files. If none is, perhaps no node has those: then the job fails."""
        if worker not in self._workers:
            return []
        place, kind = self._workers.place(worker), Kind.NODE if self._workers.prepared else Kind.REPORTED
        refusal = Refuse(worker, problem, "DATA_CHANGED")
        return [refusal, *self._worker_lost(worker), *self._workers.failed(kind, place, problem)]

    def _worker_contributed(self, worker: WorkerId) -> list[Decision]:
        """What follows from a worker's contribution for those that failed."""
        self.machines.contributed()
        return self._workers.contributed(worker)

    def _pause(self) -> list[Decision]:
        """Lets all workers go. Where everything is at one version, that is kept on disk."""
        self.machines.begin_anew()
        decisions = self.stage.pause() if isinstance(self.stage, Course) else []
        for worker in self._workers:
            decisions.append(Dismiss(worker, "the job is paused"))
            # Tasks that it orphans are not reassigned: all workers leave.
            self._worker_lost(worker)
        return decisions

    def _release(self, workers: Iterable[WorkerId], reason: str, at_once: bool) -> list[Decision]:
        """Workers get nothing more to do. They go when they have done what they have, or at once."""
        decisions: list[Decision] = []
        there = [worker for worker in workers if worker in self._workers]
        for worker in there:
            self._released[worker] = reason
            if isinstance(self.stage, Course):
                self.stage.retire(worker)
        for worker in there if at_once else ():
            decisions += [LetGo(worker, reason), *self._worker_lost(worker)]
        return decisions

    def _let_go(self) -> list[Decision]:
        """Lets released workers go that have nothing left to do."""
        decisions: list[Decision] = []
        for worker, reason in list(self._released.items()):
            if isinstance(self.stage, Expecting) or not self.stage.busy(worker):
                decisions += [LetGo(worker, reason), *self._worker_lost(worker)]
        return decisions

    def _available(self) -> list[WorkerId]:
        """The prepared workers that may get something to do."""
        return [worker for worker in self._workers.prepared if worker not in self._released]

    def _tick(self, missed: float) -> list[Decision]:
        if self.limit.seconds is not None and self.limit.reached:
            return [self._cancelled(f"{reached(self.limit.seconds, self.limit.used)}; resume it with a higher limit")]
        decisions = self._workers.avoid_less()
        for worker in self._workers.silent(self._settings.silence_seconds, missed):
            decisions += [Evict(worker), *self._worker_lost(worker)]
        match self.stage:
            case Initialization() as making:
                return decisions + making.assign(self._available(), self._now)
            case Course() as course:
                return decisions + course.tick()
            case Expecting():
                return decisions

    def _contribution_received(self, event: ContributionReceived) -> list[Decision]:
        if event.worker not in self._workers:
            return [Dropped(event.worker, Drop.STALE_INCARNATION)]
        if isinstance(self.stage, Expecting):
            raise ImpossibleError("a contribution to an unknown job")
        # It was given no task.
        if not isinstance(self.stage, Course) or event.worker not in self._workers.prepared:
            return [Dropped(event.worker, Drop.UNKNOWN)]
        return self._worker_contributed(event.worker) + self.stage.received(event)

    def _evaluation_received(self, event: EvaluationReceived) -> list[Decision]:
        following = self.stage.evaluated(event) if isinstance(self.stage, Course) else None
        # The answer may come twice, late, or to no question.
        return [] if following is None else self._worker_contributed(event.worker) + following


def _words(facts: Facts) -> str:
    kind = f"the metrics {', '.join(facts.metrics)}" if facts.metrics else "no metrics besides the loss"
    samples = f"{facts.train_samples:,} and {facts.validation_samples:,} samples"
    test = f", {facts.test_samples:,} to test with" if facts.test_samples else ""
    differences = ", gradients by differences of the loss" if facts.numerical else ""
    return f"{facts.elements:,} parameters, {samples} for training and validation{test}, {kind}{differences}"


def _without_parameters(kind: str | None) -> str:
    if kind is None:
        return "model.layers: the model has no parameters to train; give it a dense layer"
    problem = f"model.{kind}: the model has no parameters to train"
    return f"{problem}; PyTorch finds no modules in lists and dicts: use ModuleList or ModuleDict" if kind == "torch" else problem
