"""A job's events, progress and result, as plain typed values."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, TypeVar

from thalweg.contract import layout as layouts
from thalweg.contract import states, strides
from thalweg.contract.layout import Slab
from thalweg.contract.states import state_name, waiting_name
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

# The names of the final states of a job.
ENDED = frozenset(map(state_name, states.ENDED))


@dataclass(frozen=True)
class Metrics:
    """Metrics over a set of samples. `accuracy`, from 0 to 1, is None for a model that is not a classifier.

    `values` has the mean of each of the job's other metrics, by its name.
    """

    loss: float
    accuracy: float | None
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Contributions:
    """What was done with contributions, counted in chunks, since the job began or was last resumed.

    `applied` became part of a step, each exactly once. The others were dropped: `duplicate` had been received before, `late` were
    for a step that had been taken, `stale_incarnation` came from a worker that had been given up, `unknown` answered no task.
    `reissued_tasks` were given to a second worker because the first one took too long. `greatest_staleness` is the largest
    number of steps by which a contribution was late when it was applied. `lost_residuals` were applied without the complete
    residual of a codec with error feedback, since the microbatch had been another worker's before.
    """

    applied: int = 0
    duplicate: int = 0
    late: int = 0
    stale_incarnation: int = 0
    unknown: int = 0
    reissued_tasks: int = 0
    lost_workers: int = 0
    greatest_staleness: int = 0
    lost_residuals: int = 0


@dataclass(frozen=True)
class Checkpoints:
    """The numbers of checkpoints that were written and that failed, since the job began or was last resumed.

    `step` is the step of the last checkpoint.
    """

    written: int = 0
    failed: int = 0
    step: int = 0


@dataclass(frozen=True)
class Exchange:
    """The bytes of gradients that workers sent, and of parameters that the server sent, since the job began or was last resumed.

    They are counted as the job's codec encodes them. Data in memory that workers share with the server is not sent.
    """

    gradient_bytes: int = 0
    parameter_bytes: int = 0


@dataclass(frozen=True)
class Progress:
    """A job's progress. `total_steps` is 0 until the data is known, `loss` None before the first step.

    `machine_kinds` is the number of kinds of machines on which workers computed, 0 until the first one is ready. With more than
    one, the bits of the result depend on which worker computed what.
    """

    step: int
    total_steps: int
    epoch: int
    total_epochs: int
    loss: float | None
    learning_rate: float | None
    validation: Metrics | None
    samples_per_second: float
    workers: int
    contributions: Contributions = Contributions()
    checkpoints: Checkpoints = Checkpoints()
    exchange: Exchange = Exchange()
    machine_kinds: int = 0


@dataclass(frozen=True)
class Result:
    """The result of a job that has ended. Metrics are None if the job did not measure them.

    `weights_sha256` is the SHA-256 of the parameters' bytes, empty if the job ended before there were any. `machine_kinds` is as
    in `Progress`.
    """

    job: str
    state: str
    steps: int
    epochs: int
    train: Metrics | None
    validation: Metrics | None
    weights_sha256: str
    samples_per_second: float
    seconds: float
    machine_kinds: int = 0
    test: Metrics | None = None


@dataclass(frozen=True)
class _Recorded:
    """The fields of all events: their number, counted from 1, and their time."""

    sequence: int
    time: datetime


@dataclass(frozen=True)
class StateChanged(_Recorded):
    """The job entered a state. `status` says what it does or waits for, `error` why it failed.

    `waiting_for` names for programs what a job without workers waits for: `fleet`, `slots`, `place`, as in `thalweg jobs --json`.
    """

    state: str
    status: str
    error: str
    waiting_for: str = ""


@dataclass(frozen=True)
class StepsTaken(_Recorded):
    """Steps were taken: `steps` of them, from `first_step` on. `losses` has one for each, on its minibatch before its update.

    Older events of long jobs are merged. Where `stride` is more than 1, each of `losses` is the mean over the steps from one
    multiple of `stride` to before the next, the first and the last over those of them that belong to the event: see `spans`.
    """

    first_step: int
    losses: tuple[float, ...]
    progress: Progress
    stride: int = 1
    steps: int = -1

    def __post_init__(self) -> None:
        if self.steps < 0:
            object.__setattr__(self, "steps", len(self.losses))

    def spans(self) -> list[range]:
        """For each of `losses`, its steps."""
        starts, counts = strides.spans(self.first_step, self.steps, self.stride)
        return [range(start, start + count) for start, count in zip(starts.tolist(), counts.tolist(), strict=True)]


@dataclass(frozen=True)
class EpochEnded(_Recorded):
    """An epoch ended. `train_loss` is the mean over its minibatches, `step` the steps taken so far.

    For a job with more than 20,000 epochs, the server keeps every second, fourth and so on of the older ones.
    """

    epoch: int
    step: int
    train_loss: float
    validation: Metrics | None


@dataclass(frozen=True)
class WorkersChanged(_Recorded):
    """The number of connected workers changed. Names say where workers run: `joined` the new ones, `left` those that are gone.

    `names` are all of them, if there are few, and occasionally if there are more; otherwise it is empty.
    """

    workers: int
    names: tuple[str, ...]
    joined: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class Notice(_Recorded):
    """A notice, in words."""

    text: str


@dataclass(frozen=True)
class CheckpointWritten(_Recorded):
    """A checkpoint is on disk. `version` is the number of updates before it; it has `bytes`, and took `seconds` to write."""

    version: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class CheckpointFailed(_Recorded):
    """A checkpoint could not be written; training continues. `version` is the number of updates before it."""

    version: int
    problem: str


Event = StateChanged | StepsTaken | EpochEnded | WorkersChanged | Notice | CheckpointWritten | CheckpointFailed
# Of counters.
_C = TypeVar("_C", Contributions, Checkpoints, Exchange)


@dataclass(frozen=True)
class StoryEntry:
    """An event that a server recorded for a job, or a decision about it.

    `source` is "lifecycle", which starts and ends the job's runs, or "coordinator", which leads the training. Decisions are
    indented in `text`, and follow their event.
    """

    time: datetime
    source: str
    text: str


@dataclass(frozen=True)
class Trajectory:
    """The path of training: the parameters at some versions.

    `versions` rise; `slabs` has the shape (versions, elements) and the layout's dtype.
    """

    layout: job_pb2.Layout
    versions: tuple[int, ...]
    slabs: Slab

    def parameters(self, index: int) -> dict[str, Slab]:
        """The tensors at `versions[index]` by name: views, not copies."""
        return layouts.views(self.layout, self.slabs[index])


def metrics(message: Any, field: str) -> Metrics | None:
    """The metrics in a field of a message, None if it is absent."""
    if not message.HasField(field):
        return None
    found: job_pb2.Metrics = getattr(message, field)
    return Metrics(found.loss, found.accuracy if found.HasField("accuracy") else None, dict(found.values))


def _counted(kind: type[_C], message: Any) -> _C:
    """Counters from the message that has them under the same names."""
    return kind(**{field.name: getattr(message, field.name) for field in fields(kind)})


def progress(message: job_pb2.Progress) -> Progress:
    """A job's progress from its message."""
    return Progress(
        step=message.step,
        total_steps=message.total_steps,
        epoch=message.epoch,
        total_epochs=message.total_epochs,
        loss=message.loss if message.HasField("loss") else None,
        learning_rate=message.learning_rate if message.HasField("learning_rate") else None,
        validation=metrics(message, "validation"),
        samples_per_second=message.samples_per_second,
        workers=message.workers,
        contributions=_counted(Contributions, message.contributions),
        checkpoints=_counted(Checkpoints, message.checkpoints),
        exchange=_counted(Exchange, message.exchange),
        machine_kinds=message.machine_kinds,
    )


