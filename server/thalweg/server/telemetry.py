"""What a running job reports: its state, its progress, its events."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from thalweg.contract.states import NO_WORKERS
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.values import Drop
from thalweg.server.tally import Durations, Tally
from thalweg.v1 import job_pb2, training_service_pb2

_log = logging.getLogger(__name__)
# Seconds from any time on.
Clock: TypeAlias = Callable[[], float]
# That of a job whose arrays do not fit beside those of the jobs that run, and of one that has just got workers, or memory.
NO_MEMORY = "waiting for memory on the server"
PREPARING = "preparing the data and the model"
# How often steps are reported: often enough for a progress bar, rarely enough to cost nothing.
_TELL_SECONDS = 0.2
# The longer a job has run, the more seldom: its events are kept as long as the job.
_TELL_SHARE, _MAX_TELL_SECONDS = 0.001, 2.0
# Up to the first number, workers are listed whenever one joins or leaves; above the second, never: an event fits a message.
_FEW, _MAX_LISTED = 16, 1000
# Over how many seconds the rate of samples is measured.
_RATE_SECONDS = 10.0


# What is counted in the progress of a job, and can be added up over jobs.
_COUNTED = frozenset(
    {
        *("applied", "duplicate", "late", "stale_incarnation", "unknown", "reissued_tasks", "lost_workers", "lost_residuals"),
        *("gradient_bytes", "parameter_bytes", "written", "failed"),
    }
)


class Recorder(Protocol):
    """What takes events down."""

    def record(self, job_id: str, event: training_service_pb2.Event) -> None:
        """Takes an event, numbers it and dates it."""
        ...


class _NoRecorder:
    """Takes the place of the journal when a run has been given up."""

    def record(self, job_id: str, event: training_service_pb2.Event) -> None:
        pass


@dataclass(frozen=True)
class Recorded:
    """What earlier runs of a job have reported: steps and epochs, each of which is reported once.

    `samples` and `seconds` are those of the steps that this run does not repeat.
    """

    steps: int = 0
    epochs: int = 0
    samples: int = 0
    seconds: float = 0.0


NOTHING_RECORDED = Recorded()


def steps_end(taken: training_service_pb2.StepsTaken) -> int:
    """The step after the last one that an event reports."""
    return taken.first_step + (taken.steps or len(taken.losses))


def told(events: Iterable[training_service_pb2.Event]) -> tuple[int, int]:
    """How many steps, and how many epochs, events tell of, which come in falling order."""
    steps = epochs = 0
    for event in events:
        if event.HasField("steps_taken") and not steps:
            steps = steps_end(event.steps_taken)
        elif event.HasField("epoch_ended") and not epochs:
            epochs = event.epoch_ended.epoch
        if steps and epochs:
            break
    return steps, epochs


class Telemetry:
    """Keeps a job's public face and records its events."""

    def __init__(self, job: job_pb2.Job, journal: Recorder, clock: Clock, recorded: Recorded) -> None:
        self.job = job
        self.contributions = job.progress.contributions
        self.exchange = job.progress.exchange
        self._journal: Recorder = journal
        self._clock = clock
        self._recorded = recorded
        self._unlisted = 0
        self._losses: list[float] = []
        self._first_step = 0
        self._told = 0.0
        self._began: float | None = None
        self._training_began: float | None = None
        self._samples = 0
        self._durations = Durations()
        # When the step began that is being taken.
        self._step_began = clock()
        self._marks: deque[tuple[float, int]] = deque()
        self._base_rate = _base_learning_rate(job.spec.optimizer)

    def enter(self, state: job_pb2.JobState.ValueType, status: str) -> None:
        """Records that the job enters a state."""
        self.job.state = state
        self.job.status = status
        if state == job_pb2.JOB_STATE_RUNNING:
            if self._began is None:
                _log.info("job %s: began", self.job.id)
                self._began = self._clock()
            if not self.job.HasField("start_time"):
                self.job.start_time.GetCurrentTime()
        event = training_service_pb2.Event()
        event.state_changed.job.CopyFrom(self.job)
        self._journal.record(self.job.id, event)

    def close(self) -> None:
        """Records nothing from now on: the job's events are its next run's."""
        self._journal = _NoRecorder()

    def notice(self, text: str) -> None:
        """Records something worth knowing."""
        self._journal.record(self.job.id, training_service_pb2.Event(notice=training_service_pb2.Notice(text=text)))

    def workers_changed(self, names: Collection[str], joined: Iterable[str] = (), left: Iterable[str] = ()) -> None:
        """Records who came to work for the job, or went. `names` are those of all who are there now."""
        if names and not self.job.progress.workers:
            # Time without workers belongs to no step.
            self._step_began = self._clock()
        workers = self.job.progress.workers = len(names)
        if not names:
            self.job.waiting_for = job_pb2.WAITING_FOR_WORKERS
        elif self.job.waiting_for != job_pb2.WAITING_FOR_MEMORY:
            self.job.ClearField("waiting_for")
        if names and self.job.state == job_pb2.JOB_STATE_QUEUED:
            self.enter(job_pb2.JOB_STATE_RUNNING, PREPARING)
        elif not names:
            self.job.status = NO_WORKERS
        elif self.job.progress.total_steps:
            self.job.status = "training"
        change = training_service_pb2.WorkersChanged(workers=workers, joined=joined, left=left)
        self._unlisted += 1
        # In all, not more names are written so than there were changes, but for a few.
        if workers <= max(_FEW, min(self._unlisted, _MAX_LISTED)):
            change.names.extend(names)
            self._unlisted = 0
        self._journal.record(self.job.id, training_service_pb2.Event(workers_changed=change))

    def prepares(self, worker: str, doing: str) -> None:
        """A worker says what it does before steps begin, or that it does nothing that takes long."""
        said = f"{PREPARING}: worker {worker} is "
        if doing and self.job.status.startswith(PREPARING):
            self.job.status = said + doing
        elif not doing and self.job.status.startswith(said):
            self.job.status = PREPARING

    def planned(self, plan: Plan, loss_seconds: float, notice: str) -> None:
        """Records the length of the job, and reports what numerical differentiation will cost, and what a worker notices."""
        self.job.progress.total_steps = plan.total_steps
        self.job.progress.total_epochs = plan.epochs
        if notice and not self._recorded.steps:
            self.notice(notice)
        if plan.numerical and plan.total_steps and not self._recorded.steps:
            self.notice(_cost(plan, loss_seconds))

    def ready(self) -> None:
        """Steps begin, or go on."""
        self.job.status = "training"
        self._training_began = self._step_began = self._clock()
        self._marks.append((self._training_began, 0))

    def step(self, step: int, loss: float, samples: int, schedule_factor: float, staleness: int) -> None:
        """Records a step, and reports it now or with the next ones, unless an earlier run has reported it."""
        now = self._clock()
        self._durations.observe(now - self._step_began)
        self._step_began = now
        self._samples += samples
        progress = self.job.progress
        progress.step = step + 1
        self.contributions.greatest_staleness = max(self.contributions.greatest_staleness, staleness)
        if step >= self._recorded.steps:
            if not self._losses:
                self._first_step = step
            self._losses.append(loss)
        progress.loss = loss
        progress.learning_rate = self._base_rate * schedule_factor
        if now - self._told >= min(max(_TELL_SECONDS, self.seconds * _TELL_SHARE), _MAX_TELL_SECONDS):
            self.flush()

    def dropped(self, reason: Drop) -> None:
        """Counts a contribution that is not applied."""
        match reason:
            case Drop.DUPLICATE:
                self.contributions.duplicate += 1
            case Drop.LATE:
                self.contributions.late += 1
            case Drop.STALE_INCARNATION:
                self.contributions.stale_incarnation += 1
            case Drop.UNKNOWN:
                self.contributions.unknown += 1

    def flush(self) -> None:
        """Tells of the steps taken since the last time."""
        if not self._losses:
            return
        now = self._told = self._clock()
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
        # Nor does the evaluation before it.
        self._step_began = self._clock()
        self.job.progress.epoch = epoch
        if validation:
            self.job.progress.validation.CopyFrom(validation)
        if epoch <= self._recorded.epochs:
            return
        ended = training_service_pb2.EpochEnded(epoch=epoch, step=step, train_loss=train_loss, validation=validation)
        self._journal.record(self.job.id, training_service_pb2.Event(epoch_ended=ended))

    def result(self, version: int, epochs: int) -> job_pb2.Result:
        """What comes of the job, without its metrics and its parameters' SHA-256."""
        training = self._since(self._training_began)
        return job_pb2.Result(
            steps=version,
            epochs=epochs,
            samples_per_second=self._samples / training if training > 0 else 0.0,
            seconds=self.seconds,
        )

    @property
    def tally(self) -> Tally:
        """What has happened in this run, steps included that an earlier run had taken as well."""
        progress = self.job.progress
        counts = Counter({"samples": self._samples})
        for message in (progress.contributions, progress.exchange, progress.checkpoints):
            counts.update({name.name: value for name, value in message.ListFields() if name.name in _COUNTED})
        return Tally(self._durations, counts)

    @property
    def steps(self) -> int:
        """How many steps were taken in this run."""
        return sum(self._durations.counts)

    @property
    def seconds_per_step(self) -> float:
        """The mean time from one step to the next in this run, without evaluations; 0 before the first step."""
        return self._durations.seconds / self.steps if self.steps else 0.0

    @property
    def samples(self) -> int:
        """How many samples were differentiated for the steps so far."""
        return self._recorded.samples + self._samples

    @property
    def seconds(self) -> float:
        """How long the job has run, without the times between its runs."""
        return self._recorded.seconds + self._since(self._began)

    def _since(self, time: float | None) -> float:
        return 0.0 if time is None else self._clock() - time

    def checkpoint_written(self, version: int, size: int, seconds: float) -> None:
        """Records that a checkpoint is on disk."""
        self.job.progress.checkpoints.written += 1
        self.job.progress.checkpoints.step = version
        written = training_service_pb2.CheckpointWritten(version=version, bytes=size, seconds=seconds)
        self._journal.record(self.job.id, training_service_pb2.Event(checkpoint_written=written))

    def checkpoint_failed(self, version: int, problem: str) -> None:
        """Records that a checkpoint could not be written."""
        self.job.progress.checkpoints.failed += 1
        failed = training_service_pb2.CheckpointFailed(version=version, problem=problem)
        self._journal.record(self.job.id, training_service_pb2.Event(checkpoint_failed=failed))


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
