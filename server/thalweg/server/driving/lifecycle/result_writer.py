"""What of a job is kept on disk besides its events: checkpoints while it runs, and what comes of it when it ends."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from thalweg.contract.errors import ThalwegError
from thalweg.server.driving.job.outcome import JobOutcome
from thalweg.server.storage.checkpoints import Checkpoint
from thalweg.server.storage.interface import Storage
from thalweg.server.storage.journal import DISK_SECONDS, Journal
from thalweg.server.storage.room import Shortage
from thalweg.server.telemetry import Clock, Telemetry
from thalweg.v1 import training_service_pb2

_log = logging.getLogger(__name__)

# Is told how many bytes a checkpoint has, how many seconds it took, and what the problem was, if it is not on disk.
Written = Callable[[int, float, str], object]


class ResultWriter:
    """Writes for the jobs of one server, in the background. Belongs to its event loop."""

    def __init__(self, storage: Storage, journal: Journal, clock: Clock) -> None:
        self._storage = storage
        self._journal = journal
        self._clock = clock
        self._saving: set[asyncio.Task[None]] = set()

    def save(self, job_id: str, checkpoint: Checkpoint, written: Written) -> None:
        """Writes a checkpoint while the job goes on."""
        saving = asyncio.create_task(self._save(job_id, checkpoint, written))
        self._saving.add(saving)
        saving.add_done_callback(self._saving.discard)

    async def settled(self) -> None:
        """Waits for the checkpoints that are being written."""
        await asyncio.gather(*self._saving, return_exceptions=True)

    async def _save(self, job_id: str, checkpoint: Checkpoint, written: Written) -> None:
        began, size, problem = self._clock(), 0, ""
        try:
            size = await self._write(job_id, checkpoint)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next one is tried
            problem = str(error) or type(error).__name__
        if problem:
            _log.error("job %s: cannot write a checkpoint: %s", job_id, problem)
        written(size, self._clock() - began, problem)

    async def _write(self, job_id: str, checkpoint: Checkpoint) -> int:
        """Makes a checkpoint durable and gives its size. It may not be ahead of the events on disk: the steps before it are never
        taken again. Raises OSError.
        """
        try:
            await asyncio.wait_for(self._journal.settled(), DISK_SECONDS)
        except TimeoutError:
            raise OSError("the events before it cannot be written") from None
        return await self._journal.run_aside(self._storage.checkpoints(job_id).write, checkpoint)

    async def keep(self, outcome: JobOutcome, telemetry: Telemetry, tell: Callable[[Shortage | None], object]) -> JobOutcome:
        """Makes what a job leaves durable: its result, and where it was if it ended before its time.

        While there is no room, it is kept in memory and tried again; `tell` hears of that. Gives the outcome as it is then:
        if the result cannot be kept for another reason, the job has failed.
        """
        try:
            # Memory comes back when other jobs end.
            outcome = await self._journal.room.write(outcome.sealed, tell, also=(MemoryError,))
            await self._journal.room.write(partial(self._keep_result, outcome), tell, also=(MemoryError,))
        except Exception as error:  # noqa: BLE001 - whatever it is, the job ends
            _log.exception("job %s: cannot keep its parameters", outcome.job_id)
            outcome = outcome.failed(str(ThalwegError("STORAGE_FAILED", {"problem": str(error)})))
        outcome = await self._keep_trajectory(outcome)
        # What is on its way would otherwise come after it.
        await self.settled()
        if outcome.checkpoint:
            try:
                await self._journal.room.write(partial(self._write, outcome.job_id, outcome.checkpoint), tell)
            except Exception as error:  # noqa: BLE001 - whatever it is, the job ends
                problem = f"no checkpoint of the last step could be saved: {error or type(error).__name__}"
                outcome = outcome.with_problem(problem)
        for problem in outcome.problems:
            telemetry.notice(problem)
        return outcome

    async def _keep_result(self, outcome: JobOutcome) -> None:
        if outcome.header is not None and outcome.slab is not None:
            await self._journal.run_files(self._storage.save_parameters, outcome.job_id, outcome.header, outcome.slab)

    async def _keep_trajectory(self, outcome: JobOutcome) -> JobOutcome:
        if outcome.header is None or outcome.trajectory is None:
            return outcome
        header = training_service_pb2.TrajectoryHeader(layout=outcome.header.layout, versions=outcome.trajectory.versions)
        try:
            slabs = outcome.trajectory.slabs
            if slabs:
                await self._journal.run_files(self._storage.save_trajectory, outcome.job_id, header, slabs)
        except Exception as error:  # noqa: BLE001 - the weights are there; a picture less is no failure
            return outcome.with_problem(f"the trajectory could not be saved: {error or type(error).__name__}")
        return outcome

    async def remove_checkpoints(self, job_id: str) -> None:
        """Removes the checkpoints of a job that needs them no more."""
        try:
            await self._journal.run_aside(self._storage.checkpoints(job_id).remove)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job ends
            # They take room until the job is deleted, and do no other harm.
            _log.error("job %s: cannot remove its checkpoints: %s", job_id, error)
