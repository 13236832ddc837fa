"""What is on record of jobs that go on: when the server starts, when one is resumed, and when a run was given up."""

import logging
from collections.abc import Collection
from dataclasses import dataclass, field

from thalweg.contract.errors import ThalwegError
from thalweg.contract.states import ENDED
from thalweg.server.deciding.lifecycle.decisions import Start
from thalweg.server.deciding.time_limit import reached
from thalweg.server.driving.lifecycle.foreign import ForeignSpecError, known
from thalweg.server.storage.checkpoints import Checkpoint, NewerCheckpointError
from thalweg.server.storage.journal import Journal
from thalweg.server.telemetry import Recorded
from thalweg.v1 import job_pb2, training_service_pb2

_log = logging.getLogger(__name__)
# A job that ran at this many deaths of the server in a row is not resumed automatically.
MAX_DEATHS = 3


@dataclass(frozen=True)
class Unfinished:
    """A job that had not ended when the server stopped. `aside` is why it is not resumed automatically; empty if it is."""

    job_id: str
    aside: str
    begun: bool


@dataclass
class Recovered:
    """A job as a new run finds it. `where` says where it goes on; `refusal` why it cannot, if it cannot."""

    job: job_pb2.Job
    where: str
    recorded: Recorded
    checkpoint: Checkpoint | None = None
    refusal: str = ""
    problems: list[str] = field(default_factory=list)


class Recovery:
    """Reads the record of one server's jobs. Belongs to its event loop."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._storage = journal.storage

    async def unfinished(self, resume_all: bool, kept: Collection[str]) -> list[Unfinished]:
        """The jobs that have not ended, the oldest first. Those in `kept` go on whether or not all do."""
        before: int | None = None
        unfinished: list[job_pb2.Job] = []
        while page := await self._journal.run(self._storage.jobs, 100, before):
            unfinished += [job for _, job in page if job.state not in ENDED]
            before = page[-1][0]
        running = [job.id for job in unfinished if job.state == job_pb2.JOB_STATE_RUNNING and not job.paused]
        # Durable before any of them runs.
        deaths = await self._journal.run(self._storage.count_deaths, running)
        return [
            Unfinished(
                job.id,
                self._why_not(job, resume_all or job.id in kept, deaths.get(job.id, 0)),
                begun=bool(job.state == job_pb2.JOB_STATE_RUNNING or job.progress.step) and not job.paused,
            )
            for job in reversed(unfinished)
        ]

    def _why_not(self, job: job_pb2.Job, wanted: bool, deaths: int) -> str:
        if not wanted:
            return "interrupted: the process that ran this job ended before the job did"
        if deaths >= MAX_DEATHS:
            return (
                f"set aside: the server died {deaths} times in a row while this job ran, before it wrote a checkpoint; "
                f"if the server was short of memory, give it more. Resume the job to try again"
            )
        try:
            known(job.spec)
        except ForeignSpecError as error:
            return (
                f"accepted by another release of Thalweg: {error}. The data folder was last used by release "
                f"{self._storage.written_by}; resume the job with the release that accepted it"
            )
        return ""

    async def set_aside(self, job_id: str, error: str) -> None:
        """Records that a job has failed without running, unless its end is on record. It can be resumed."""
        await self._journal.open(job_id)
        job = await self._on_record(job_id)
        if job.state in ENDED:
            return
        _log.warning("job %s: %s", job_id, error)
        job.error = error
        job.end_time.GetCurrentTime()
        job.state, job.status = job_pb2.JOB_STATE_FAILED, ""
        job.ClearField("waiting_for")
        changed = training_service_pb2.StateChanged(job=job)
        self._journal.record(job_id, training_service_pb2.Event(state_changed=changed))

    async def read(self, job_id: str, start: Start, max_seconds: float | None = None) -> Recovered:
        """A job as a new run finds it, at its last checkpoint, with another time limit if one is given.

        Raises ThalwegError if it cannot be resumed.
        """
        job = await self._on_record(job_id)
        if start is Start.RESUME:
            await self._check_resumable(job)
            job.ClearField("paused")
            if max_seconds:
                job.spec.training.max_seconds = max_seconds
            elif max_seconds is not None:
                job.spec.training.ClearField("max_seconds")
        elif start is Start.RESTART:
            job.spec.CopyFrom(known(job.spec))
        await self._journal.open(job_id)
        refusal, checkpoint, problems = "", None, list[str]()
        try:
            checkpoint, problems = await self._journal.run_aside(self._storage.checkpoints(job_id).latest)
        except NewerCheckpointError as error:
            refusal = f"{error}. Resume the job with that release, or submit it again"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this job's
            _log.exception("job %s: its checkpoints cannot be read", job_id)
            refusal = f"its checkpoints cannot be read: {error or type(error).__name__}"
        if start is Start.RESUME and checkpoint:
            self._check_limit(job, checkpoint)
        steps, epochs = await self._journal.run(self._storage.told, job_id)
        for name in ("progress", "result", "error", "end_time", "waiting_for", "result_removed_time"):
            job.ClearField(name)
        if checkpoint is None:
            job.ClearField("start_time")
            return Recovered(job, "starts again from the beginning", Recorded(steps, epochs), None, refusal, problems)
        job.progress.step = checkpoint.position.version
        where = f"continues from step {checkpoint.position.version:,}"
        recorded = Recorded(steps, epochs, checkpoint.samples, checkpoint.seconds)
        return Recovered(job, where, recorded, checkpoint, refusal, problems)

    def _check_limit(self, job: job_pb2.Job, checkpoint: Checkpoint) -> None:
        """Raises ThalwegError if a job that is to be resumed has no time left."""
        limit = job.spec.training.max_seconds
        if job.spec.training.HasField("max_seconds") and checkpoint.used >= limit:
            self._journal.close(job.id)
            problem = f"{reached(limit, checkpoint.used)}; give a higher limit, or 0 for none"
            raise ThalwegError("NOT_RESUMABLE", {"job": job.id, "problem": problem})

    async def _on_record(self, job_id: str) -> job_pb2.Job:
        job = await self._journal.run(self._storage.job, job_id)
        if job is None:
            # It was deleted just now.
            raise ThalwegError("JOB_NOT_FOUND", {"job": job_id})
        return job

    async def _check_resumable(self, job: job_pb2.Job) -> None:
        if job.state == job_pb2.JOB_STATE_SUCCEEDED:
            raise ThalwegError("NOT_RESUMABLE", {"job": job.id, "problem": "it has succeeded"})
        try:
            job.spec.CopyFrom(known(job.spec))
        except ForeignSpecError as error:
            raise ThalwegError("NOT_RESUMABLE", {"job": job.id, "problem": str(error)}) from error
        await self._journal.run(self._storage.forget_deaths, job.id)