def result(job: job_pb2.Job) -> Result:
    """The result of a job so far, from its message."""
    return Result(
        job=job.id,
        state=state_name(job.state),
        steps=job.result.steps or job.progress.step,
        epochs=job.result.epochs or job.progress.epoch,
        train=metrics(job.result, "train"),
        validation=metrics(job.result, "validation"),
        test=metrics(job.result, "test"),
        weights_sha256=job.result.weights_sha256,
        samples_per_second=job.result.samples_per_second,
        seconds=job.result.seconds,
        machine_kinds=job.progress.machine_kinds,
    )


def story_entry(message: pb.StoryEntry) -> StoryEntry:
    """An entry of a job's story from its message."""
    return StoryEntry(message.time.ToDatetime(tzinfo=UTC), message.source, message.text)


def event(message: pb.Event) -> Event | None:
    """An event from its message; None for a kind that this client, older than its server, does not know."""
    sequence, time = message.sequence, message.time.ToDatetime(tzinfo=UTC)
    match message.WhichOneof("kind"):
        case "state_changed":
            job = message.state_changed.job
            waiting_for = waiting_name(job.waiting_for) if job.waiting_for else ""
            return StateChanged(sequence, time, state_name(job.state), job.status, job.error, waiting_for)
        case "steps_taken":
            steps = message.steps_taken
            losses, stride = tuple(steps.losses), steps.stride or 1
            return StepsTaken(
                sequence, time, steps.first_step, losses, progress(steps.progress), stride, steps.steps or len(losses)
            )
        case "epoch_ended":
            epoch = message.epoch_ended
            return EpochEnded(sequence, time, epoch.epoch, epoch.step, epoch.train_loss, metrics(epoch, "validation"))
        case "workers_changed":
            change = message.workers_changed
            return WorkersChanged(sequence, time, change.workers, tuple(change.names), tuple(change.joined), tuple(change.left))
        case "notice":
            return Notice(sequence, time, message.notice.text)
        case "checkpoint_written":
            written = message.checkpoint_written
            return CheckpointWritten(sequence, time, written.version, written.bytes, written.seconds)
        case "checkpoint_failed":
            failed = message.checkpoint_failed
            return CheckpointFailed(sequence, time, failed.version, failed.problem)
        case _:
            return None
