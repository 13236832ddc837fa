"""The state machine of one running job: events in, decisions out.

It is pure: no I/O, no threads, no clock, no randomness; time comes in with events. The same events at the same times give the
same decisions. A thin driver carries them out (`driving/job.py`). A job goes through three phases:

- *preparing*: the first worker that has the model makes the initial parameters, unless they are given;
- *training*: the synchrony policy decides about steps;
- *evaluating*: at the end of an epoch on the validation set, at the end of the job on the training set too.

Then its end is decided, and it has finished when the driver says that the end was carried out.
"""

import math
from collections.abc import Iterable
from enum import Enum, auto

from thalweg.contract.sums import ACCURACY
from thalweg.learning import optimizers
from thalweg.server.deciding import synchrony
from thalweg.server.deciding.assignments import no_paces
from thalweg.server.deciding.decisions import (
    AdmitWorker,
    Allocate,
    AssignInitialize,
    Avoid,
    Decision,
    Dismiss,
    Dropped,
    Evict,
    Finish,
    KeepInitial,
    LoadGiven,
    Refuse,
    ReportEpoch,
    ReportReady,
    ReportStep,
    Tell,
    WriteCheckpoint,
)
from thalweg.server.deciding.evaluation import Evaluation
from thalweg.server.deciding.events import (
    CancelRequested,
    CheckpointDone,
    CheckpointRequested,
    ContributionReceived,
    DriverFailed,
    EvaluationReceived,
    Event,
    HeartbeatReceived,
    InitialReceived,
    PauseRequested,
    RangeNotFinite,
    Tick,
    WorkerExited,
    WorkerFailed,
    WorkerJoined,
    WorkerLost,
    WorkerMisbehaved,
    WorkerPrepared,
    WorkerRefused,
)
from thalweg.server.deciding.failures import Failures, Kind
from thalweg.server.deciding.machines import ADVICE, Machines, Premises
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.synchrony.base import Policy
from thalweg.server.deciding.synchrony.diverged import diverged
from thalweg.server.deciding.values import Drop, Facts, Place, Position, Scope, Split, WorkerId
from thalweg.server.settings import RunSettings
from thalweg.v1 import job_pb2, parameter_service_pb2

# How long a worker may take to make the initial parameters until another one is to make them too; then twice as long.
_INITIALIZE_SECONDS = 5.0
# Stands for the workers of a run before this one.
_EARLIER_RUN: WorkerId = -1
# Writing checkpoints takes at most this share of the time.
_CHECKPOINT_SHARE = 0.1


class Phase(Enum):
    """Where a job is."""

    PREPARING = auto()
    TRAINING = auto()
    EVALUATING = auto()
    ENDING = auto()
    FINISHED = auto()


