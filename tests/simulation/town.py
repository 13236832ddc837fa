"""The jobs of a server with imaginary workers: those who ask something of them, and everything that goes wrong.

Journal, lifecycle, drivers and upkeep are the server's own, on storage in memory or in a folder. Time and threads of the event
loop are imaginary: a seed gives the same run again.
"""

import asyncio
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from tests.simulation.ground import Ground
from tests.simulation.schedules import spec_of
from tests.simulation.street import Street
from tests.simulation.town_loop import SimulatedLoop
from tests.simulation.worker import ImaginaryWorker
from thalweg.contract.errors import ThalwegError
from thalweg.contract.states import ENDED
from thalweg.learning.optimizers import OptimizerState
from thalweg.server.arrays import parameters
from thalweg.server.arrays.local import LocalArrays
from thalweg.server.arrays.sharded.registry import ShardLink
from thalweg.server.deciding.workers.failures import MAX_REPORTS
from thalweg.server.driving.answers import ANSWER_SECONDS
from thalweg.server.driving.job.driver import JobDriver
from thalweg.server.driving.jobs import Jobs
from thalweg.server.settings import RunSettings
from thalweg.server.storage import journal
from thalweg.server.storage.thinning import Bounds
from thalweg.v1 import job_pb2, training_service_pb2
from thalweg.v1 import parameter_service_pb2 as pb

# The jobs that are created, by their names.
JOBS = {name.replace(", ", "-").replace(" ", "-"): name for name in ("bulk", "bulk, one microbatch", "bulk, clipped", "local")}
_MAX_JOBS = 6
# The time limit of every other job.
_LIMIT_SECONDS = 0.05
# No call may take longer, whatever happens: one that is forgotten is answered later, with what happened meanwhile.
CALL_SECONDS = ANSWER_SECONDS - 5.0
# How long everything may take that is to end when nothing goes wrong any more.
_END_SECONDS = 120.0
_SILENCE_SECONDS = 0.5
_WORKERS_SECONDS = 0.02
# What a call may be answered with, where what it asks for cannot be.
_ANSWERS = {
    "JOB_NOT_FOUND",
    "JOB_ENDED",
    "JOB_NOT_ENDED",
    "NOT_RESUMABLE",
    "NO_PARAMETERS",
    "STORAGE_FULL",
    "STORAGE_FAILED",
    "OUT_OF_MEMORY",
}
_SPECS = {name: spec_of(job) for name, job in JOBS.items()}
MISHAPS = (
    "lose_shard",
    "fill",
    "breakdown",
    "poison",
    "take_memory",
    "stall",
    "silence",
    "lose_worker",
    "fail_late",
    "disagree",
    "stop",
    "die",
    "die_writing",
    "damage",
    "upgrade",
)


# Why a job may fail that has done nothing wrong.
EXCUSES = ("set aside: the server died",)


def excused(job: job_pb2.Job) -> bool:
    """Whether a job failed for a reason for which it may."""
    return any(excuse in job.error for excuse in EXCUSES)


