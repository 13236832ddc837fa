"""What happens in the life of a job. Plain values.

Calls about a job are events with an `ask`, a number that stands for the call until it is answered.
"""

from dataclasses import dataclass
from typing import TypeAlias

from thalweg.v1 import job_pb2

Ask: TypeAlias = int
Outcome: TypeAlias = job_pb2.JobState.ValueType


@dataclass(frozen=True, slots=True)
class Accepted:
    """The job is new, and on record."""

    ask: Ask


@dataclass(frozen=True, slots=True)
class ServerStarted:
    """The server started and found the job unfinished. `aside` is why it does not go on, if it does not; `begun` jobs keep their
    place.
    """

    ask: Ask
    aside: str = ""
    begun: bool = False


@dataclass(frozen=True, slots=True)
class WasSetAside:
    """It is recorded that the job has failed without a run."""


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The job has a run. `refusal` is why it cannot go on, if it cannot; `paused` is what the job's record says."""

    paused: bool = False
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class StartFailed:
    """No run could be made."""

    error: Exception


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """A call requests the job's end. Answered when it has ended."""

    ask: Ask


@dataclass(frozen=True, slots=True)
class ScaleRequested:
    """A call requests another number of workers, 0 to pause the job, or another priority. None leaves what is.

    Answered when that is durable.
    """

    ask: Ask
    workers: int | None
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class ResumeRequested:
    """A call requests that a job that has ended be resumed. Answered when it has a run. `max_seconds` is its new time limit, in
    seconds, 0 for none; None leaves it.
    """

    ask: Ask
    max_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class DeleteRequested:
    """A call requests the removal of a job that has ended."""

    ask: Ask


@dataclass(frozen=True, slots=True)
class RestAwaited:
    """A call waits until the job has a run, or has ended."""

    ask: Ask


@dataclass(frozen=True, slots=True)
class ShardLost:
    """A shard that held a part of the run's arrays is gone."""

    address: str


@dataclass(frozen=True, slots=True)
class EventRejected:
    """An event cannot be recorded, for another reason than room: neither is durable what happened since."""

    problem: str


@dataclass(frozen=True, slots=True)
class ScaleDurable:
    """What was recorded when a call scaled the job is durable, unless it was rejected."""

    ask: Ask


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run brought the job to its end."""

    state: Outcome


@dataclass(frozen=True, slots=True)
class ResultKept:
    """What the job leaves is durable, or cannot be kept: then it has failed."""

    state: Outcome


@dataclass(frozen=True, slots=True)
class EndDurable:
    """The end that was recorded is durable, unless it was rejected."""


@dataclass(frozen=True, slots=True)
class Cleared:
    """What the job needs no more is removed."""


@dataclass(frozen=True, slots=True)
class EndFailed:
    """The end could not be recorded, for no reason that is foreseen. The next start of the server resumes the job."""

    problem: str


@dataclass(frozen=True, slots=True)
class DiskFull:
    """What the job leaves waits for room on the disk."""


@dataclass(frozen=True, slots=True)
class Abandoned:
    """Nothing that the job leaves is being written any more."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """Nothing is left of the job."""


@dataclass(frozen=True, slots=True)
class ResultExpired:
    """The result of a job that has ended is as old as results may be."""


@dataclass(frozen=True, slots=True)
class ResultRemoved:
    """The result is removed, or could not be, and stays for now: `problem` says why."""

    problem: str = ""


@dataclass(frozen=True, slots=True)
class DeleteFailed:
    """The job could not be removed."""

    error: Exception


Event: TypeAlias = (
    Accepted
    | ServerStarted
    | WasSetAside
    | RunStarted
    | StartFailed
    | CancelRequested
    | ScaleRequested
    | ResumeRequested
    | DeleteRequested
    | RestAwaited
    | ShardLost
    | EventRejected
    | ScaleDurable
    | RunEnded
    | ResultKept
    | EndDurable
    | Cleared
    | EndFailed
    | DiskFull
    | Abandoned
    | Deleted
    | DeleteFailed
    | ResultExpired
    | ResultRemoved
)
