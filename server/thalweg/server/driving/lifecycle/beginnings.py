"""The beginning of a run: from a job's record, or, to end the job, from nothing."""

import logging

from thalweg.contract.errors import ThalwegError
from thalweg.server.deciding.lifecycle import events
from thalweg.server.deciding.lifecycle.decisions import Start
from thalweg.server.deciding.story import Story
from thalweg.server.driving.lifecycle.recovery import Recovery
from thalweg.server.driving.lifecycle.result_writer import ResultWriter
from thalweg.server.driving.lifecycle.runs import Runs
from thalweg.server.storage.journal import Journal
from thalweg.v1 import job_pb2

_log = logging.getLogger(__name__)


class Beginnings:
    """Carries out what is decided about the beginning of runs, and gives the event with which that ends.

    Belongs to the server's event loop.
    """

    def __init__(self, journal: Journal, writer: ResultWriter, recovery: Recovery, runs: Runs) -> None:
        self._journal = journal
        self._writer = writer
        self._recovery = recovery
        self._runs = runs

    async def start(
        self, job_id: str, story: Story, start: Start, reason: str, max_seconds: float | None = None
    ) -> events.RunStarted | events.StartFailed:
        """Makes a run for a job on record, with another time limit if one is given."""
        if start in (Start.CHECKPOINT, Start.FAILURE):
            # What the run before has left is on its way to the disk.
            await self._writer.settled()
            await self._journal.settled()
        try:
            if start is Start.FAILURE:
                return self._fail(job_id, story, reason)
            return await self._go_on(job_id, story, start, reason, max_seconds)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this job's
            return self.failed(job_id, start, error)

    def _fail(self, job_id: str, story: Story, reason: str) -> events.RunStarted:
        job = job_pb2.Job()
        job.CopyFrom(self._runs.of[job_id].job)
        self._runs.begin(job, story)
        return events.RunStarted(job.paused, reason)

    async def _go_on(self, job_id: str, story: Story, start: Start, reason: str, max_seconds: float | None) -> events.RunStarted:
        found = await self._recovery.read(job_id, start, max_seconds)
        run = self._runs.begin(found.job, story, found.checkpoint, found.recorded)
        for problem in found.problems:
            run.telemetry.notice(problem)
        run.telemetry.enter(job_pb2.JOB_STATE_QUEUED, f"{reason} {found.where}")
        _log.info("job %s: %s %s", job_id, reason, found.where)
        return events.RunStarted(found.job.paused, found.refusal)

    def failed(self, job_id: str, start: Start, error: Exception) -> events.StartFailed:
        """No run could be made."""
        if not isinstance(error, ThalwegError):
            _log.error("job %s: cannot continue", job_id, exc_info=error)
        # A run that was given up stays until another one takes its place.
        if start not in (Start.CHECKPOINT, Start.FAILURE):
            self._runs.forget(job_id)
        return events.StartFailed(error)

    async def set_aside(self, job_id: str, reason: str) -> events.WasSetAside | events.StartFailed:
        """Records that a job has failed without a run."""
        try:
            await self._recovery.set_aside(job_id, reason)
        except Exception as error:  # noqa: BLE001 - the server does not start
            return events.StartFailed(error)
        return events.WasSetAside()
