"""The end of a job: what it leaves is made durable, then the state in which it ended; and its removal."""

import asyncio
import logging
import sqlite3
import time
from contextlib import suppress

from thalweg.contract.states import state_name
from thalweg.contract.text import visible
from thalweg.server.deciding.lifecycle import events
from thalweg.server.driving.answers import Answers
from thalweg.server.driving.job.driver import JobDriver
from thalweg.server.driving.job.outcome import JobOutcome
from thalweg.server.driving.lifecycle.result_writer import ResultWriter
from thalweg.server.driving.lifecycle.runs import Runs
from thalweg.server.storage.journal import DISK_SECONDS, Journal
from thalweg.server.storage.room import Shortage
from thalweg.v1 import training_service_pb2

_log = logging.getLogger(__name__)


class Endings:
    """Carries out what is decided about the end of jobs; what takes time gives the event with which it ends.

    Belongs to the server's event loop. `outcomes` has what the runs left that have ended.
    """

    def __init__(self, journal: Journal, answers: Answers, writer: ResultWriter, runs: Runs) -> None:
        self._journal = journal
        self._storage = journal.storage
        self._answers = answers
        self._writer = writer
        self._runs = runs
        self.outcomes: dict[str, JobOutcome] = {}
        # Set when files were deleted; held while files are deleted that a new job might need.
        self.untidy = asyncio.Event()
        self.removing = asyncio.Lock()

    async def keep(self, job_id: str) -> events.ResultKept:
        """Makes what a job leaves durable. The job ends whatever fails."""
        outcome = self.outcomes[job_id]

        def tell(shortage: Shortage | None) -> None:
            if shortage:
                self._answers.shortages[job_id] = shortage
            else:
                self._answers.shortages.pop(job_id, None)

        try:
            outcome = await self._writer.keep(outcome, self._runs.of[job_id].telemetry, tell)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job ends
            _log.exception("job %s: its result cannot be kept", job_id)
            outcome = outcome.failed(f"internal error: {type(error).__name__}: {error}")
        self.outcomes[job_id] = outcome
        return events.ResultKept(outcome.state)

    def record(self, job_id: str) -> str:
        """Records the state in which a job ended. Gives the problem, if it cannot be recorded."""
        outcome, run = self.outcomes[job_id], self._runs.of[job_id]
        job = run.job
        if outcome.result:
            job.result.CopyFrom(outcome.result)
        job.error = outcome.error
        if not job.HasField("end_time"):
            job.end_time.GetCurrentTime()
        job.ClearField("waiting_for")
        job.ClearField("paused")
        try:
            run.telemetry.enter(outcome.state, outcome.status)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job ends
            _log.exception("job %s: its end cannot be recorded", job_id)
            return f"{type(error).__name__}: {error}"
        return ""

    async def recorded(self, problem: str) -> events.EndDurable | events.EndFailed:
        """Waits until what was recorded is durable."""
        if problem:
            return events.EndFailed(problem)
        await self._journal.settled()
        return events.EndDurable()

    async def clear(self, job_id: str) -> events.Cleared:
        """Removes the checkpoints of a job that needs them no more."""
        try:
            await self._writer.remove_checkpoints(job_id)
        except Exception:  # noqa: BLE001 - they take room until the job is deleted, and do no other harm
            _log.exception("job %s: its checkpoints cannot be removed", job_id)
        return events.Cleared()

    async def abandon(self, work: asyncio.Task[None]) -> events.Abandoned:
        """Stops writing what a job leaves."""
        work.cancel()
        await asyncio.wait({work})
        await self._journal.files_settled()
        return events.Abandoned()

    def forget(self, job_id: str, problem: str) -> JobDriver | None:
        """A job has ended. Gives its run."""
        run, outcome = self._runs.forget(job_id), self.outcomes.pop(job_id, None)
        self._answers.shortages.pop(job_id, None)
        if problem:
            _log.error("job %s: its end is not recorded (%s); the next start of the server resumes it", job_id, problem)
        elif run and outcome:
            job = run.job
            self._runs.ended[job.state] += 1
            reason = f": {visible(job.error or job.status)}" if job.error or job.status else ""
            _log.info("job %s: ended as %s at step %d%s", job_id, state_name(job.state), job.progress.step, reason)
        return run

    async def remove_result(self, job_id: str) -> events.ResultRemoved:
        """Removes the result of a job that has ended, and says so in its events."""
        try:
            # Recorded first: what is removed is never missed.
            await self._journal.run(self._storage.note_result_removed, job_id, time.time())
            size = await self._journal.run_files(self._storage.remove_result, job_id)
            _log.info("job %s: its result was removed because of its age: %s bytes", job_id, f"{size:,}")
            await self._journal.open(job_id)
            notice = training_service_pb2.Notice(text="the result was removed because of its age: parameters and trajectory")
            self._journal.record(job_id, training_service_pb2.Event(notice=notice))
            # On a full disk it waits: the job stays as it is.
            with suppress(TimeoutError):
                await asyncio.wait_for(self._journal.settled(), DISK_SECONDS)
                self._journal.close(job_id)
        except (sqlite3.Error, OSError) as error:
            _log.warning("job %s: its result cannot be removed, the server will try again: %s", job_id, error)
            return events.ResultRemoved(str(error))
        self.untidy.set()
        return events.ResultRemoved()

    async def delete(self, job_id: str) -> events.Deleted | events.DeleteFailed:
        """Removes a job that has ended, with all that is kept of it."""
        try:
            async with self.removing:
                try:
                    await self._journal.run(self._storage.delete_job, job_id)
                except (sqlite3.Error, OSError) as error:
                    raise self._answers.refusal(error, "Nothing was removed.") from error
            await self._journal.run_files(self._storage.empty_bin)
        except Exception as error:  # noqa: BLE001 - the caller hears of it
            return events.DeleteFailed(error)
        self.untidy.set()
        return events.Deleted()
