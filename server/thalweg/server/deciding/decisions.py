"""What comes out of a coordinator: decisions. Plain values, in three families by what carries them out.

What is decided for the arrays (`arrays/`) is computed; what is decided for workers is sent to them (`streams/connections.py`);
what is decided for the job concerns its record and its course (`driving/job/driver.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from thalweg.contract.tree import Node
from thalweg.server.deciding.payload import Payload
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.values import Drop, EvaluationTask, Place, Position, Split, Task, WorkerId
from thalweg.v1 import job_pb2


@dataclass(frozen=True, slots=True)
class KeepInitial:
    """Put a chunk of the initial parameters where it belongs."""

    chunk: int
    payload: Payload


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
class Reduce:
    """Compute one of the plan's reductions for a step whose gradient is whole: it scales the updates up to the next version."""

    version: int
    step: int
    reduction: int


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


ForArrays = KeepInitial | Keep | Merge | Reduce | ApplyRange | Promote


@dataclass(frozen=True, slots=True)
class AdmitWorker:
    """A worker may work; tell it how the slab is cut."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class AssignInitialize:
    """Let a worker make the initial parameters."""

    worker: WorkerId


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
class SendRange:
    """Send some workers chunks of the parameters at a version."""

    workers: tuple[WorkerId, ...]
    version: int
    chunks: range


@dataclass(frozen=True, slots=True)
class Evict:
    """A worker counts as lost: end its stream."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Dismiss:
    """A worker cannot do its job: let it go, and say why."""

    worker: WorkerId
    reason: str


@dataclass(frozen=True, slots=True)
class LetGo:
    """A worker is not needed here any more, and has nothing left to do: let it go, and say why. It is not missed."""

    worker: WorkerId
    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """A worker cannot work beside the others: end its stream with an error, by its reason, that names the problem."""

    worker: WorkerId
    problem: str
    reason: str = "DISAGREES"


ForWorkers = AdmitWorker | AssignInitialize | AssignDifferentiate | AssignEvaluate | SendRange | Evict | Dismiss | LetGo | Refuse


@dataclass(frozen=True, slots=True)
class Allocate:
    """The job's course is known: make its arrays."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class LoadGiven:
    """Put the parameters that were given, with those of a checkpoint the optimizer's state, where they belong."""


@dataclass(frozen=True, slots=True)
class ReportReady:
    """The initial parameters are there; steps begin."""


@dataclass(frozen=True, slots=True)
class ReportStep:
    """A step was taken, with contributions that were up to `staleness` versions behind."""

    step: int
    loss: float
    samples: int
    schedule_factor: float
    staleness: int


@dataclass(frozen=True, slots=True)
class ReportEpoch:
    """An epoch ended."""

    epoch: int
    step: int
    train_loss: float
    validation: job_pb2.Metrics | None


@dataclass(frozen=True, slots=True)
class WriteCheckpoint:
    """Write the state at a position, in the background."""

    position: Position


@dataclass(frozen=True, slots=True)
class Dropped:
    """A contribution was not used."""

    worker: WorkerId
    reason: Drop


@dataclass(frozen=True, slots=True)
class Avoid:
    """The job is to get no more workers at these places for now. Replaces what was decided before."""

    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell those who watch the job."""

    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The job has ended. `position` is where it can be taken up again, if parameters and state are at one version; `status` says
    why it has ended, if it has not failed and nobody requested that.
    """

    state: job_pb2.JobState.ValueType
    error: str = ""
    metrics: Mapping[Split, job_pb2.Metrics] = field(default_factory=dict)
    position: Position | None = None
    status: str = ""


ForJob = Allocate | LoadGiven | ReportReady | ReportStep | ReportEpoch | WriteCheckpoint | Dropped | Avoid | Tell | Finish

# Each decision belongs to one family, and each family has one executor.
Decision = ForArrays | ForWorkers | ForJob
