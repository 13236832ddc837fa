"""What goes into a coordinator, events, and what comes out, decisions. Plain values: no arrays, no streams, no clock.

`Payload` stands for the numbers of a message. A coordinator hands it from event to decision and never looks inside.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NamedTuple, TypeAlias

from thalweg.contract.sums import Sums
from thalweg.contract.tree import Node
from thalweg.v1 import job_pb2, parameter_service_pb2

Payload = Any
WorkerId = int
Split: TypeAlias = parameter_service_pb2.Split.ValueType
Scope: TypeAlias = parameter_service_pb2.Failure.Scope.ValueType


class Place(NamedTuple):
    """Where a worker runs: the fleet that started it and the node of the fleet's cluster, by their ids, and the node's name.

    All are empty where no fleet is known.
    """

    fleet: str = ""
    node: str = ""
    name: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """By what it is the same place."""
        return self.fleet, self.node


NOWHERE = Place()


class Facts(NamedTuple):
    """What the workers found out about a job's model and data."""

    elements: int
    train_samples: int
    validation_samples: int
    classifier: bool


class Task(NamedTuple):
    """A part of a step: the gradient of a node's microbatches, for the chunks from `first_chunk` up to `end_chunk`.

    `steps` is 1, except with local steps: there each microbatch takes so many steps of its own from `step` on.
    """

    step: int
    steps: int
    node: Node
    first_chunk: int
    end_chunk: int


class Position(NamedTuple):
    """Where training is when `version` updates are applied, as far as the parameters do not tell.

    `epoch_loss` and `epoch_samples` are the sums over the epoch so far; `applied` the steps that were applied out of order.
    """

    version: int
    epoch_loss: float
    epoch_samples: int
    applied: tuple[int, ...] = ()


class Drop(Enum):
    """Why a message was not used."""

    DUPLICATE = auto()  # it had come before
    LATE = auto()  # its step had been taken
    STALE_INCARNATION = auto()  # its worker had been given up
    UNKNOWN = auto()  # it answers no task


class EvaluationTask(NamedTuple):
    """The metrics at a version, of the samples from `first` up to `end`."""

    version: int
    split: Split
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker opened its stream."""

    worker: WorkerId
    place: Place = NOWHERE


@dataclass(frozen=True, slots=True)
class WorkerPrepared:
    """A worker has loaded the data and built the model."""

    worker: WorkerId
    facts: Facts


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker's stream ended."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class HeartbeatReceived:
    """A worker is alive, as any message of it tells."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """A fleet says that a worker ended before it contributed anything: that it was `killed`, or else that it could not begin."""

    place: Place
    problem: str
    killed: bool


@dataclass(frozen=True, slots=True)
class WorkerRefused:
    """A worker that wanted to begin was refused."""

    place: Place
    problem: str


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """A worker says that it cannot do its job."""

    worker: WorkerId
    problem: str
    scope: Scope


@dataclass(frozen=True, slots=True)
class WorkerMisbehaved:
    """A worker broke the protocol. Its stream ends."""

    worker: WorkerId
    problem: str


@dataclass(frozen=True, slots=True)
class InitialReceived:
    """A chunk of the initial parameters arrived."""

    worker: WorkerId
    chunk: int
    payload: Payload


@dataclass(frozen=True, slots=True)
class ContributionReceived:
    """Chunks of a gradient arrived, computed at a version; with the last chunk of the slab, the node's sums."""

    worker: WorkerId
    version: int
    step: int
    node: Node
    chunks: range
    sums: Sums | None
    payload: Payload


@dataclass(frozen=True, slots=True)
class EvaluationReceived:
    """The answer to an evaluation task arrived."""

    worker: WorkerId
    version: int
    split: Split
    first: int
    sums: Sums


@dataclass(frozen=True, slots=True)
class RangeNotFinite:
    """An update, not yet part of any version, made NaN or infinite parameters."""

    version: int


@dataclass(frozen=True, slots=True)
class DriverFailed:
    """Decisions could not be carried out: nothing that would follow from them can be trusted."""

    problem: str


@dataclass(frozen=True, slots=True)
class CheckpointDone:
    """The writing of a checkpoint has ended, well or not, after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class CheckpointRequested:
    """The server is about to stop: a checkpoint is wanted as soon as possible."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. For `missed` seconds of it nobody listened to the workers."""

    missed: float = 0.0


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Somebody asked for the job's end."""


@dataclass(frozen=True, slots=True)
class PauseRequested:
    """The job is to have no workers for now."""


