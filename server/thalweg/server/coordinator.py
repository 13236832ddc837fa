"""The state machine of one running job: events in, decisions out.

It is pure: no I/O, no threads, no clock, no randomness. The same events give the same decisions. A thin driver carries them
out (`run.py`). A job goes through three phases:

- *preparing*: the first worker that has the model makes the initial parameters;
- *training*: the synchrony policy decides about steps;
- *evaluating*: at the end of an epoch on the validation set, at the end of the job on the training set too.
"""

import math
from enum import Enum, auto

from thalweg.contract.sums import Sums
from thalweg.server import synchrony
from thalweg.server.messages import (
    Accept,
    AssignEvaluate,
    AssignInitialize,
    CancelRequested,
    ContributionReceived,
    Decision,
    DriverFailed,
    Dropped,
    EvaluationReceived,
    EvaluationTask,
    Event,
    Facts,
    Finish,
    InitialReceived,
    KeepInitial,
    RangeNotFinite,
    ReportEpoch,
    ReportReady,
    ReportStep,
    SendRange,
    Split,
    WorkerFailed,
    WorkerId,
    WorkerJoined,
    WorkerLost,
    WorkerPrepared,
)
from thalweg.server.plan import Plan
from thalweg.server.synchrony.base import Policy
from thalweg.server.synchrony.bulk import not_finite
from thalweg.v1 import job_pb2, parameter_service_pb2

# Evaluation is shared out, and summed up, in blocks of so many samples: a constant, so that metrics are a property of the job.
EVALUATION_BLOCK = 1024


class Phase(Enum):
    """Where a job is."""

    PREPARING = auto()
    TRAINING = auto()
    EVALUATING = auto()
    FINISHED = auto()


class Coordinator:
    """Decides for one job."""

    def __init__(self, spec: job_pb2.JobSpec) -> None:
        self.spec = spec
        self.phase = Phase.PREPARING
        self.plan: Plan | None = None
        self.policy: Policy | None = None
        self.workers: dict[WorkerId, bool] = {}  # whether each has the current parameters
        self._prepared: dict[WorkerId, None] = {}
        self._facts: Facts | None = None
        self._initializer: WorkerId | None = None
        self._initial: set[int] = set()
        self._evaluation: _Evaluation | None = None
        self._epoch_loss = (0.0, 0)

    @property
    def version(self) -> int:
        """The number of updates applied."""
        return self.policy.version if self.policy else 0

    def handle(self, event: Event) -> list[Decision]:
        """The decisions that follow from an event."""
        if self.phase is Phase.FINISHED:
            return []
        decisions = self._decide(event)
        if any(isinstance(decision, Finish) for decision in decisions):
            self.phase = Phase.FINISHED
        return decisions

    def _decide(self, event: Event) -> list[Decision]:
        match event:
            case WorkerJoined(worker):
                self.workers[worker] = False
                return []
            case WorkerPrepared(worker, facts):
                return self._worker_prepared(worker, facts)
            case WorkerLost(worker):
                return self._worker_lost(worker)
            case WorkerFailed(_, problem):
                return [Finish(job_pb2.JOB_STATE_FAILED, problem)]
            case InitialReceived():
                return self._initial_received(event)
            case ContributionReceived():
                return self._contribution_received(event)
            case EvaluationReceived():
                return self._evaluation_received(event)
            case RangeNotFinite(version):
                return [Finish(job_pb2.JOB_STATE_FAILED, not_finite("the update made NaN or infinite parameters", version))]
            case DriverFailed(problem):
                return [Finish(job_pb2.JOB_STATE_FAILED, problem)]
            case CancelRequested():
                return [Finish(job_pb2.JOB_STATE_CANCELLED)]

    @property
    def _ready(self) -> list[WorkerId]:
        return [worker for worker, has_parameters in self.workers.items() if has_parameters]

    def _worker_prepared(self, worker: WorkerId, facts: Facts) -> list[Decision]:
        if worker not in self.workers:
            return []
        if self._facts is None:
            if facts.elements == 0:
                problem = "model.layers: the model has no parameters to train; give it a dense layer"
                return [Finish(job_pb2.JOB_STATE_FAILED, problem)]
            self._facts = facts
            self.plan = Plan(self.spec, facts)
        elif facts != self._facts:
            problem = f"workers disagree about the model or the data: {self._facts} and {facts}. Do all run the same release?"
            return [Finish(job_pb2.JOB_STATE_FAILED, problem)]
        self._prepared[worker] = None
        accept: list[Decision] = [Accept(worker)]
        return accept + (self._assign_initialize() if self.phase is Phase.PREPARING else self._give_parameters(worker))

    def _assign_initialize(self) -> list[Decision]:
        if self.plan is None or self._initializer is not None or not self._prepared:
            return []
        self._initializer = next(iter(self._prepared))
        return [AssignInitialize(self._initializer)]

    def _give_parameters(self, worker: WorkerId) -> list[Decision]:
        if self.plan is None or self.policy is None:
            return []
        to = (worker,)
        decisions: list[Decision] = [SendRange(to, self.version, chunk) for chunk in range(self.plan.chunks)]
        decisions += [SendRange(to, self.version + 1, chunk) for chunk in self.policy.applied_chunks()]
        self.workers[worker] = True
        decisions += self.policy.joined(worker)
        if self._evaluation:
            decisions += self._evaluation.assign(self._ready)
        return decisions

    def _worker_lost(self, worker: WorkerId) -> list[Decision]:
        self.workers.pop(worker, None)
        self._prepared.pop(worker, None)
        if self.phase is Phase.PREPARING:
            if self._initializer == worker:
                self._initializer = None
                return self._assign_initialize()
            return []
        decisions: list[Decision] = self.policy.lost(worker) if self.policy else []
        if self._evaluation:
            self._evaluation.lost(worker)
            decisions += self._evaluation.assign(self._ready)
        return decisions

    def _initial_received(self, event: InitialReceived) -> list[Decision]:
        if self.plan is None or self.phase is not Phase.PREPARING or event.chunk in self._initial:
            return [Dropped(event.worker, "duplicate")]
        self._initial.add(event.chunk)
        decisions: list[Decision] = [KeepInitial(event.chunk, event.payload)]
        if len(self._initial) < self.plan.chunks:
            return decisions
        self.policy = synchrony.make(self.spec.training.synchrony, self.plan)
        self.phase = Phase.TRAINING
        decisions.append(ReportReady())
        for worker in self._prepared:
            decisions += self._give_parameters(worker)
        return decisions + self._advance()

    def _contribution_received(self, event: ContributionReceived) -> list[Decision]:
        if self.policy is None or self.plan is None:
            return [Dropped(event.worker, "unknown task")]
        version = self.policy.version
        decisions = self.policy.received(event)
        for decision in decisions:
            if isinstance(decision, ReportStep):
                total, samples = self._epoch_loss
                self._epoch_loss = (total + decision.loss * decision.samples, samples + decision.samples)
        if self.policy.version > version:
            decisions += self._advance()
        return decisions

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
            self._epoch_loss = (0.0, 0)
            decisions.append(ReportEpoch(plan.epoch_of(version), version, total / samples, validation))
        if version == plan.total_steps:
            return decisions + self._evaluate(parameter_service_pb2.SPLIT_TRAIN, plan.samples, validation)
        self.phase = Phase.TRAINING
        return decisions + self.policy.begin(self._ready)

    def _evaluate(self, split: Split, samples: int, validation: job_pb2.Metrics | None = None) -> list[Decision]:
        self.phase = Phase.EVALUATING
        self._evaluation = _Evaluation(self.version, split, samples, validation)
        return self._evaluation.assign(self._ready)

    def _evaluation_received(self, event: EvaluationReceived) -> list[Decision]:
        evaluation = self._evaluation
        if evaluation is None or self.plan is None or not evaluation.received(event):
            return [Dropped(event.worker, "duplicate")]
        if evaluation.open:
            return []
        self._evaluation = None
        sums = evaluation.total()
        if not math.isfinite(sums.loss):
            what = "training" if evaluation.split == parameter_service_pb2.SPLIT_TRAIN else "validation"
            problem = not_finite(f"the {what} loss became {sums.loss}", self.version)
            return [Finish(job_pb2.JOB_STATE_FAILED, problem)]
        metrics = job_pb2.Metrics(loss=sums.loss / evaluation.samples)
        if self.plan.classifier:
            metrics.accuracy = sums.correct / evaluation.samples
        if evaluation.split == parameter_service_pb2.SPLIT_VALIDATION:
            return self._after_validation(metrics)
        return [Finish(job_pb2.JOB_STATE_SUCCEEDED, "", metrics, evaluation.validation)]


