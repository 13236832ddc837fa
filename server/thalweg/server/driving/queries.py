"""What clients read of a server's jobs: records, pages, events, parameters, trajectories, stories."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from thalweg.contract import layout as layouts
from thalweg.contract.errors import ThalwegError, Violation, invalid
from thalweg.contract.states import ENDED
from thalweg.server.arrays.downloads import Download
from thalweg.server.arrays.trajectory import MAX_BYTES
from thalweg.server.driving.answers import Answers
from thalweg.server.driving.job.holdings import header_of
from thalweg.server.driving.lifecycle.lives import Lives
from thalweg.server.storage.checkpoints import NewerCheckpointError
from thalweg.server.storage.journal import Journal
from thalweg.v1 import job_pb2, training_service_pb2

# A page of jobs stays well within gRPC's limit for a message.
_PAGE_BYTES = 1 << 20


class Queries:
    """Reads the jobs of one server. Belongs to its event loop."""

    def __init__(self, journal: Journal, answers: Answers, lives: Lives) -> None:
        self._journal = journal
        self._storage = journal.storage
        self._answers = answers
        self._lives = lives

    async def get(self, job_id: str) -> job_pb2.Job:
        """One job. Raises ThalwegError if there is none."""
        job = await self._journal.run(self._storage.job, job_id)
        if job is None:
            raise ThalwegError("JOB_NOT_FOUND", {"job": job_id})
        return self._with_progress(job)

    def _with_progress(self, job: job_pb2.Job) -> job_pb2.Job:
        """A job's durable record, with the progress that it makes and is not recorded at every step."""
        run = self._lives.runs.of.get(job.id)
        if run and job.state not in ENDED:
            ending = self._lives.ending(job.id)
            job.progress.CopyFrom(run.job.progress)
            job.status, job.waiting_for = run.job.status, run.job.waiting_for
            places = self._lives.places
            waits = run.job.waiting_for or not places.has(job.id) or places.prohibition(job)
            if not run.job.progress.workers and waits:
                places.explain(job, run)
            if shortage := self._answers.shortages.get(job.id) or (self._journal.shortage if ending else None):
                job.status = f"ended; its result is kept in memory until there is disk space: {shortage}"
                job.waiting_for = job_pb2.WAITING_FOR_STORAGE
            elif ending:
                job.status = "ended; its result is being written"
                job.ClearField("waiting_for")
            elif self._journal.shortage:
                job.status += f"; its events are kept in memory until there is disk space: {self._journal.shortage}"
        return job

    async def list(self, page_size: int, page_token: str, reader: str | None = None) -> tuple[list[job_pb2.Job], str]:
        """A page of jobs, the newest first, and the next page's token. With a `reader`, those that are his or shared."""
        if page_token and not (page_token.isascii() and page_token.isdigit() and len(page_token) < 19):
            raise invalid(Violation("page_token", "is not a token that this server issued"))
        size = min(page_size or 50, 1000)
        before = int(page_token) if page_token else None
        page = await self._journal.run(self._storage.jobs, size + 1, before, reader)
        jobs: list[job_pb2.Job] = []
        room = _PAGE_BYTES
        for _, job in page[:size]:
            room -= job.ByteSize()
            if jobs and room < 0:
                break
            jobs.append(self._with_progress(job))
        token = str(page[len(jobs) - 1][0]) if len(page) > len(jobs) else ""
        return jobs, token

    async def watch(self, job_id: str, after: int, until_now: bool = False) -> AsyncIterator[training_service_pb2.Event]:
        """The events of a job, as `Journal.watch` gives them. Raises ThalwegError if there is no such job."""
        await self.get(job_id)
        async for event in self._journal.watch(job_id, after, until_now):
            yield event

    async def story(self, job_id: str) -> Sequence[training_service_pb2.StoryEntry]:
        """What was decided about a job lately. Raises ThalwegError if there is no such job."""
        await self.get(job_id)
        story = self._lives.stories.find(job_id)
        entries = []
        for entry in story.entries() if story else []:
            told = training_service_pb2.StoryEntry(source=entry.teller.value, text=entry.text)
            told.time.FromMicroseconds(int(entry.time * 1e6))
            entries.append(told)
        return entries

    async def workers(self, job_id: str) -> training_service_pb2.ListWorkersResponse:
        """The workers of a job. Raises ThalwegError if there is no such job."""
        await self.get(job_id)
        run = self._lives.run(job_id)
        return run.workers() if run else training_service_pb2.ListWorkersResponse()

    async def parameters(self, job_id: str) -> Download[training_service_pb2.ParametersHeader]:
        """A job's parameters. Raises ThalwegError if it has none."""
        later = "The parameters are available as soon as there is disk space."
        while True:
            await self._answers.wait(job_id, self._lives.rest(job_id), later)
            run = self._lives.run(job_id)
            if run is None:
                break
            now = await run.snapshot()
            if now:
                return now
        job = await self.get(job_id)
        kept = await self._journal.run_files(self._storage.parameters, job_id)
        return kept or await self._last_kept(job)

    async def _last_kept(self, job: job_pb2.Job) -> Download[training_service_pb2.ParametersHeader]:
        """The parameters of a job's last checkpoint. Raises ThalwegError if there is none."""
        job_id = job.id
        try:
            checkpoint, _ = await self._journal.run_aside(self._storage.checkpoints(job_id).latest)
        except NewerCheckpointError as error:
            raise ThalwegError("NO_PARAMETERS", {"job": job_id}) from error
        if checkpoint is None:
            _check_kept(job)
            raise ThalwegError("NO_PARAMETERS", {"job": job_id})
        header = header_of(checkpoint.prepared, checkpoint.position.version)
        header.sha256 = await asyncio.to_thread(layouts.digest, checkpoint.parameters)
        return Download(header, [checkpoint.parameters])

    async def trajectory(self, job_id: str) -> Download[training_service_pb2.TrajectoryHeader]:
        """A job's trajectory. Raises ThalwegError if it kept none."""
        await self._answers.wait(job_id, self._lives.rest(job_id), "The trajectory is available as soon as there is disk space.")
        job = await self.get(job_id)
        if job_id in self._lives.runs.of:
            raise ThalwegError("JOB_NOT_ENDED", {"job": job_id})
        kept = await self._journal.run_files(self._storage.trajectory, job_id)
        if kept is None:
            _check_kept(job)
            limit = f"only models of at most {MAX_BYTES >> 21} MiB of parameters record one, from the first parameters on"
            raise ThalwegError("NO_TRAJECTORY", {"job": job_id, "problem": limit})
        return kept


def _check_kept(job: job_pb2.Job) -> None:
    """Raises ThalwegError if a job's result was removed."""
    if job.HasField("result_removed_time"):
        time = f"{job.result_removed_time.ToDatetime():%Y-%m-%d %H:%M} UTC"
        raise ThalwegError("RESULT_REMOVED", {"job": job.id, "time": time})