Event = (
    WorkerJoined
    | WorkerPrepared
    | WorkerLost
    | HeartbeatReceived
    | WorkerExited
    | WorkerRefused
    | WorkerFailed
    | WorkerMisbehaved
    | InitialReceived
    | ContributionReceived
    | EvaluationReceived
    | RangeNotFinite
    | DriverFailed
    | CheckpointDone
    | CheckpointRequested
    | Tick
    | CancelRequested
    | PauseRequested
)


@dataclass(frozen=True, slots=True)
class Allocate:
    """The job's course is known: make its arrays."""


@dataclass(frozen=True, slots=True)
class LoadGiven:
    """Put the parameters that were given, with those of a checkpoint the optimizer's state, where they belong."""


@dataclass(frozen=True, slots=True)
class Evict:
    """A worker is taken for lost: end its stream."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Dismiss:
    """A worker cannot do its job: let it go, and say why."""

    worker: WorkerId
    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """A worker disagrees with the others: end its stream with an error that names the problem."""

    worker: WorkerId
    problem: str


@dataclass(frozen=True, slots=True)
class Avoid:
    """The job is to get no more workers at these places for now. Replaces what was decided before."""

    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell those who watch the job."""

    text: str


@dataclass(frozen=True, slots=True)
class AdmitWorker:
    """A worker may work; tell it how the slab is cut."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class AssignInitialize:
    """Let a worker make the initial parameters."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class KeepInitial:
    """Put a chunk of the initial parameters where it belongs."""

    chunk: int
    payload: Payload


@dataclass(frozen=True, slots=True)
class SendRange:
    """Send some workers chunks of the parameters at a version."""

    workers: tuple[WorkerId, ...]
    version: int
    chunks: range


@dataclass(frozen=True, slots=True)
class AssignDifferentiate:
    """Let a worker compute a gradient at a version. `again` says that another one has the task too."""

    worker: WorkerId
    version: int
    task: Task
    again: bool


@dataclass(frozen=True, slots=True)
class AssignEvaluate:
    """Let a worker compute metrics."""

    worker: WorkerId
    task: EvaluationTask


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep chunks of a node's gradient; `payload` may hold others as well."""

    step: int
    node: Node
    chunks: range
    payload: Payload


@dataclass(frozen=True, slots=True)
class Merge:
    """Add the right child's chunks to the left child's; the sums are their parent's."""

    step: int
    parent: Node
    chunks: range


@dataclass(frozen=True, slots=True)
class MeasureGradient:
    """Compute the norm of a step's whole gradient, by which the following updates are clipped."""

    step: int


@dataclass(frozen=True, slots=True)
class ApplyRange:
    """Update chunks: from the current version and the gradient of a step to the next version."""

    version: int
    step: int
    chunks: range
    schedule_factor: float


@dataclass(frozen=True, slots=True)
class Promote:
    """The next version is whole: it becomes the current one, and a step's gradient is done with."""

    version: int
    step: int


@dataclass(frozen=True, slots=True)
class ReportStep:
    """A step was taken, with contributions that were up to `staleness` versions behind."""

    step: int
    loss: float
    samples: int
    schedule_factor: float
    staleness: int


@dataclass(frozen=True, slots=True)
class WriteCheckpoint:
    """Write the state at a position, in the background."""

    position: Position


@dataclass(frozen=True, slots=True)
class ReportEpoch:
    """An epoch ended."""

    epoch: int
    step: int
    train_loss: float
    validation: job_pb2.Metrics | None


@dataclass(frozen=True, slots=True)
class ReportReady:
    """The initial parameters are there; steps begin."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A contribution was not used."""

    worker: WorkerId
    reason: Drop


@dataclass(frozen=True, slots=True)
class Finish:
    """The job has ended. `position` is where it can be taken up again, if parameters and state are at one version."""

    state: job_pb2.JobState.ValueType
    error: str = ""
    train: job_pb2.Metrics | None = None
    validation: job_pb2.Metrics | None = None
    position: Position | None = None


Decision = (
    Allocate
    | LoadGiven
    | Evict
    | Dismiss
    | Refuse
    | Avoid
    | Tell
    | AdmitWorker
    | AssignInitialize
    | KeepInitial
    | SendRange
    | AssignDifferentiate
    | AssignEvaluate
    | Keep
    | Merge
    | MeasureGradient
    | ApplyRange
    | Promote
    | ReportStep
    | ReportEpoch
    | ReportReady
    | WriteCheckpoint
    | Dropped
    | Finish
)