class Coordinator:
    """Decides for one job.

    `position` is where an earlier run of it was, if its parameters are given by a checkpoint, and `machines` are the kinds of
    machines that computed them; `given` says that those of version 0 are.
    """

    def __init__(
        self,
        spec: job_pb2.JobSpec,
        settings: RunSettings,
        position: Position | None = None,
        given: bool = False,
        machines: Iterable[Premises] = (),
    ) -> None:
        self.spec = spec
        self.machines = Machines(spec.training.mixed_machines, machines)
        self.phase = Phase.PREPARING
        self.plan: Plan | None = None
        self.policy: Policy | None = None
        self._settings = settings
        self._position = position or (Position(0, 0.0, 0) if given else None)
        self._now = 0.0
        self._heard: dict[WorkerId, float] = {}
        self._places: dict[WorkerId, Place] = {}
        self._failures = Failures()
        self._avoided: tuple[Place, ...] = ()
        # The first two workers that contributed anything: enough to tell whether another one than some worker has.
        self._contributors: set[WorkerId] = {_EARLIER_RUN} if position and position.version else set()
        self._prepared: dict[WorkerId, None] = {}
        self._facts: Facts | None = None
        self._initializers: dict[WorkerId, None] = {}
        self._initialize_by = math.inf
        self._initial: set[int] = set()
        self._evaluation: Evaluation | None = None
        self._evaluation_paces = no_paces()
        self._epoch_loss = (0.0, 0)
        self._checkpoint_due = math.inf
        self._writing = False
        self._requested = False

    @property
    def version(self) -> int:
        """The number of updates applied."""
        return self.policy.version if self.policy else 0

    def trouble(self, now: float) -> str:
        """What keeps the job from having workers that contribute, in words for people; empty if nothing does."""
        return self._failures.status(now)

    def handle(self, event: Event, now: float) -> list[Decision]:
        """The decisions that follow from an event at a time, in seconds, which never runs backwards."""
        if self.over:
            if self.phase is Phase.ENDING and isinstance(event, DriverFailed):
                return [Finish(job_pb2.JOB_STATE_FAILED, event.problem)]
            if self.phase is Phase.ENDING and isinstance(event, ContributionReceived):
                return [Dropped(event.worker, Drop.LATE if event.worker in self._heard else Drop.STALE_INCARNATION)]
            return []
        self._now = self._failures.now = now
        if self.policy:
            self.policy.at(now)
        worker = getattr(event, "worker", None)
        if worker in self._heard:
            self._heard[worker] = now
        decisions = self._decide(event)
        if any(isinstance(decision, Finish) for decision in decisions):
            self.phase = Phase.ENDING
        return decisions

    @property
    def over(self) -> bool:
        """Whether the end is decided: nothing but a failure to carry it out changes anything."""
        return self.phase in (Phase.ENDING, Phase.FINISHED)

    def finished(self) -> None:
        """The end was carried out."""
        self.phase = Phase.FINISHED

    def _decide(self, event: Event) -> list[Decision]:
        match event:
            case WorkerJoined(worker, place):
                self._heard[worker] = self._now
                self._places[worker] = place
                return []
            case WorkerPrepared(worker, facts, premises):
                return self._worker_prepared(worker, facts, premises)
            case WorkerLost(worker):
                return self._worker_lost(worker)
            case WorkerExited(place, problem, killed):
                return self._happened(Kind.KILLED if killed else Kind.NODE, place, problem)
            case WorkerRefused(place, problem):
                return self._happened(Kind.NODE, place, problem)
            case WorkerFailed(worker, problem, scope):
                return self._worker_failed(worker, problem, scope)
            case WorkerMisbehaved(worker, problem):
                return self._worker_misbehaved(worker, problem)
            case DriverFailed(problem):
                return [Finish(job_pb2.JOB_STATE_FAILED, problem)]
            case InitialReceived():
                return self._initial_received(event)
            case ContributionReceived():
                return self._contribution_received(event)
            case EvaluationReceived():
                return self._evaluation_received(event)
            case RangeNotFinite(version):
                return diverged("the update produced NaN or infinite parameters", version)
            case HeartbeatReceived():
                return []
            case CheckpointDone(seconds):
                self._writing = False
                self._checkpoint_due = self._now + max(self._settings.checkpoint_seconds, seconds / _CHECKPOINT_SHARE)
                return self._checkpoint_if_whole() if self._requested else []
            case CheckpointRequested():
                self._requested = True
                return self._checkpoint_if_whole()
            case Tick(missed):
                return self._tick(missed)
            case PauseRequested():
                return self._pause()
            case CancelRequested():
                whole = self.policy is not None and self.policy.whole()
                return [Finish(job_pb2.JOB_STATE_CANCELLED, position=self._here() if whole else None)]

    def _worker_prepared(self, worker: WorkerId, facts: Facts, premises: Premises) -> list[Decision]:
        if worker not in self._heard or worker in self._prepared:
            return []
        decisions: list[Decision] = []
        if self._facts is None:
            if facts.elements == 0:
                problem = "model.layers: the model has no parameters to train; give it a dense layer"
                return [Finish(job_pb2.JOB_STATE_FAILED, problem)]
            problem = optimizers.mistake(self.spec, facts.segments)
            if problem:
                return [Finish(job_pb2.JOB_STATE_FAILED, problem)]
            self._facts = facts
            self.plan = Plan(self.spec, facts)
            decisions.append(Allocate(self.plan))
        elif facts != self._facts:
            problem = f"it found {_words(facts)}, but the others found {_words(self._facts)}"
            return self._refuse(worker, Refuse(worker, problem), f"a worker disagrees with the others: {problem}")
        if not self._prepared:
            self.machines.all_left()
        if problem := self.machines.problem(premises):
            refusal = Refuse(worker, problem, "OTHER_MACHINE")
            return self._refuse(worker, refusal, f"it would not compute the same bits as others: {problem}; {ADVICE}")
        self._prepared[worker] = None
        if notice := self.machines.admit(premises):
            decisions.append(Tell(notice))
        decisions.append(AdmitWorker(worker))
        if self.phase is not Phase.PREPARING:
            return decisions + self._worker_ready(worker)
        if self._position:
            return [*decisions, LoadGiven(), *self._start(self._position)]
        return decisions + self._assign_initialize()

    def _refuse(self, worker: WorkerId, refusal: Refuse, problem: str) -> list[Decision]:
        """A worker cannot work beside the others: it is refused, and its node is left alone for a while."""
        happened = self._happened(Kind.NODE, self._places[worker], problem)
        return [refusal, *self._worker_lost(worker), *happened]

    def _assign_initialize(self) -> list[Decision]:
        """Lets a worker make the initial parameters, and another one too, if that takes long: all make the same."""
        if self._initializers and self._now < self._initialize_by:
            return []
        worker = next((worker for worker in self._prepared if worker not in self._initializers), None)
        if worker is None:
            return []
        self._initializers[worker] = None
        self._initialize_by = self._now + _INITIALIZE_SECONDS * 2.0 ** (len(self._initializers) - 1)
        return [AssignInitialize(worker)]

    def _initial_received(self, event: InitialReceived) -> list[Decision]:
        if self.plan is None or self.phase is not Phase.PREPARING or self._position or event.worker not in self._prepared:
            return []
        if event.chunk in self._initial:
            return []
        self.machines.contributed()
        self._initial.add(event.chunk)
        decisions: list[Decision] = [KeepInitial(event.chunk, event.payload)]
        if len(self._initial) < self.plan.chunks:
            return decisions
        return decisions + self._start(Position(0, 0.0, 0))

    def _start(self, position: Position) -> list[Decision]:
        """The parameters are there: training begins, or goes on, where it is."""
        if self.plan is None:
            return []
        self.policy = synchrony.make(self.spec.training.synchrony, self.plan, position.version, position.applied)
        self.policy.at(self._now)
        self.phase = Phase.TRAINING
        self._epoch_loss = (position.epoch_loss, position.epoch_samples)
        self._checkpoint_due = self._now + self._settings.checkpoint_seconds
        decisions: list[Decision] = [ReportReady()]
        for worker in self._prepared:
            decisions += self.policy.joined(worker)
        return decisions + self._advance()

    def _worker_ready(self, worker: WorkerId) -> list[Decision]:
        if self.policy is None:
            return []
        return self.policy.joined(worker) + self._assign_evaluation()

    def _worker_lost(self, worker: WorkerId) -> list[Decision]:
        if self._heard.pop(worker, None) is None:
            return []
        prepared = worker in self._prepared
        self._prepared.pop(worker, None)
        self._places.pop(worker, None)
        self._initializers.pop(worker, None)
        if self.phase is Phase.PREPARING and not self._position:
            return self._assign_initialize()
        if self.policy is None or not prepared:
            return []
        decisions = self.policy.lost(worker)
        if self._evaluation:
            self._evaluation.remove(worker)
        return decisions + self._assign_evaluation()

    def _worker_failed(self, worker: WorkerId, problem: str, scope: Scope) -> list[Decision]:
        """A failure is the job's if the worker says so, and no other worker got further with the same job."""
        if worker not in self._heard:
            return []
        others_prepared = self._facts is not None and worker not in self._prepared
        others_got_further = others_prepared or bool(self._contributors - {worker})
        if scope == parameter_service_pb2.Failure.SCOPE_JOB and not others_got_further:
            return [Finish(job_pb2.JOB_STATE_FAILED, problem)]
        node = scope == parameter_service_pb2.Failure.SCOPE_NODE or others_prepared
        place = self._places[worker]
        lost = self._worker_lost(worker)
        return [Dismiss(worker, problem), *lost, *self._happened(Kind.NODE if node else Kind.REPORTED, place, problem)]

    def _worker_misbehaved(self, worker: WorkerId, problem: str) -> list[Decision]:
        if worker not in self._heard:
            return []
        place = self._places[worker]
        return [*self._worker_lost(worker), *self._happened(Kind.NODE, place, problem)]

    def _happened(self, kind: Kind, place: Place, problem: str) -> list[Decision]:
        """Something went wrong with a worker: its node is left alone for a while, unless the job fails."""
        text = self._failures.happened(kind, place, problem)
        error = self._failures.failed(self._places.values())
        if error:
            return [Finish(job_pb2.JOB_STATE_FAILED, error)]
        told: list[Decision] = [Tell(text)] if text else []
        return told + self._avoid()

    def _avoid(self) -> list[Decision]:
        avoided = self._failures.avoided()
        if avoided == self._avoided:
            return []
        self._avoided = avoided
        return [Avoid(avoided)]

    def _worker_contributed(self, worker: WorkerId) -> list[Decision]:
        """What follows from a worker's contribution for those that failed."""
        self.machines.contributed()
        if len(self._contributors) < 2:
            self._contributors.add(worker)
        if not self._failures or worker not in self._places:
            return []
        self._failures.contributed(self._places[worker])
        return self._avoid()

    def _pause(self) -> list[Decision]:
        """Lets all workers go. Where everything is at one version, that is kept on disk."""
        self.machines.begin_anew()
        decisions: list[Decision] = []
        if self.policy and self.policy.whole() and self.version and not self._writing:
            self._writing = True
            decisions.append(WriteCheckpoint(self._here()))
        for worker in list(self._heard):
            decisions.append(Dismiss(worker, "the job is paused"))
            # What others would get to do now, they will not do.
            self._worker_lost(worker)
        return decisions

    def _tick(self, missed: float) -> list[Decision]:
        if missed:
            self._heard = {worker: min(self._now, heard + missed) for worker, heard in self._heard.items()}
        decisions: list[Decision] = self._avoid() if self._avoided else []
        for worker, heard in list(self._heard.items()):
            if self._now - heard > self._settings.silence_seconds:
                decisions += [Evict(worker), *self._worker_lost(worker)]
        if self.policy and self.phase is Phase.TRAINING:
            decisions += self.policy.assign()
        if self._initializers and self.phase is Phase.PREPARING:
            decisions += self._assign_initialize()
        return decisions + self._assign_evaluation()

    def _contribution_received(self, event: ContributionReceived) -> list[Decision]:
        if event.worker not in self._heard:
            return [Dropped(event.worker, Drop.STALE_INCARNATION)]
        if self.policy is None or event.worker not in self._prepared:
            return [Dropped(event.worker, Drop.UNKNOWN)]
        version = self.policy.version
        decisions = self._worker_contributed(event.worker) + self.policy.received(event)
        self._add_losses(decisions)
        while self.policy.version > version and not any(isinstance(decision, Finish) for decision in decisions):
            version = self.policy.version
            following = self._checkpoint() + self._advance()
            self._add_losses(following)
            decisions += following
        return decisions + self._assign_evaluation()

    def _add_losses(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, ReportStep) and self.plan:
                begins = decision.step == self.plan.start_of_epoch(decision.step)
                total, samples = (0.0, 0) if begins else self._epoch_loss
                self._epoch_loss = (total + decision.loss * decision.samples, samples + decision.samples)

    def _checkpoint_if_whole(self) -> list[Decision]:
        """A checkpoint now, unless an update is half done: then it follows when the next version is whole."""
        return self._checkpoint() if self.policy and self.policy.whole() else []

    def _checkpoint(self) -> list[Decision]:
        if self._writing or (self._now < self._checkpoint_due and not self._requested):
            return []
        self._writing, self._requested = True, False
        return [WriteCheckpoint(self._here())]

    def _here(self) -> Position:
        applied = tuple(sorted(self.policy.applied)) if self.policy else ()
        return Position(self.version, *self._epoch_loss, applied)

    def _advance(self) -> list[Decision]:
        """What comes after a version is whole: evaluation at the end of an epoch, else the next step."""
        if self.plan is None or self.policy is None:
            return []
        version, plan = self.policy.version, self.plan
        last = version == plan.total_steps
        if plan.validation_samples and (last or plan.ends_epoch(version)):
            return self._evaluate(parameter_service_pb2.SPLIT_VALIDATION, plan.validation_samples)
        return self._after_validation(None)

    def _after_validation(self, validation: job_pb2.Metrics | None) -> list[Decision]:
        if self.plan is None or self.policy is None:
            return []
        version, plan = self.policy.version, self.plan
        decisions: list[Decision] = []
        if plan.ends_epoch(version):
            total, samples = self._epoch_loss
            decisions.append(ReportEpoch(plan.epoch_of(version), version, total / samples, validation))
        if version == plan.total_steps:
            return decisions + self._evaluate(parameter_service_pb2.SPLIT_TRAIN, plan.samples, validation)
        self.phase = Phase.TRAINING
        return decisions + self.policy.begin()

    def _evaluate(self, split: Split, samples: int, validation: job_pb2.Metrics | None = None) -> list[Decision]:
        self.phase = Phase.EVALUATING
        self._evaluation = Evaluation(self.version, split, samples, self._evaluation_paces, validation)
        return self._assign_evaluation()

    def _assign_evaluation(self) -> list[Decision]:
        """Gives blocks to evaluate to the workers that are free for them."""
        if self._evaluation is None or self.policy is None:
            return []
        refreshed, workers = self.policy.refresh(), self.policy.current()
        return refreshed + self._evaluation.assign(workers, self.policy.quick(workers), self._now)

    def _evaluation_received(self, event: EvaluationReceived) -> list[Decision]:
        evaluation = self._evaluation
        if evaluation is None or self.plan is None or not evaluation.received(event, self._now):
            return []
        contributed = self._worker_contributed(event.worker)
        if evaluation.open:
            return contributed + self._assign_evaluation()
        self._evaluation = None
        sums = evaluation.total()
        if not math.isfinite(sums.loss):
            what = "training" if evaluation.split == parameter_service_pb2.SPLIT_TRAIN else "validation"
            return diverged(f"the {what} loss became {sums.loss}", self.version)
        wrong = [name for name, total in zip(self.plan.metrics, sums.metrics, strict=True) if not math.isfinite(total)]
        if wrong:
            return diverged(f"the metric {wrong[0]} became NaN or infinite", self.version)
        metrics = job_pb2.Metrics(loss=sums.loss / evaluation.samples)
        for name, total in zip(self.plan.metrics, sums.metrics, strict=True):
            if name == ACCURACY:
                metrics.accuracy = total / evaluation.samples
            else:
                metrics.values[name] = total / evaluation.samples
        if evaluation.split == parameter_service_pb2.SPLIT_VALIDATION:
            return contributed + self._after_validation(metrics)
        return [Finish(job_pb2.JOB_STATE_SUCCEEDED, "", metrics, evaluation.validation)]


def _words(facts: Facts) -> str:
    kind = f"the metrics {', '.join(facts.metrics)}" if facts.metrics else "no metrics besides the loss"
    samples = f"{facts.train_samples:,} and {facts.validation_samples:,} samples"
    return f"{facts.elements:,} parameters, {samples} for training and validation, {kind}"
