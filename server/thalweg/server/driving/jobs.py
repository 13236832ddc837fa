"""All jobs of a server: what may be asked of them, and the server's start and stop."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Collection
from contextlib import suppress

from thalweg.contract.code import entry_points
from thalweg.contract.errors import ThalwegError, Violation, invalid
from thalweg.contract.states import state_name
from thalweg.server import validation
from thalweg.server.access.principal import ADMIN, Principal, Scope
from thalweg.server.access.table import READS, scope_of
from thalweg.server.arrays.sharded.registry import ShardLink
from thalweg.server.driving import acceptance
from thalweg.server.driving.answers import ANSWER_SECONDS, Answers
from thalweg.server.driving.cluster import Cluster
from thalweg.server.driving.job.driver import JobDriver
from thalweg.server.driving.lifecycle.lives import Lives
from thalweg.server.driving.queries import Queries
from thalweg.server.driving.upkeep import Upkeep
from thalweg.server.settings import DEFAULT_SETTINGS, RunSettings
from thalweg.server.storage.interface import Storage
from thalweg.server.storage.journal import DISK_SECONDS, Journal
from thalweg.server.streams.memory_listener import Sharing
from thalweg.server.telemetry import Clock
from thalweg.v1 import job_pb2, training_service_pb2

_log = logging.getLogger(__name__)
# How long a server that stops waits for the checkpoints of its jobs.
_STOP_CHECKPOINT_SECONDS = 4.0


class Jobs:
    """The jobs of one server, which runs `max_running` of them at a time; 0 for no limit. Belongs to its event loop."""

    def __init__(
        self,
        storage: Storage,
        settings: RunSettings = DEFAULT_SETTINGS,
        max_running: int = 0,
        sharing: Sharing | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.storage = storage
        self.settings = settings
        # Whether the server is stopping, and those who leave it are not missed.
        self.stopping = False
        self.accepted = self.shards_lost = 0
        self.journal = Journal(storage, self._event_rejected)
        self.answers = Answers(self.journal)
        self.lives = Lives(self.journal, self.answers, settings, max_running, sharing, clock)
        self.places = self.lives.places
        self.shards = self.lives.runs.shards
        self.cluster = Cluster(self.journal, self.answers, self.lives)
        self.queries = Queries(self.journal, self.answers, self.lives)
        self.upkeep = Upkeep(self.journal, self.lives, settings, self.shard_lost, clock)
        self._accepting: set[asyncio.Task[job_pb2.Job]] = set()

    async def start(self, resume_unfinished: bool, kept: Collection[str] = ()) -> None:
        """Resumes the jobs that have not ended: all, or those in `kept`. Records that the others were interrupted.

        Raises OSError if that cannot be recorded.
        """
        self.journal.start()
        await self.cluster.start()
        await self.lives.recover(resume_unfinished, kept)
        self.upkeep.start()
        try:
            await asyncio.wait_for(self.journal.settled(), DISK_SECONDS)
        except TimeoutError:
            raise OSError("nothing can be written there; is the disk full?") from None

    async def write_checkpoints(self) -> None:
        """Has the jobs that are training write checkpoints before the server stops, but does not wait for ever."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_CHECKPOINT_SECONDS):
                await asyncio.gather(*(run.write_checkpoint() for run in self.lives.runs.of.values()))

    async def stop(self) -> None:
        """Waits for what is being written, but not for ever. Jobs that have not ended stay unfinished."""
        self.upkeep.stop()
        self.cluster.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*self._accepting, self.lives.stop(), return_exceptions=True), DISK_SECONDS)
        self.answers.close()
        self.lives.close()
        if self.upkeep.started:
            try:
                await self.journal.run(self.storage.stop_cleanly)
            except (sqlite3.Error, OSError) as error:
                _log.error("the server's clean stop cannot be recorded: %s", error)
        await self.journal.stop()

    def run(self, job_id: str) -> JobDriver | None:
        """The run of a job that has not ended and is not ending."""
        return self.lives.run(job_id)

    def unended(self, job_id: str) -> job_pb2.Job | None:
        """A job that has not ended on record, as it is now."""
        run = self.lives.runs.of.get(job_id)
        return run.job if run else None

    def shard_lost(self, shard: ShardLink) -> None:
        """A shard is gone, with what it held: the jobs that need it go back to their last checkpoints."""
        if shard not in self.shards.attending:
            return
        self.shards.attending.remove(shard)
        if not self.stopping:
            self.shards_lost += 1
            for run in [run for run in self.lives.living() if run.needs(shard)]:
                self.lives.shard_lost(run, shard.address)

    def _event_rejected(self, job_id: str, problem: str) -> None:
        self.lives.event_rejected(job_id, problem)

    async def create(self, request: training_service_pb2.CreateJobRequest, by: Principal = ADMIN) -> job_pb2.Job:
        """Accepts a job, whose owner is the principal that creates it.

        Raises ThalwegError if it is not right, or if the server is about to end.
        """
        self.cluster.check_open()
        spec = validation.complete(request.spec)
        if not self.settings.allow_code and (uses := entry_points(spec)):
            raise ThalwegError("CODE_NOT_ALLOWED", {"field": uses[0].field, "entrypoint": uses[0].title})
        if request.job_id:
            validation.check_job_id(request.job_id)
        if request.request_id:
            validation.check_request_id(request.request_id)
        job = job_pb2.Job(id=request.job_id, spec=spec, state=job_pb2.JOB_STATE_QUEUED, owner=by.name, shared=request.shared)
        job.create_time.GetCurrentTime()
        # A call that is cancelled here must not leave a job that is recorded and never begins.
        accepting = self.answers.begin(self._accept(job, request.request_id, by))
        self._accepting.add(accepting)
        accepting.add_done_callback(self._accepting.discard)
        return await asyncio.shield(accepting)

    async def _accept(self, job: job_pb2.Job, request_id: str, by: Principal) -> job_pb2.Job:
        wanted_id = job.id
        try:
            inserted = await self._record(job, request_id, by)
        except (sqlite3.Error, OSError) as error:
            raise self.answers.refusal(error, "No job was accepted.") from error
        if inserted is None:
            raise ThalwegError("JOB_EXISTS", {"job": wanted_id})
        if inserted.owner != by.name and scope_of(by, READS) is not Scope.ALL:
            raise invalid(Violation("request_id", "was used before; choose another, at random"))
        if inserted is job:
            _log.info("job %s: accepted", job.id)
            self.accepted += 1
            await self.lives.accept(job)
            # It is on record; its first event may wait for room.
            with suppress(ThalwegError):
                await self.answers.wait(job.id, self.journal.settled(), "", ANSWER_SECONDS)
        return inserted

    async def _record(self, job: job_pb2.Job, request_id: str, by: Principal) -> job_pb2.Job | None:
        """Makes a job durable, with the parameters that it starts from."""
        known = await self.journal.run(self.storage.job_of_request, request_id)
        if known:
            return known
        given = job.spec.model.initial
        # What is exported must not be removed before it is used.
        async with self.lives.endings.removing:
            if given.job:
                other = await self.journal.run(acceptance.check_source, self.storage, given.job, by)
                given.sha256 = await self.journal.run_files(acceptance.export, self.storage, other)
                await self.journal.run(self.storage.own_upload, given.sha256, by.name)
            return await self.journal.run(acceptance.record_job, self.storage, job, request_id, by)

    async def share(self, job_id: str, shared: bool) -> job_pb2.Job:
        """Lets all others read a job, or no longer. Raises ThalwegError if there is no such job, or it cannot be recorded."""
        await self.queries.get(job_id)
        try:
            await self.journal.run(self.storage.share_job, job_id, shared)
        except (sqlite3.Error, OSError) as error:
            raise self.answers.refusal(error, "Who may read the job has not changed.") from error
        run = self.lives.runs.of.get(job_id)
        if run:
            run.job.shared = shared
        return await self.queries.get(job_id)

    async def keep(self, job_id: str, kept: bool) -> job_pb2.Job:
        """Keeps a job's result for good, or no longer. Raises ThalwegError if there is no such job, or it cannot be recorded."""
        await self.queries.get(job_id)
        try:
            await self.journal.run(self.storage.keep_job, job_id, kept)
        except (sqlite3.Error, OSError) as error:
            raise self.answers.refusal(error, "How long the result is kept has not changed.") from error
        run = self.lives.runs.of.get(job_id)
        if run:
            run.job.kept = kept
        return await self.queries.get(job_id)

    async def cancel(self, job_id: str) -> job_pb2.Job:
        """Ends a job, if it has not ended. Gives it as it is on record, which may take longer to say that it has ended.

        Raises ThalwegError if there is no such job, or if its end waits for room on the disk.
        """
        await self.queries.get(job_id)
        consequence = "The job is ended; its end is recorded as soon as there is disk space."
        await self.answers.wait(job_id, self.lives.cancel(job_id), consequence, ANSWER_SECONDS)
        return await self.queries.get(job_id)

    async def scale(self, job_id: str, workers: int | None, priority: int | None = None) -> job_pb2.Job:
        """Changes how many workers a job wants, 0 to pause it, and its priority; None leaves what is.

        Raises ThalwegError if the job has ended, or a number is not allowed.
        """
        if priority is not None:
            validation.check_value(job_pb2.JobSpec.DESCRIPTOR.fields_by_name["priority"], priority, "priority")
        if workers:
            validation.check_value(job_pb2.Training.DESCRIPTOR.fields_by_name["workers"], workers, "workers")
        await self.queries.get(job_id)
        consequence = "What was asked for is recorded as soon as there is disk space."
        await self.answers.wait(job_id, self._scale(job_id, workers, priority), consequence, ANSWER_SECONDS)
        return await self.queries.get(job_id)

    async def _scale(self, job_id: str, workers: int | None, priority: int | None) -> None:
        if not await self.lives.scale(job_id, workers, priority):
            job = await self.queries.get(job_id)
            raise ThalwegError("JOB_ENDED", {"job": job_id, "state": state_name(job.state)})

    async def resume(self, job_id: str, max_seconds: float | None = None) -> job_pb2.Job:
        """Resumes a job that was cancelled or has failed, with another time limit in seconds, if one is given, 0 for none.

        Raises ThalwegError if it has succeeded, has no time left, or the server is about to end.
        """
        self.cluster.check_open()
        if max_seconds:
            validation.check_value(job_pb2.Training.DESCRIPTOR.fields_by_name["max_seconds"], max_seconds, "max_seconds")
        consequence = "The job is resumed; that is recorded as soon as there is disk space."
        await self.answers.wait(job_id, self._resume(job_id, max_seconds), consequence, ANSWER_SECONDS)
        return await self.queries.get(job_id)

    async def _resume(self, job_id: str, max_seconds: float | None) -> None:
        job = await self.queries.get(job_id)
        try:
            await self.lives.resume(job, max_seconds)
        except (sqlite3.Error, OSError) as error:
            raise self.answers.refusal(error, "The job was not resumed.") from error
        await self.journal.settled()

    async def delete(self, job_id: str) -> None:
        """Removes a job that has ended, also one whose end waits for room. Raises ThalwegError if it has not."""
        await self.lives.delete(await self.queries.get(job_id))