class _Evaluation:
    """The metrics over one set of samples at one version, block by block."""

    def __init__(self, version: int, split: Split, samples: int, validation: job_pb2.Metrics | None) -> None:
        self.split = split
        self.samples = samples
        self.validation = validation
        self.open: dict[int, EvaluationTask] = {
            first: EvaluationTask(version, split, first, min(first + EVALUATION_BLOCK, samples))
            for first in range(0, samples, EVALUATION_BLOCK)
        }
        self._owners: dict[EvaluationTask, WorkerId] = {}
        self._sums: dict[int, Sums] = {}

    def assign(self, workers: list[WorkerId]) -> list[Decision]:
        """Gives the blocks that nobody has to the workers that have the fewest."""
        load = dict.fromkeys(workers, 0)
        for task, owner in self._owners.items():
            if task.first in self.open and owner in load:
                load[owner] += 1
        decisions: list[Decision] = []
        for task in self.open.values():
            if load and task not in self._owners:
                least = min(load, key=load.__getitem__)
                load[least] += 1
                self._owners[task] = least
                decisions.append(AssignEvaluate(least, task))
        return decisions

    def lost(self, worker: WorkerId) -> None:
        """Nobody has the worker's blocks any more."""
        self._owners = {task: owner for task, owner in self._owners.items() if owner != worker}

    def received(self, event: EvaluationReceived) -> bool:
        """Takes an answer. False if it is none that is waited for."""
        task = self.open.get(event.first)
        if task is None or (task.version, task.split) != (event.version, event.split):
            return False
        self._sums[event.first] = event.sums
        del self.open[event.first]
        return True

    def total(self) -> Sums:
        """The sums over all blocks, added in their order."""
        total = Sums()
        for first in sorted(self._sums):
            total += self._sums[first]
        return total
