"""What is decided about the life of a job. Plain values. Where something takes time, they say which event follows."""

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from thalweg.server.deciding.lifecycle.events import Ask


class Start(Enum):
    """What a run starts from."""

    ACCEPTED = "a new job"
    RESTART = "the record, after a restart of the server"
    RESUME = "the record, because a call requested it"
    CHECKPOINT = "the record, in place of a run that was given up"
    FAILURE = "nothing: it fails at once, to end the job"


@dataclass(frozen=True, slots=True)
class StartRun:
    """Make a run; `reason` is why; `max_seconds` is the job's new time limit, as a call requested it. Followed by RunStarted or
    StartFailed.
    """

    start: Start
    reason: str = ""
    max_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class SetAside:
    """Record that the job has failed without a run. Followed by WasSetAside."""

    reason: str


@dataclass(frozen=True, slots=True)
class GiveUpRun:
    """End the run, not the job: nothing that it holds is kept."""

    reason: str


@dataclass(frozen=True, slots=True)
class FailRun:
    """Let the run end the job: it cannot go on."""

    problem: str


@dataclass(frozen=True, slots=True)
class CancelRun:
    """Let the run end the job: a call requested it."""


@dataclass(frozen=True, slots=True)
class PauseRun:
    """Let the run's workers go, and the job's place."""


@dataclass(frozen=True, slots=True)
class ScaleRun:
    """The job wants another number of workers."""

    workers: int


@dataclass(frozen=True, slots=True)
class PrioritizeRun:
    """The job has another priority."""

    priority: int


@dataclass(frozen=True, slots=True)
class RecordScale:
    """Record how many workers the job wants, and its priority. Followed by ScaleDurable."""

    ask: Ask


@dataclass(frozen=True, slots=True)
class KeepResult:
    """Make durable what the run leaves. Followed by ResultKept."""


@dataclass(frozen=True, slots=True)
class RecordEnd:
    """Record the state in which the job ended. Followed by EndDurable or EndFailed."""


@dataclass(frozen=True, slots=True)
class RemoveCheckpoints:
    """Remove the job's checkpoints. Followed by Cleared."""


@dataclass(frozen=True, slots=True)
class AwaitShortage:
    """Say when what the job leaves waits for room. Followed by DiskFull, if it does."""


@dataclass(frozen=True, slots=True)
class AbandonEnd:
    """Stop writing what the job leaves. Followed by Abandoned."""


@dataclass(frozen=True, slots=True)
class ForgetRun:
    """The job has ended: its place is free, and its workers may leave."""

    problem: str = ""


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """Remove the job with all that is kept of it. Followed by Deleted or DeleteFailed."""


@dataclass(frozen=True, slots=True)
class RemoveResult:
    """Remove the job's result, not its record. Followed by ResultRemoved."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer a call, with an error if there is one."""

    ask: Ask
    error: Exception | None = None


Decision: TypeAlias = (
    StartRun
    | SetAside
    | GiveUpRun
    | FailRun
    | CancelRun
    | PauseRun
    | ScaleRun
    | PrioritizeRun
    | RecordScale
    | KeepResult
    | RecordEnd
    | RemoveCheckpoints
    | AwaitShortage
    | AbandonEnd
    | ForgetRun
    | DeleteJob
    | RemoveResult
    | Answer
)
