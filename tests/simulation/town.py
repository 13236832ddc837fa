"""The jobs of a server with imaginary workers, on a disk that fills up, with shards that are lost and a server that dies.

Storage, journal and runs are the server's own; what is asked for and what goes wrong is drawn from a seed. Tasks of an event loop
and threads take their turns as they come, so that a seed gives the same calls, and not the same schedule.
"""

import asyncio
import errno
import random
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.schedules import spec_of
from tests.simulation.worker import LAYOUT, TRAIN_SAMPLES, ImaginaryWorker, noise
from thalweg.contract import frames
from thalweg.contract.errors import ThalwegError
from thalweg.contract.states import ENDED
from thalweg.learning.optimizers import OptimizerState
from thalweg.server.arrays.local import LocalArrays
from thalweg.server.arrays.sharded.registry import ShardLink
from thalweg.server.driving.job.driver import JobDriver
from thalweg.server.driving.jobs import Jobs
from thalweg.server.settings import RunSettings
from thalweg.server.storage.folder import DataFolder
from thalweg.server.storage.thinning import BOUNDS, Bounds
from thalweg.v1 import job_pb2, training_service_pb2
from thalweg.v1 import parameter_service_pb2 as pb

_JOB = "bulk"
_MAX_JOBS = 6
# No call may take longer, whatever happens.
CALL_SECONDS = 30.0
# What a call may be answered with, where what it asks for cannot be.
_ANSWERS = {"JOB_NOT_FOUND", "JOB_ENDED", "JOB_NOT_ENDED", "NOT_RESUMABLE", "NO_PARAMETERS", "STORAGE_FULL", "OUT_OF_MEMORY"}


class FillingStorage(DataFolder):
    """A data folder on a disk that can be full."""

    full = False

    def record(self, events: Iterable[tuple[str, training_service_pb2.Event]]) -> None:
        self._need_room(sqlite3.OperationalError("database or disk is full"))
        super().record(events)

    def insert_job(self, job: job_pb2.Job, request_id: str, name: str) -> job_pb2.Job | None:
        self._need_room(sqlite3.OperationalError("database or disk is full"))
        return super().insert_job(job, request_id, name)

    def save_parameters(self, *arguments: Any) -> None:
        self._need_room(OSError(errno.ENOSPC, "No space left on device"))
        super().save_parameters(*arguments)

    def probe(self) -> None:
        self._need_room(OSError(errno.ENOSPC, "No space left on device"))
        super().probe()

    def thin(self) -> bool:
        self._need_room(sqlite3.OperationalError("database or disk is full"))
        return super().thin()

    def _need_room(self, error: Exception) -> None:
        if self.full:
            raise error


class _Street:
    """What lies between one worker and its run."""

    def __init__(self, run: JobDriver) -> None:
        self.run = run
        self.leaf = noise
        self.prepared = pb.Prepared(layout=LAYOUT, train_samples=TRAIN_SAMPLES, metrics=("accuracy",))

    def to_worker(self, worker: ImaginaryWorker, message: pb.WorkResponse) -> None:
        self._soon(lambda: worker.handle(message) if worker.alive else None)

    def to_server(self, worker: ImaginaryWorker, message: pb.WorkRequest) -> None:
        request = frames.unpacked(message)
        self._soon(lambda: self.run.receive(worker.worker, request) if worker.alive else None)

    def _soon(self, action: Callable[[], object]) -> None:
        asyncio.get_running_loop().call_soon(action)

    def evicted(self, worker: ImaginaryWorker, error: ThalwegError | None) -> None:
        assert error is None, f"an honest worker was refused: {error}"
        worker.alive = False

    def let_go(self, worker: ImaginaryWorker) -> None:
        worker.alive = False

    def beat(self, worker: ImaginaryWorker) -> None:
        pass


