"""What a running job tells about itself: its state, its progress, its events."""

import time
from collections import deque

from thalweg.server.journal import Journal
from thalweg.server.plan import Plan
from thalweg.v1 import job_pb2, training_service_pb2

# The status of a job without workers, by which it is known.
NO_WORKERS = "waiting for workers"
# How often steps are told: often enough for a progress bar, seldom enough to cost nothing.
_TELL_SECONDS = 0.2
# Over how many seconds the rate of samples is measured.
_RATE_SECONDS = 10.0


class Telemetry:
    """Keeps a job's public face and records its events."""

    def __init__(self, job: job_pb2.Job, journal: Journal) -> None:
        self.job = job
        self._journal = journal
        self._losses: list[float] = []
        self._first_step = 0
        self._told = 0.0
        self._began = 0.0
        self._training_began = 0.0
        self._samples = 0
        self._marks: deque[tuple[float, int]] = deque()
        self._base_rate = _base_learning_rate(job.spec.optimizer)

    def enter(self, state: job_pb2.JobState.ValueType, status: str) -> None:
        """Records that the job enters a state."""
        self.job.state = state
        self.job.status = status
        if state == job_pb2.JOB_STATE_RUNNING and not self.job.HasField("start_time"):
            self.job.start_time.GetCurrentTime()
            self._began = time.monotonic()
        event = training_service_pb2.Event()
        event.state_changed.job.CopyFrom(self.job)
        self._journal.record(self.job.id, event)

    def notice(self, text: str) -> None:
        """Records something worth knowing."""
        self._journal.record(self.job.id, training_service_pb2.Event(notice=training_service_pb2.Notice(text=text)))

    def workers_changed(self, names: list[str]) -> None:
        """Records who works for the job."""
        self.job.progress.workers = len(names)
        if names and self.job.state == job_pb2.JOB_STATE_QUEUED:
            self.enter(job_pb2.JOB_STATE_RUNNING, "preparing the data and the model")
        elif not names:
            self.job.status = NO_WORKERS
        elif self.job.progress.total_steps:
            self.job.status = "training"
        change = training_service_pb2.WorkersChanged(workers=len(names), names=names)
        self._journal.record(self.job.id, training_service_pb2.Event(workers_changed=change))

    def planned(self, plan: Plan, loss_seconds: float) -> None:
        """Takes note of the job's course, and tells what numerical differentiation will cost."""
        self.job.progress.total_steps = plan.total_steps
        self.job.progress.total_epochs = plan.epochs
        if plan.numerical and plan.total_steps:
            self.notice(_cost(plan, loss_seconds))

    def ready(self) -> None:
        """Steps begin."""
        self.job.status = "training"
        self._training_began = time.monotonic()
        self._marks.append((self._training_began, 0))

    def step(self, step: int, loss: float, samples: int, schedule_factor: float) -> None:
        """Takes note of a step, and tells of it now or with the next ones."""
        if not self._losses:
            self._first_step = step
        self._losses.append(loss)
        self._samples += samples
        progress = self.job.progress
        progress.step = step + 1
        progress.loss = loss
        progress.learning_rate = self._base_rate * schedule_factor
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Tells of the steps taken since the last time."""
        if not self._losses:
            return
        now = self._told = time.monotonic()
        self._marks.append((now, self._samples))
        while len(self._marks) > 2 and now - self._marks[0][0] > _RATE_SECONDS:
            self._marks.popleft()
        (then, before), elapsed = self._marks[0], now - self._marks[0][0]
        self.job.progress.samples_per_second = (self._samples - before) / elapsed if elapsed > 0 and then <= now else 0.0
        steps = training_service_pb2.StepsTaken(first_step=self._first_step, losses=self._losses, progress=self.job.progress)
        self._losses = []
        self._journal.record(self.job.id, training_service_pb2.Event(steps_taken=steps))

    def epoch(self, epoch: int, step: int, train_loss: float, validation: job_pb2.Metrics | None) -> None:
        """Records the end of an epoch."""
        self.job.progress.epoch = epoch
        if validation:
            self.job.progress.validation.CopyFrom(validation)
        ended = training_service_pb2.EpochEnded(epoch=epoch, step=step, train_loss=train_loss, validation=validation)
        self._journal.record(self.job.id, training_service_pb2.Event(epoch_ended=ended))

    def result(self, plan: Plan, version: int, sha256: str) -> job_pb2.Result:
        """What comes of the job, without its metrics."""
        now = time.monotonic()
        training = now - self._training_began
        return job_pb2.Result(
            steps=version,
            epochs=plan.epoch_of(version),
            weights_sha256=sha256,
            samples_per_second=self._samples / training if training > 0 else 0.0,
            seconds=now - self._began,
        )


def _base_learning_rate(optimizer: job_pb2.Optimizer) -> float:
    return float(getattr(optimizer, optimizer.WhichOneof("kind") or "sgd").learning_rate)


def _cost(plan: Plan, loss_seconds: float) -> str:
    per_parameter = 1 if plan.spec.training.gradient == "numerical_forward" else 2
    evaluations = per_parameter * plan.elements
    workers = plan.spec.training.workers
    step = evaluations * loss_seconds / workers
    return (
        f"numerical differentiation: {plan.elements:,} parameters × {per_parameter} evaluations of the loss = "
        f"{evaluations:,} a step, about {duration(step)} with {workers} worker{'s' if workers > 1 else ''}; "
        f"{plan.total_steps:,} steps, about {duration(step * plan.total_steps)}"
    )


def duration(seconds: float) -> str:
    """A time span for people."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.0f} h"
