"""What goes into a coordinator: events. Plain values: no arrays, no streams, no clock."""

from dataclasses import dataclass

from thalweg.contract.sums import Sums
from thalweg.contract.tree import Node
from thalweg.server.deciding.payload import Payload
from thalweg.server.deciding.values import NOWHERE, Facts, Place, Scope, Split, WorkerId
from thalweg.server.deciding.workers.machines import Premises


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
    premises: Premises = ()


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker's stream ended."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class HeartbeatReceived:
    """A worker is alive, as every message of a worker says."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """A fleet says that a worker ended before it contributed anything: that it was `killed`, or else that it could not begin."""

    place: Place
    problem: str
    killed: bool


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """A fleet says that a worker's process died, whether it had contributed or not, and that nobody is known to have ended it.

    `line` is where it was in the job's own code, empty if that is unknown.
    """

    place: Place
    problem: str
    line: str


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
class DataChanged:
    """A worker found other data files than those that the job has learned from."""

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
    """The writing of a checkpoint has ended, successfully or not, after some seconds."""

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
    """The end of the job was requested."""


@dataclass(frozen=True, slots=True)
class WorkersReleased:
    """Some workers are to go, for a reason: each after the tasks that it has, or `at_once`, and none gets more."""

    workers: tuple[WorkerId, ...]
    reason: str
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class PauseRequested:
    """The job is to have no workers for now."""


Event = (
    WorkerJoined
    | WorkerPrepared
    | WorkerLost
    | HeartbeatReceived
    | WorkerExited
    | WorkerDied
    | WorkerRefused
    | WorkerFailed
    | WorkerMisbehaved
    | DataChanged
    | InitialReceived
    | ContributionReceived
    | EvaluationReceived
    | RangeNotFinite
    | DriverFailed
    | CheckpointDone
    | CheckpointRequested
    | Tick
    | CancelRequested
    | WorkersReleased
    | PauseRequested
)