class Town:
    """Servers one after another, their jobs and clients, and mishaps of some `kinds`."""

    def __init__(self, ground: Ground, loop: SimulatedLoop, random_: random.Random, kinds: list[str], bounds: Bounds) -> None:
        self.ground = ground
        self.jobs: Jobs
        self.counts = Counter[str]()
        # Jobs of which an event is or was rejected: these alone may fail.
        self.poisoned: set[str] = set()
        # What must not happen, and did.
        self.problems: list[str] = []
        self._loop = loop
        self.random = random_
        self._kinds = kinds
        self._bounds = bounds
        self._known: list[str] = []
        self._workers: dict[int, tuple[ImaginaryWorker, JobDriver]] = {}
        self._number = 0
        self._failing = Counter[JobDriver]()
        # How many calls of this round change what another call was answered, by job.
        self._begun = Counter[str]()
        # What was answered, and holds also after the server died: jobs that have ended, and how many workers jobs want.
        self._ended: set[str] = set()
        self._scaled: dict[str, int] = {}
        self._down = asyncio.Event()
        self._no_memory = False
        # Whether there is a server, whether it is going to stop and not to die, and what happens before the next one starts.
        self._serving = self._clean = False
        # Whether the machine went down since the server started: such a server cannot stop.
        self._crashed = False
        self._meanwhile: list[Callable[[], object]] = []
        loop.crashed = self._crash

    async def start(self) -> None:
        """A server starts: again, if the machine goes down meanwhile, and if the disk refuses, when it does no more."""
        while True:
            self.counts["servers"] += 1
            self._crashed = False
            self._down.clear()
            try:
                if await self._unless_down(self._start()):
                    self._serving = True
                    return
            except (OSError, sqlite3.OperationalError):
                assert self.ground.full or self.ground.broken, "the server does not start"
                self.ground.full = self.ground.broken = False
            await self._kill_server()
            self.ground.crash()

    async def _start(self) -> None:
        settings = RunSettings(_SILENCE_SECONDS, self.random.choice([0.0, 0.01, 1.0]))
        self.jobs = Jobs(self.ground.open(self._bounds), settings, 3, clock=self._loop.time)
        await self.jobs.start(resume_unfinished=True)

    async def live(self, rounds: int) -> None:
        """Makes calls, several at a time, while things go wrong; then everything ends well, and the last server stops."""
        with self._circumstances(), self._loop.clock():
            await self.start()
            living = asyncio.create_task(self._keep_workers())
            for _ in range(rounds):
                await self._round()
            self._mend()
            async with asyncio.timeout(_END_SECONDS):
                await self._end_all()
            living.cancel()
            self._hold_jobs()
            await self._stop_server()
        assert not self.problems, self.problems[0]

    def _mend(self) -> None:
        """Nothing goes wrong any more."""
        self._kinds, self._no_memory = [], False
        self.ground.full = self.ground.broken = False
        self.ground.crash_within(1 << 62)

    async def _end_all(self) -> None:
        """All jobs go on to their end: none is paused, and those that have not succeeded are resumed, without limits."""
        limited = True
        while limited:
            for _, job in self._on_record():
                with suppress(ThalwegError):
                    await self.jobs.resume(job.id, 0.0)
            await self._ended_all()
            limited = any("time limit" in job.status for job in self._hold_jobs().values())

    async def _ended_all(self) -> None:
        while self.jobs.lives.runs.of or self.jobs.journal.room.shortage:
            for run in self.jobs.lives.living():
                if run.job.paused:
                    # It may be ending.
                    with suppress(ThalwegError):
                        await self.jobs.scale(run.job.id, 1)
            await asyncio.sleep(_WORKERS_SECONDS)

    async def _round(self) -> None:
        self._begun.clear()
        calls = [asyncio.create_task(self._some_call()) for _ in range(self.random.randint(1, 4))]
        if self._kinds and self.random.random() < 0.7:
            mishap = self.random.choice(self._kinds)
            self.counts[mishap] += 1
            getattr(self, f"_{mishap}")()
        if not await self._unless_down(self._answered(calls)):
            await self._replace_server(calls)
        for call in calls:
            if not call.cancelled():
                call.result()
        assert not self.problems, self.problems[0]
        self._hold_jobs()

    async def _answered(self, calls: Iterable[asyncio.Task[None]]) -> None:
        await asyncio.wait(calls)

    def _on_record(self) -> list[tuple[int, job_pb2.Job]]:
        return self.jobs.storage.jobs(1000)

    # Calls.

    async def _some_call(self) -> None:
        kind = self.random.choice(["create", "cancel", "cancel", "scale", "scale", "resume", "delete", "parameters", "get"])
        if kind != "create" and self._known:
            await self._call(kind, self.random.choice(self._known))
        elif len(self._known) < _MAX_JOBS:
            await self._create()
        else:
            await asyncio.sleep(self.random.choice([0, 0.001, 0.1]))

    async def _create(self) -> None:
        name = self.random.choice(list(JOBS))
        request = training_service_pb2.CreateJobRequest(spec=_SPECS[name])
        request.spec.name = name
        if len(self._known) % 2:
            request.spec.training.max_seconds = _LIMIT_SECONDS
        job = await self._answer("create", self.jobs.create(request), {"STORAGE_FULL", "STORAGE_FAILED"})
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
        workers = self.random.randint(0, 4)
        arguments = (job_id, workers) if kind == "scale" else (job_id,)
        changes = kind in ("resume", "scale", "delete")
        self._begun[job_id] += changes
        # A job that is resumed is not paused.
        if kind == "scale" or (kind == "resume" and self._scaled.get(job_id) == 0):
            self._scaled.pop(job_id, None)
        if kind in ("resume", "delete"):
            self._ended.discard(job_id)
        if kind == "delete":
            if self.ground.broken:
                # A job whose end finds no room is given up to be deleted. If that fails as well, a restart resumes it.
                return
            # It may be deleted though nobody hears of it.
            self._known.remove(job_id)
        asked = self.jobs.queries if kind in ("parameters", "get") else self.jobs
        answer = await self._answer(f"{kind} of {job_id}", getattr(asked, kind)(*arguments), _ANSWERS)
        if kind == "delete":
            if self.jobs.storage.job(job_id):
                self._known.append(job_id)
            else:
                self.counts[kind] += 1
        # A deletion is answered with nothing.
        if answer is None:
            return
        self.counts[kind] += 1
        # What was answered holds, unless somebody has asked for something else meanwhile.
        if self._begun[job_id] != changes:
            return
        if kind == "cancel":
            assert answer.state in ENDED, f"{job_id} was cancelled and is {answer.status}"
            self._ended.add(job_id)
        if kind == "scale":
            assert answer.state in ENDED or _wants(answer) == workers, f"{job_id} was not scaled to {workers}"
            self._scaled[job_id] = workers

    def _hold_jobs(self) -> dict[str, job_pb2.Job]:
        """The jobs on record. Of these, none fails whatever goes wrong around it."""
        on_record = {job.id: job for _, job in self._on_record()}
        for job in on_record.values():
            if "time limit is reached" in job.status:
                self.counts["limited"] += 1
            failed = job.state == job_pb2.JOB_STATE_FAILED and job.id not in self.poisoned and not excused(job)
            assert not failed, f"{job.id} failed: {job.error}"
        return on_record

    def _hold_promises(self) -> None:
        """What was answered is on record."""
        on_record = self._hold_jobs()
        for job_id in self._known:
            assert job_id in on_record, f"job {job_id} is lost"
        for job_id in (self._ended & on_record.keys()) - self.poisoned:
            assert on_record[job_id].state in ENDED, f"job {job_id} had ended, and has not any more"
        for job_id in (self._scaled.keys() & on_record.keys()) - self.poisoned:
            job, workers = on_record[job_id], self._scaled[job_id]
            assert job.state in ENDED or _wants(job) == workers, f"{job_id} was not scaled for good"

    # Workers.

    async def _keep_workers(self) -> None:
        """Each run that may have workers gets one, if it has none."""
        while True:
            for run in self.jobs.lives.living() if self._serving else []:
                if self.jobs.places.has(run.job.id) and not run.job.paused and not self._workers_of(run):
                    self._join(run)
            for number, (worker, run) in list(self._workers.items()):
                # One that was let go and cannot hear it ends by itself, and its fleet starts another one.
                if run.over.is_set() or not worker.alive or (not worker.heard and number not in run._connections):
                    worker.alive = False
                    del self._workers[number]
                    run.leave(number)
            await asyncio.sleep(_WORKERS_SECONDS)

    def _workers_of(self, run: JobDriver) -> list[ImaginaryWorker]:
        return [worker for worker, other in self._workers.values() if other is run and worker.alive]

    def _join(self, run: JobDriver, **traits: Any) -> ImaginaryWorker:
        self._number += 1
        street: Any = Street(self._loop, self.random, run, self.problems.append)
        worker = ImaginaryWorker(street, self._number)
        for name, value in traits.items():
            setattr(worker, name, value)
        self._workers[self._number] = worker, run
        run.join(worker)
        return worker

    def _some_run(self, wanted: Callable[[JobDriver], object]) -> JobDriver | None:
        runs = [run for run in self.jobs.lives.living() if wanted(run) and not run.over.is_set()]
        return self.random.choice(runs) if runs else None

    def _some_worker(self) -> ImaginaryWorker | None:
        workers = [worker for worker, _ in self._workers.values() if worker.alive]
        return self.random.choice(workers) if workers else None

    # Mishaps.

    def _silence(self) -> None:
        """Nothing comes from a worker any more, or to it, and nobody is told."""
        if worker := self._some_worker():
            worker.heard = False

    def _lose_worker(self) -> None:
        if worker := self._some_worker():
            worker.alive = False

    def _fail_late(self) -> None:
        """A worker that comes after others got further says that it cannot do the job, and whose fault it takes that for."""
        run = self._some_run(lambda run: run.coordinator.version)
        if run:
            scope = self.random.choice([pb.Failure.SCOPE_UNSPECIFIED, pb.Failure.SCOPE_JOB, pb.Failure.SCOPE_NODE])
            at = "welcome"
            # Where many fail at their tasks, the job rightly fails.
            if scope == pb.Failure.SCOPE_NODE or self._failing[run] < MAX_REPORTS - 1:
                at = self.random.choice(["welcome", "differentiate"])
                self._failing[run] += at == "differentiate" and scope != pb.Failure.SCOPE_NODE
            self._join(run, fails=pb.Failure(problem="imaginary", scope=scope), fails_at=at)

    def _disagree(self) -> None:
        """A worker comes, late, that finds another number of samples."""
        if run := self._some_run(lambda run: run.coordinator.plan):
            self._join(run, disagrees=True)

    def _stall(self) -> None:
        """The server stands still for a while, and hears of nothing."""
        seconds = self.random.choice([0.1, 0.6, 2.0])
        self._loop.call_later(self.random.choice([0.0, 0.001, 0.02]), self._loop.stall, seconds)

    def _lose_shard(self) -> None:
        shard = ShardLink("imaginary:1")
        self.jobs.shards.attending.append(shard)
        self.jobs.shard_lost(shard)

    def _fill(self) -> None:
        self.ground.full = not self.ground.full

    def _breakdown(self) -> None:
        """Nothing can be written, for another reason, or it can again."""
        self.ground.broken = not self.ground.broken

    def _take_memory(self) -> None:
        """There is no memory for copies, or there is again."""
        self._no_memory = not self._no_memory

    @contextmanager
    def _circumstances(self) -> Iterator[None]:
        copy = LocalArrays.copy

        def scarce(arrays: LocalArrays, then: Callable[[OptimizerState], object], *, state: bool) -> None:
            if self._no_memory:
                raise MemoryError("no memory for a copy")
            copy(arrays, then, state=state)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LocalArrays, "copy", scarce)
            # Whatever job may be told that a shard which it needs is lost.
            patch.setattr(JobDriver, "needs", lambda *_: True)
            # Older events are merged all the time.
            patch.setattr(journal, "_THIN_SECONDS", 0.02)
            # Threads share out larger updates.
            patch.setattr(parameters, "_MIN_TO_SHARE", 1 << 30)
            yield

    def _poison(self) -> None:
        """Something else takes the number of the next event of a job."""
        if self._known:
            job_id, storage = self.random.choice(self._known), self.jobs.storage
            self.poisoned.add(job_id)

            def poison() -> None:
                event = training_service_pb2.Event(sequence=storage.last_sequence(job_id) + 1)
                event.notice.text = "poison"
                # Whether the disk takes it, or there is still such a job, does not matter.
                with suppress(OSError, sqlite3.Error):
                    storage.record([(job_id, event)])

            self._loop.run_in_executor(self.jobs.journal._thread, poison)

    # The end of a server, and what happens before the next one starts.

    def _stop(self) -> None:
        """The server is asked to stop."""
        self._clean = True
        self._die()

    def _crash(self) -> None:
        self._crashed = True
        self._down.set()

    def _die(self) -> None:
        self._loop.call_later(self.random.choice([0.0, 0.001, 0.01, 0.1]), self._down.set)

    def _die_writing(self) -> None:
        """The machine goes down at one of the next steps of a write."""
        self.ground.crash_within(self.random.randrange(30))

    def _damage(self) -> None:
        """The machine goes down, and a bit of a checkpoint turns meanwhile."""
        self._die()
        if self._known:
            job_id = self.random.choice(self._known)
            self._meanwhile.append(lambda: self.ground.damage(job_id))

    def _upgrade(self) -> None:
        """What the server leaves was written by an earlier release than the one that goes on."""
        self.random.choice([self._stop, self._die])()
        # Once, also if several are asked for before the server is gone.
        if self.ground.age not in self._meanwhile:
            self._meanwhile.append(self.ground.age)

    async def _replace_server(self, calls: Sequence[asyncio.Task[None]]) -> None:
        self.counts["stops" if self._clean and not self._crashed else "deaths"] += 1
        for call in calls:
            call.cancel()
        self._down.clear()
        await asyncio.gather(*calls, return_exceptions=True)
        if self._clean and not self._crashed:
            await self._unless_down(self._stop_server())
        await self._kill_server()
        self._clean = False
        self.ground.crash()
        for action in self._meanwhile:
            action()
        self._meanwhile.clear()
        await self.start()
        self._hold_promises()

    async def _stop_server(self) -> None:
        await self.jobs.write_checkpoints()
        self.jobs.stopping = True
        await self.jobs.stop()

    async def _kill_server(self) -> None:
        """Nothing more is written, as if the process had been killed."""
        self._serving = False
        threads = self.jobs.journal
        self._loop.kill(threads._thread, threads._background, threads._files)
        for worker, _ in self._workers.values():
            worker.alive = False
        self._workers.clear()
        # In the order in which they began, which is that of their names.
        for task in sorted(asyncio.all_tasks(), key=lambda task: (len(task.get_name()), task.get_name())):
            code = getattr(task.get_coro(), "cr_code", None)
            if code and "/thalweg/server/" in code.co_filename:
                task.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        self.jobs.places.close()
        self.jobs.lives.runs.close()

    async def _unless_down(self, work: Coroutine[Any, Any, None]) -> bool:
        """Whether something ends before the machine goes down. Raises what it raises."""
        task, down = asyncio.create_task(work), asyncio.create_task(self._down.wait())
        await asyncio.wait({task, down}, return_when=asyncio.FIRST_COMPLETED)
        down.cancel()
        if not task.done():
            task.cancel()
            return False
        task.result()
        return True


def _wants(job: job_pb2.Job) -> int:
    """How many workers a job wants now."""
    return 0 if job.paused else job.spec.training.workers
