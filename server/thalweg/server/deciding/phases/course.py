"""The phases in which a job has parameters: steps, evaluations, and the checkpoints in between."""

import math
from collections.abc import Iterable, Mapping

from thalweg.contract.sums import ACCURACY
from thalweg.server.deciding import synchrony
from thalweg.server.deciding.decisions import Decision, Finish, ReportEpoch, ReportStep, WriteCheckpoint
from thalweg.server.deciding.events import ContributionReceived, EvaluationReceived
from thalweg.server.deciding.phases.evaluation import Evaluation
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.synchrony.diverged import diverged
from thalweg.server.deciding.values import Position, Split, WorkerId
from thalweg.server.deciding.workers.assignments import no_paces
from thalweg.server.settings import RunSettings
from thalweg.v1 import job_pb2, parameter_service_pb2

# Writing checkpoints takes at most this share of the time.
_CHECKPOINT_SHARE = 0.1
_NAMES = {
    parameter_service_pb2.SPLIT_TRAIN: "training",
    parameter_service_pb2.SPLIT_VALIDATION: "validation",
    parameter_service_pb2.SPLIT_TEST: "test",
}


class Course:
    """The course of one job from a position on: its plan, and the synchrony policy that decides about steps.

    `set_time` is called before anything else happens at a time.
    """

    def __init__(self, plan: Plan, settings: RunSettings, position: Position, now: float) -> None:
        self.plan = plan
        self._settings = settings
        self.policy = synchrony.make(plan.spec.training.synchrony, plan, position.version, position.applied)
        self._evaluation: Evaluation | None = None
        self._evaluation_paces = no_paces()
        self._epoch_loss = (position.epoch_loss, position.epoch_samples)
        self._checkpoint_due = now + settings.checkpoint_seconds
        self._writing = False
        self._requested = False
        self.set_time(now)

    @property
    def version(self) -> int:
        """The number of updates applied."""
        return self.policy.version

    @property
    def evaluating(self) -> bool:
        """Whether metrics are computed, and no steps are taken."""
        return self._evaluation is not None

    @property
    def position(self) -> Position | None:
        """Where training is; None while parameters and optimizer state are between two versions."""
        return self._here() if self.policy.whole() else None

    def set_time(self, now: float) -> None:
        """What follows happens at this time, in seconds."""
        self._now = now
        self.policy.at(now)

    def begin(self, workers: Iterable[WorkerId]) -> list[Decision]:
        """Training begins, or goes on, with the workers that are prepared."""
        decisions: list[Decision] = []
        for worker in workers:
            decisions += self.policy.joined(worker)
        return decisions + self._advance()

    def joined(self, worker: WorkerId) -> list[Decision]:
        """A worker is prepared."""
        return self.policy.joined(worker) + self._assign_evaluation()

    def retire(self, worker: WorkerId) -> None:
        """A prepared worker finishes what it has, and gets nothing more."""
        self.policy.retire(worker)

    def busy(self, worker: WorkerId) -> bool:
        """Whether a worker has something to finish."""
        return self.policy.busy(worker) or (self._evaluation is not None and self._evaluation.busy(worker))

    def lost(self, worker: WorkerId) -> list[Decision]:
        """A worker that was prepared is gone."""
        decisions = self.policy.lost(worker)
        if self._evaluation:
            self._evaluation.remove(worker)
        return decisions + self._assign_evaluation()

    def tick(self) -> list[Decision]:
        """Time has passed: what takes too long is given to others too."""
        return self._assign_evaluation() if self._evaluation else self.policy.assign()

    def received(self, event: ContributionReceived) -> list[Decision]:
        """A contribution of a prepared worker arrived."""
        version = self.policy.version
        decisions = self.policy.received(event)
        self._add_losses(decisions)
        while self.policy.version > version and not any(isinstance(decision, Finish) for decision in decisions):
            version = self.policy.version
            following = self._checkpoint() + self._advance()
            self._add_losses(following)
            decisions += following
        return decisions + self._assign_evaluation()

    def evaluated(self, event: EvaluationReceived) -> list[Decision] | None:
        """Metrics of some samples arrived. None if nobody waits for them."""
        evaluation = self._evaluation
        if evaluation is None or not evaluation.received(event, self._now):
            return None
        if evaluation.open:
            return self._assign_evaluation()
        self._evaluation = None
        sums = evaluation.total()
        if not math.isfinite(sums.loss):
            what = _NAMES[evaluation.split]
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
        known = {**evaluation.before, evaluation.split: metrics}
        if evaluation.split == parameter_service_pb2.SPLIT_VALIDATION:
            return self._after_validation(known)
        if evaluation.split == parameter_service_pb2.SPLIT_TRAIN and self.plan.test_samples:
            return self._evaluate(parameter_service_pb2.SPLIT_TEST, self.plan.test_samples, known)
        return [Finish(job_pb2.JOB_STATE_SUCCEEDED, "", known)]

    def pause(self) -> list[Decision]:
        """All workers are about to go. Where everything is at one version, that is kept on disk."""
        if not self.policy.whole() or not self.version or self._writing:
            return []
        self._writing = True
        return [WriteCheckpoint(self._here())]

    def checkpoint_requested(self) -> list[Decision]:
        """A checkpoint is wanted as soon as possible."""
        self._requested = True
        return self._checkpoint_if_whole()

    def checkpoint_done(self, seconds: float) -> list[Decision]:
        """The writing of a checkpoint has ended, after some seconds."""
        self._writing = False
        self._checkpoint_due = self._now + max(self._settings.checkpoint_seconds, seconds / _CHECKPOINT_SHARE)
        return self._checkpoint_if_whole() if self._requested else []

    def _checkpoint_if_whole(self) -> list[Decision]:
        """A checkpoint now, unless an update is half done: then it follows when the next version is whole."""
        return self._checkpoint() if self.policy.whole() else []

    def _checkpoint(self) -> list[Decision]:
        if self._writing or (self._now < self._checkpoint_due and not self._requested):
            return []
        self._writing, self._requested = True, False
        return [WriteCheckpoint(self._here())]

    def _here(self) -> Position:
        return Position(self.version, *self._epoch_loss, tuple(sorted(self.policy.applied)))

    def _add_losses(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, ReportStep):
                begins = decision.step == self.plan.start_of_epoch(decision.step)
                total, samples = (0.0, 0) if begins else self._epoch_loss
                self._epoch_loss = (total + decision.loss * decision.samples, samples + decision.samples)

    def _advance(self) -> list[Decision]:
        """What comes after a version is whole: evaluation at the end of an epoch, else the next step."""
        version, plan = self.version, self.plan
        last = version == plan.total_steps
        if plan.validation_samples and (last or plan.ends_epoch(version)):
            return self._evaluate(parameter_service_pb2.SPLIT_VALIDATION, plan.validation_samples, {})
        return self._after_validation({})

    def _after_validation(self, known: Mapping[Split, job_pb2.Metrics]) -> list[Decision]:
        version, plan = self.version, self.plan
        decisions: list[Decision] = []
        if plan.ends_epoch(version):
            total, samples = self._epoch_loss
            validation = known.get(parameter_service_pb2.SPLIT_VALIDATION)
            decisions.append(ReportEpoch(plan.epoch_of(version), version, total / samples, validation))
        if version == plan.total_steps:
            return decisions + self._evaluate(parameter_service_pb2.SPLIT_TRAIN, plan.samples, known)
        return decisions + self.policy.begin()

    def _evaluate(self, split: Split, samples: int, before: Mapping[Split, job_pb2.Metrics]) -> list[Decision]:
        self._evaluation = Evaluation(self.version, split, samples, self._evaluation_paces, before)
        return self._assign_evaluation()

    def _assign_evaluation(self) -> list[Decision]:
        """Gives blocks to evaluate to the workers that are free for them, if there are any."""
        if self._evaluation is None:
            return []
        refreshed, workers = self.policy.refresh(), self.policy.current()
        return refreshed + self._evaluation.assign(workers, self.policy.quick(workers), self._now)