class Town:
    """A server's jobs, those who ask something of them, and everything that goes wrong."""

    def __init__(self, folder: Path, seed: int, bounds: Bounds = BOUNDS) -> None:
        self._bounds = bounds
        self.random = random.Random(seed)
        self.folder = folder
        self.jobs: Jobs
        self.calls: dict[str, int] = {}
        self._known: list[str] = []
        self._workers: dict[int, tuple[ImaginaryWorker, JobDriver]] = {}
        self._number = 0
        # How many calls of this round change what another call was answered, by job.
        self._begun: dict[str, int] = {}
        # Jobs of which an event is or was rejected: these alone may fail.
        self.poisoned: set[str] = set()
        self._no_memory = False

    @property
    def storage(self) -> FillingStorage:
        """The data folder as the server that runs now has it."""
        assert isinstance(self.jobs.storage, FillingStorage)
        return self.jobs.storage

    async def start(self) -> None:
        """A server starts on the data folder."""
        storage = FillingStorage(self.folder, self._bounds)
        self.jobs = Jobs(storage, RunSettings(checkpoint_seconds=self.random.choice([0.0, 0.01, 1.0])), 3)
        await self.jobs.start(resume_unfinished=True)

    async def live(self, calls: int) -> None:
        """Makes calls, several at a time, while things go wrong; then everything ends well."""
        with self._scarce_memory():
            await self._live(calls)

    async def _live(self, calls: int) -> None:
        usual = [self._nothing, self._nothing, self._work, self._work]
        mishaps = [*usual, self._lose_shard, self._fill, self._poison, self._take_memory]
        await self.start()
        for _ in range(calls):
            self._begun = {}
            actions = [self._some_call() for _ in range(self.random.randint(1, 4))]
            self.random.choice(mishaps)()
            await asyncio.gather(*actions)
            self._work()
            if self.random.random() < 0.1:
                await self._restart()
        self.storage.full = False
        for job_id in list(self._known):
            await self._call("resume", job_id)
            self._work()
        async with asyncio.timeout(CALL_SECONDS):
            while self.jobs.lives.runs.of or self.jobs.journal.room.shortage:
                self._work()
                await asyncio.sleep(0.001)

    async def stop(self) -> None:
        """The server stops."""
        self.storage.full = False
        self.jobs.stopping = True
        await self.jobs.stop()

    async def _recorded(self) -> list[job_pb2.Job]:
        return [job for _, job in await self.jobs.journal.run(self.storage.jobs, 1000)]

    def _some_call(self) -> Awaitable[None]:
        kind = self.random.choice(["create", "cancel", "cancel", "scale", "scale", "resume", "delete", "parameters", "get"])
        if kind == "create" or not self._known:
            return self._create() if len(self._known) < _MAX_JOBS else self._pause()
        return self._call(kind, self.random.choice(self._known))

    async def _pause(self) -> None:
        await asyncio.sleep(self.random.choice([0, 0.001, 0.01]))

    async def _create(self) -> None:
        request = training_service_pb2.CreateJobRequest(spec=spec_of(_JOB))
        job = await self._answer("create", self.jobs.create(request), {"STORAGE_FULL"})
        if job:
            self._known.append(job.id)

    async def _answer(self, what: str, call: Coroutine[Any, Any, Any], refusals: set[str]) -> Any:
        """What a call is answered with; None if it is refused for one of some reasons."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await call
        except TimeoutError:
            raise AssertionError(f"{what} is not answered") from None
        except ThalwegError as error:
            if error.reason not in refusals:
                raise AssertionError(f"{what}: {error}") from error
            return None

    async def _call(self, kind: str, job_id: str) -> None:
        workers = self.random.randint(1, 9)
        arguments = (job_id, workers) if kind == "scale" else (job_id,)
        changes = kind in ("resume", "scale", "delete")
        self._begun[job_id] = self._begun.get(job_id, 0) + changes
        asked = self.jobs.queries if kind in ("parameters", "get") else self.jobs
        answer = await self._answer(f"{kind} of {job_id}", getattr(asked, kind)(*arguments), _ANSWERS)
        if kind == "delete" and await self.jobs.journal.run(self.storage.job, job_id) is None and job_id in self._known:
            self._known.remove(job_id)
        if answer is None:
            return
        self.calls[kind] = self.calls.get(kind, 0) + 1
        # What was answered holds, unless somebody has asked for something else meanwhile.
        if self._begun[job_id] == changes:
            assert kind != "cancel" or answer.state in ENDED, f"{job_id} was cancelled and is {answer.status}"
            assert kind != "scale" or answer.spec.training.workers == workers, f"{job_id} was not scaled"

    def _work(self) -> None:
        """Each run that may have workers gets one, if it has none."""
        for job_id in list(self._known):
            run = self.jobs.run(job_id)
            if run and self.jobs.places.has(job_id) and not any(run is other for _, other in self._workers.values()):
                self._number += 1
                street: Any = _Street(run)
                worker = ImaginaryWorker(street, self._number)
                self._workers[self._number] = worker, run
                run.join(worker)
        for number, (worker, run) in list(self._workers.items()):
            if run.over.is_set() or not worker.alive:
                worker.alive = False
                run.leave(number)
                del self._workers[number]

    def _nothing(self) -> None:
        pass

    def _lose_shard(self) -> None:
        shard = ShardLink("imaginary:1")
        self.jobs.shards.attending.append(shard)
        self.jobs.shard_lost(shard)

    def _fill(self) -> None:
        self.storage.full = not self.storage.full

    def _take_memory(self) -> None:
        """There is no memory for copies, or there is again."""
        self._no_memory = not self._no_memory

    @contextmanager
    def _scarce_memory(self) -> Iterator[None]:
        copy = LocalArrays.copy

        def scarce(arrays: LocalArrays, then: Callable[[OptimizerState], object], *, state: bool) -> None:
            if self._no_memory:
                raise MemoryError("no memory for a copy")
            copy(arrays, then, state=state)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LocalArrays, "copy", scarce)
            yield

    def _poison(self) -> None:
        """Something else takes the number of the next event of a job."""
        if self._known and not self.storage.full:
            job_id = self.random.choice(self._known)
            self.poisoned.add(job_id)

            def poison() -> None:
                event = training_service_pb2.Event(sequence=self.storage.last_sequence(job_id) + 1)
                event.notice.text = "poison"
                DataFolder.record(self.storage, [(job_id, event)])

            asyncio.get_running_loop().run_in_executor(self.jobs.journal._thread, poison)

    async def _restart(self) -> None:
        """The server stops, or dies, and another one starts."""
        if self.random.random() < 0.5:
            await self.stop()
        else:
            await self._die()
        self._workers = {}
        await self.start()

    async def _die(self) -> None:
        """Nothing more is written, as if the process had been killed."""
        jobs, here = self.jobs, asyncio.current_task()
        for task in asyncio.all_tasks():
            code = getattr(task.get_coro(), "cr_code", None)
            if task is not here and code and "/thalweg/server/" in code.co_filename:
                task.cancel()
        jobs.places.close()
        for _ in range(10):
            await asyncio.sleep(0)
        for thread in (jobs.journal._thread, jobs.journal._background, jobs.journal._files):
            thread.shutdown(cancel_futures=True)
        jobs.storage.close()
        jobs.lives.runs.close()
