"""All jobs of a server: accepting, finding, ending and removing them, and taking up those that a restart interrupted."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from functools import partial

from thalweg.contract import layout as layouts
from thalweg.contract.errors import ThalwegError, Violation, invalid
from thalweg.contract.layout import Slab
from thalweg.contract.states import ENDED, state_name
from thalweg.contract.text import visible
from thalweg.server import validation
from thalweg.server.arrays.budget import Budget
from thalweg.server.arrays.pool import ArithmeticPool
from thalweg.server.arrays.trajectory import MAX_BYTES
from thalweg.server.deciding.fleets import Fleets
from thalweg.server.deciding.queue import Candidate, Queue, choose
from thalweg.server.driving import acceptance
from thalweg.server.driving.answers import ANSWER_SECONDS, Answers
from thalweg.server.driving.attention import Attention
from thalweg.server.driving.downloads import Download
from thalweg.server.driving.foreign import ForeignSpecError, known
from thalweg.server.driving.initial import initial_slab
from thalweg.server.driving.job import JobDriver, header_of
from thalweg.server.driving.outcome import JobOutcome
from thalweg.server.driving.result_writer import ResultWriter
from thalweg.server.driving.telemetry import NO_WORKERS, NOTHING_RECORDED, Recorded
from thalweg.server.settings import DEFAULT_SETTINGS, RunSettings
from thalweg.server.sharding.registry import ShardLink, ShardRegistry
from thalweg.server.storage.checkpoints import Checkpoint, NewerCheckpointError
from thalweg.server.storage.database import Storage
from thalweg.server.storage.journal import DISK_SECONDS, Journal
from thalweg.server.storage.room import Shortage
from thalweg.server.streams.memory_peers import Sharing
from thalweg.v1 import job_pb2, training_service_pb2

_log = logging.getLogger(__name__)
# How often the end of a job is recorded anew if it breaks a constraint.
_RECORD_ATTEMPTS = 3
# A job that ran at so many deaths of the server in a row is not resumed by itself.
MAX_DEATHS = 3
# How long a server that stops waits for the checkpoints of its jobs.
_STOP_CHECKPOINT_SECONDS = 4.0
# A page of jobs stays well within gRPC's limit for a message.
_PAGE_BYTES = 1 << 20
# How soon it is noticed that a worker takes too long.
_TICK_SECONDS = 0.025
# Sharing workers out takes this share of the time at most, except where it takes less than that many seconds.
_ALLOT_SHARE, _QUICK_SECONDS = 0.2, 0.005
# How often room on the disk is given back that nothing needs.
_TIDY_SECONDS = 3600.0


class Jobs:
    """The jobs of one server, which runs so many of them at a time; 0 for no limit. Belongs to its event loop."""

    def __init__(
        self,
        storage: Storage,
        settings: RunSettings = DEFAULT_SETTINGS,
        max_running: int = 0,
        sharing: Sharing | None = None,
    ) -> None:
        self.storage = storage
        self.settings = settings
        self.max_running = max_running
        self._sharing = sharing
        # Whether the server is stopping, and those who leave it are not missed.
        self.stopping = False
        self._crew = ArithmeticPool()
        self._budget = Budget()
        self.journal = Journal(storage, self._events_rejected)
        self.answers = Answers(self.journal)
        self.fleets = Fleets()
        self.shards = ShardRegistry()
        self._runs: dict[str, JobDriver] = {}  # in the order in which they were accepted
        self._begun_before: set[str] = set()  # jobs that had begun when the server stopped
        self._queue = Queue({}, {})
        self._endings: dict[str, asyncio.Task[None]] = {}
        self._deaths: dict[str, int] = {}  # how often in a row the server had died while a job ran, when this one started
        self._progressed: set[str] = set()  # jobs of which this server has written a checkpoint
        self._rejected: set[str] = set()  # jobs that are ending, and of which an event was rejected
        self._accepting: set[asyncio.Task[job_pb2.Job]] = set()
        self._keeping = ResultWriter(storage, self.journal)
        self._going_back: dict[str, asyncio.Task[None]] = {}  # jobs whose run was given up, until they have another
        self._taking_up = asyncio.Lock()
        self._removing = asyncio.Lock()
        self._allotting: asyncio.TimerHandle | None = None
        self._allot_from = 0.0  # when there is time for it again
        self._ticker: asyncio.Task[None] | None = None
        self._tidier: asyncio.Task[None] | None = None
        self._untidy = asyncio.Event()

    async def start(self, resume_unfinished: bool, kept: Collection[str] = ()) -> None:
        """Resumes the jobs that have not ended: all, or those in `kept`. Records that the others were interrupted.

        Raises OSError if that cannot be recorded.
        """
        self.journal.start()
        before: int | None = None
        unfinished: list[job_pb2.Job] = []
        while page := await self.journal.run(self.storage.jobs, 100, before):
            unfinished += [job for _, job in page if job.state not in ENDED]
            before = page[-1][0]
        running = [job.id for job in unfinished if job.state == job_pb2.JOB_STATE_RUNNING and not job.paused]
        # Durable before any of them runs.
        self._deaths = await self.journal.run(self.storage.count_deaths, running)
        for job in reversed(unfinished):
            reason = self._why_not(job, resume_unfinished or job.id in kept)
            if reason:
                await self._set_aside(job, reason)
                continue
            begun = (job.state == job_pb2.JOB_STATE_RUNNING or job.progress.step) and not job.paused
            await self._take_up(job, "the server was restarted; the job")
            if begun:
                self._begun_before.add(job.id)
        self.allot()
        self._ticker = asyncio.create_task(self._tick())
        self._tidier = asyncio.create_task(self._tidy())
        try:
            await asyncio.wait_for(self.journal.settled(), DISK_SECONDS)
        except TimeoutError:
            raise OSError("nothing can be written there; is the disk full?") from None

    def _why_not(self, job: job_pb2.Job, wanted: bool) -> str:
        """Why a job that was not brought to its end is not resumed when the server starts; empty if it is."""
        if not wanted:
            return "interrupted: the process that ran this job ended before the job did"
        deaths = self._deaths.get(job.id, 0)
        if deaths >= MAX_DEATHS:
            return (
                f"set aside: the server died {deaths} times in a row while this job ran, before it wrote a checkpoint; "
                f"if the server was short of memory, give it more. Resume the job to try again"
            )
        try:
            job.spec.CopyFrom(known(job.spec))
        except ForeignSpecError as error:
            return (
                f"accepted by another release of Thalweg: {error}. The data folder was last used by release "
                f"{self.storage.written_by}; resume the job with the release that accepted it"
            )
        return ""

    async def _set_aside(self, job: job_pb2.Job, error: str) -> None:
        """Records that a job has failed without running. It can be resumed."""
        _log.warning("job %s: %s", job.id, error)
        await self.journal.open(job.id)
        job.error = error
        job.end_time.GetCurrentTime()
        job.state, job.status = job_pb2.JOB_STATE_FAILED, ""
        job.ClearField("waiting_for")
        changed = training_service_pb2.StateChanged(job=job)
        self.journal.record(job.id, training_service_pb2.Event(state_changed=changed))

    async def write_checkpoints(self) -> None:
        """Has the jobs that are training write checkpoints before the server stops, but does not wait for ever."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_CHECKPOINT_SECONDS):
                await asyncio.gather(*(run.write_checkpoint() for run in self._runs.values()))

    async def stop(self) -> None:
        """Waits for what is being written, but not for ever. Jobs that have not ended stay unfinished."""
        for task in (self._allotting, self._ticker, self._tidier, *self._going_back.values()):
            if task:
                task.cancel()
        written = (*self._accepting, *self._endings.values(), self._keeping.settled())
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*written, return_exceptions=True), DISK_SECONDS)
        self.answers.close()
        for run in self._runs.values():
            run.release()
        self._crew.close()
        if self._ticker:
            try:
                await self.journal.run(self.storage.stop_cleanly)
            except (sqlite3.Error, OSError) as error:
                _log.error("the server's clean stop cannot be recorded: %s", error)
        await self.journal.stop()

    async def _tick(self) -> None:
        attention = Attention(_TICK_SECONDS, self.settings.silence_seconds)
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            missed = attention.missed()
            if missed:
                _log.warning("the server was unresponsive for %.1f s", missed)
            self._tick_runs(missed)
            for shard in self.shards.silent(self.settings.silence_seconds, missed):
                shard.give_up()
                self.shard_lost(shard)

    async def _tidy(self) -> None:
        """Now and then, and after deletions, gives back room on the disk that nothing needs."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._untidy.wait(), _TIDY_SECONDS)
            self._untidy.clear()
            try:
                await self.journal.run(self.storage.remove_unused_uploads)
                # Step by step, so that nothing else waits for long.
                while await self.journal.run(self.storage.shrink):
                    pass
            except (OSError, sqlite3.Error) as error:
                _log.warning("unused disk space cannot be released: %s", error)

    def _tick_runs(self, missed: float) -> None:
        for run in list(self._runs.values()):
            run.tick(missed)

    async def _take_up(self, job: job_pb2.Job, what: str) -> JobDriver:
        """Queues a job that earlier runs have not brought to its end, at its last checkpoint."""
        await self.journal.open(job.id)
        refusal, checkpoint, problems = "", None, list[str]()
        try:
            checkpoint, problems = await self.journal.run_aside(self.storage.checkpoints(job.id).latest)
        except NewerCheckpointError as error:
            refusal = f"{error}. Resume the job with that release, or submit it again"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this job's
            _log.exception("job %s: its checkpoints cannot be read", job.id)
            refusal = f"its checkpoints cannot be read: {error or type(error).__name__}"
        steps, epochs = await self.journal.run(self.storage.told, job.id)
        for field in ("progress", "result", "error", "end_time", "waiting_for"):
            job.ClearField(field)
        where = "starts again from the beginning"
        recorded = Recorded(steps, epochs)
        if checkpoint:
            where = f"continues from step {checkpoint.position.version:,}"
            recorded = Recorded(steps, epochs, checkpoint.samples, checkpoint.seconds)
            job.progress.step = checkpoint.position.version
        else:
            job.ClearField("start_time")
        run = self._begin(job, checkpoint, recorded)
        for problem in problems:
            run.telemetry.notice(problem)
        run.telemetry.enter(job_pb2.JOB_STATE_QUEUED, f"{what} {where}")
        _log.info("job %s: %s %s", job.id, what, where)
        if refusal:
            run.fail(refusal)
        return run

    async def resume(self, job_id: str) -> job_pb2.Job:
        """Resumes a job that was cancelled or has failed. Raises ThalwegError if it has succeeded."""
        await self.answers.wait(
            job_id, self._resume(job_id), "The job is resumed; that is recorded as soon as there is disk space.", ANSWER_SECONDS
        )
        return await self.get(job_id)

    async def _resume(self, job_id: str) -> None:
        await self.ended(job_id)
        async with self._taking_up:
            if job_id not in self._runs:
                job = await self.get(job_id)
                if job.state == job_pb2.JOB_STATE_SUCCEEDED:
                    raise ThalwegError("NOT_RESUMABLE", {"job": job_id, "problem": "it has succeeded"})
                try:
                    job.spec.CopyFrom(known(job.spec))
                except ForeignSpecError as error:
                    raise ThalwegError("NOT_RESUMABLE", {"job": job_id, "problem": str(error)}) from error
                self._deaths.pop(job_id, None)
                self._progressed.discard(job_id)
                await self.journal.run(self.storage.forget_deaths, job_id)
                job.ClearField("paused")
                await self._take_up(job, "resumed; the job")
                self.allot()
        await self.journal.settled()

    def shard_lost(self, shard: ShardLink) -> None:
        """A shard is gone, with what it held: the jobs that need it go back to their last checkpoints."""
        if shard not in self.shards.attending:
            return
        self.shards.attending.remove(shard)
        living = [] if self.stopping else [run for run in self._runs.values() if self.run(run.job.id) is run]
        for run in [run for run in living if run.needs(shard)]:
            reason = f"shard {shard.address} was lost"
            run.give_up(f"{reason}; the job returns to its last checkpoint")
            self._replace(run, f"{reason}; the job")

    def _replace(self, run: JobDriver, what: str, failure: str = "") -> None:
        going_back = self._going_back[run.job.id] = asyncio.create_task(self._go_back(run, what, failure))

        def done(_: asyncio.Task[None]) -> None:
            if self._going_back.get(run.job.id) is going_back:
                del self._going_back[run.job.id]

        going_back.add_done_callback(done)

    async def _go_back(self, run: JobDriver, what: str, failure: str) -> None:
        """Puts a new run in the place of one that was given up: from the last checkpoint, or, after a failure, to end the job."""
        job_id = run.job.id
        # Not within the lock: a deletion, which makes room, must not wait for room.
        await self._keeping.settled()
        await self.journal.settled()
        async with self._taking_up:
            try:
                again = self._begin_to_fail(run) if failure else await self._again(run, what)
            except Exception as error:  # noqa: BLE001 - whatever it is, the job ends
                _log.exception("job %s: cannot go back to its last checkpoint", job_id)
                again, failure = self._begin_to_fail(run), f"internal error: {type(error).__name__}: {error}"
            if failure:
                again.fail(failure)
            elif run.cancelled:
                again.cancel()
            self.allot()

    async def _again(self, run: JobDriver, what: str) -> JobDriver:
        job = await self.journal.run(self.storage.job, run.job.id)
        if job is None:
            raise LookupError(f"there is no record of job {run.job.id}")
        self._begun_before.add(job.id)
        return await self._take_up(job, what)

    def _begin_to_fail(self, run: JobDriver) -> JobDriver:
        job = job_pb2.Job()
        job.CopyFrom(run.job)
        return self._begin(job)

    def _events_rejected(self, job_id: str, problem: str) -> None:
        """An event of a job cannot be recorded, so what has happened since is not durable: the job fails, and no other."""
        run = self.run(job_id)
        if job_id in self._endings:
            self._rejected.add(job_id)
        elif run:
            failure = f"internal error: the job's events cannot be recorded: {problem}"
            run.give_up(failure)
            self._replace(run, "", failure)

    def _save(self, run: JobDriver, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint while the run goes on."""

        def written(size: int, seconds: float, problem: str) -> None:
            if not problem:
                self._note_progress(run.job.id)
            if self.run(run.job.id) is run:
                run.checkpoint_done(checkpoint.position.version, size, seconds, problem)

        self._keeping.save(run.job.id, checkpoint, written)

    def _note_progress(self, job_id: str) -> None:
        """A job has a checkpoint that this server has written: if the server dies, this job is hardly the reason."""
        if job_id not in self._progressed:
            self._progressed.add(job_id)
            self.answers.begin(self.journal.room.write(lambda: self.journal.run(self.storage.note_progress, job_id)))

    async def create(self, request: training_service_pb2.CreateJobRequest) -> job_pb2.Job:
        """Accepts a job. Raises ThalwegError if it is not right."""
        spec = validation.complete(request.spec)
        if request.job_id:
            validation.check_job_id(request.job_id)
        if request.request_id:
            validation.check_request_id(request.request_id)
        job = job_pb2.Job(id=request.job_id, spec=spec, state=job_pb2.JOB_STATE_QUEUED)
        job.create_time.GetCurrentTime()
        # A call that is cancelled here must not leave a job that is recorded and never begins.
        accepting = asyncio.create_task(self._accept(job, request.request_id))
        self._accepting.add(accepting)
        accepting.add_done_callback(self._accepting.discard)
        return await asyncio.shield(accepting)

    async def _accept(self, job: job_pb2.Job, request_id: str) -> job_pb2.Job:
        wanted_id = job.id
        try:
            inserted = await self._record(job, request_id)
        except (sqlite3.Error, OSError) as error:
            raise self.answers.refusal(error, "No job was accepted.") from error
        if inserted is None:
            raise ThalwegError("JOB_EXISTS", {"job": wanted_id})
        if inserted is job:
            _log.info("job %s: accepted", job.id)
            await self.journal.open(job.id)
            run = self._begin(job)
            self._choose()
            self._wait(job, run)
            run.telemetry.enter(job_pb2.JOB_STATE_QUEUED, job.status)
            self.allot()
            # It is on record; its first event may wait for room.
            with suppress(ThalwegError):
                await self.answers.wait(job.id, self.journal.settled(), "", ANSWER_SECONDS)
        return inserted

    async def _record(self, job: job_pb2.Job, request_id: str) -> job_pb2.Job | None:
        """Makes a job durable, with the parameters that it starts from."""
        known = await self.journal.run(self.storage.job_of_request, request_id)
        if known:
            return known
        given = job.spec.model.initial
        # What is exported must not be removed before it is used.
        async with self._removing:
            if given.job:
                other = await self.journal.run(acceptance.check_source, self.storage, given.job)
                given.sha256 = await self.journal.run_files(acceptance.export, self.storage, other)
            return await self.journal.run(acceptance.record_job, self.storage, job, request_id)

    def _begin(self, job: job_pb2.Job, checkpoint: Checkpoint | None = None, recorded: Recorded = NOTHING_RECORDED) -> JobDriver:
        run = JobDriver(
            job,
            self.journal,
            self._run_ended,
            lambda made: self._save(run, made),
            settings=self.settings,
            checkpoint=checkpoint,
            recorded=recorded,
            initial=partial(self._initial, job.spec.model.initial) if job.spec.model.HasField("initial") else None,
            sharing=self._sharing,
            shards=self.shards,
            crew=self._crew,
            budget=self._budget,
            avoid=self.allot,
        )
        self._runs[job.id] = run
        return run

    async def _initial(self, given: job_pb2.Initial, layout: job_pb2.Layout) -> Slab:
        """The parameters that a job starts from. Raises ValueError if they are not its model's."""
        try:
            return await self.journal.run_aside(lambda: initial_slab(layout, self.storage.initial(given.sha256)))
        except (ValueError, OSError) as error:
            raise ValueError(f"model.initial.{given.WhichOneof('source')}: {error}") from error

    def run(self, job_id: str) -> JobDriver | None:
        """The run of a job that has not ended and is not ending."""
        run = None if job_id in self._endings else self._runs.get(job_id)
        return None if run is None or run.given_up else run

    def has_place(self, job_id: str) -> bool:
        """Whether a job may have workers now."""
        return job_id in self._queue.places

    async def get(self, job_id: str) -> job_pb2.Job:
        """One job. Raises ThalwegError if there is none."""
        job = await self.journal.run(self.storage.job, job_id)
        if job is None:
            raise ThalwegError("JOB_NOT_FOUND", {"job": job_id})
        return self._with_progress(job)

    def _with_progress(self, job: job_pb2.Job) -> job_pb2.Job:
        """A job's durable record, with the progress that it makes and is not recorded at every step."""
        run = self._runs.get(job.id)
        if run and job.state not in ENDED:
            job.progress.CopyFrom(run.job.progress)
            job.status, job.waiting_for = run.job.status, run.job.waiting_for
            if not run.job.progress.workers and (run.job.waiting_for or not self.has_place(job.id)):
                self._wait(job, run)
            if shortage := self.answers.shortages.get(job.id) or (self.journal.shortage if job.id in self._endings else None):
                job.status = f"ended; its result is kept in memory until there is disk space: {shortage}"
                job.waiting_for = job_pb2.WAITING_FOR_STORAGE
            elif job.id in self._endings:
                job.status = "ended; its result is being written"
                job.ClearField("waiting_for")
            elif self.journal.shortage:
                job.status += f"; its events are kept in memory until there is disk space: {self.journal.shortage}"
        return job

    def _wait(self, job: job_pb2.Job, run: JobDriver) -> None:
        """Says in a job why it has no workers."""
        job.waiting_for, job.status = self._waiting(run)

    def _waiting(self, run: JobDriver) -> tuple[job_pb2.WaitingFor.ValueType, str]:
        """Why a job without workers has none, as far as the queue, the fleets and its earlier workers tell."""
        job = run.job
        slots = job.spec.training.threads_per_worker
        if job.paused:
            return job_pb2.WAITING_FOR_SCALING, f"paused; `thalweg scale {job.id} N` resumes it with N workers"
        if job.id in self._queue.before:
            before = self._queue.before[job.id]
            ahead = f"{before} job{'' if before == 1 else 's'} ahead"
            return job_pb2.WAITING_FOR_PLACE, f"queued: {ahead} (this server runs {self.max_running} at a time)"
        if not self.fleets.attending:
            no_fleet = "no fleet is connected to this server; start one with `thalweg fleet`"
            return job_pb2.WAITING_FOR_FLEET, f"{NO_WORKERS}: {no_fleet}"
        if not self.fleets.have_room(slots):
            return job_pb2.WAITING_FOR_SLOTS, f"{NO_WORKERS}: no fleet has the {slots} CPU slots that each worker needs"
        if trouble := run.trouble():
            return job_pb2.WAITING_FOR_NODE, f"{NO_WORKERS}: {trouble}"
        return job_pb2.WAITING_FOR_WORKERS, NO_WORKERS

    async def list(self, page_size: int, page_token: str) -> tuple[list[job_pb2.Job], str]:
        """A page of jobs, the newest first, and the next page's token."""
        if page_token and not (page_token.isascii() and page_token.isdigit() and len(page_token) < 19):
            raise invalid(Violation("page_token", "is not a token that this server issued"))
        size = min(page_size or 50, 1000)
        before = int(page_token) if page_token else None
        page = await self.journal.run(self.storage.jobs, size + 1, before)
        jobs: list[job_pb2.Job] = []
        room = _PAGE_BYTES
        for _, job in page[:size]:
            room -= job.ByteSize()
            if jobs and room < 0:
                break
            jobs.append(self._with_progress(job))
        token = str(page[len(jobs) - 1][0]) if len(page) > len(jobs) else ""
        return jobs, token

    async def cancel(self, job_id: str) -> job_pb2.Job:
        """Ends a job, if it has not ended. Gives it as it is on record, which may take longer to say that it has ended.

        Raises ThalwegError if there is no such job, or if its end waits for room on the disk.
        """
        await self.get(job_id)
        await self.answers.wait(
            job_id, self._cancel(job_id), "The job is ended; its end is recorded as soon as there is disk space.", ANSWER_SECONDS
        )
        return await self.get(job_id)

    async def _cancel(self, job_id: str) -> None:
        while run := await self._living(job_id):
            run.cancel()
            await run.over.wait()
        await self.ended(job_id)

    async def _living(self, job_id: str) -> JobDriver | None:
        """The run of a job that has not ended and is not ending. Waits for that of a job that goes back to a checkpoint."""
        while (run := self._runs.get(job_id)) and job_id not in self._endings:
            if not run.given_up:
                return run
            await asyncio.wait({self._going_back[job_id]})
        return None

    async def ended(self, job_id: str) -> None:
        """Waits for a job that is ending until its end is durable."""
        ending = self._endings.get(job_id)
        if ending:
            await asyncio.wait({ending})

    async def scale(self, job_id: str, workers: int) -> job_pb2.Job:
        """Changes how many workers a job wants; 0 pauses it. Raises ThalwegError if it has ended."""
        if workers:
            validation.check_value(job_pb2.Training.DESCRIPTOR.fields_by_name["workers"], workers, "workers")
        await self.get(job_id)
        consequence = "The number of workers is recorded as soon as there is disk space."
        await self.answers.wait(job_id, self._scale(job_id, workers), consequence, ANSWER_SECONDS)
        return await self.get(job_id)

    async def _scale(self, job_id: str, workers: int) -> None:
        while run := await self._living(job_id):
            rejections = self.journal.rejections[job_id]
            self._scale_run(run, workers)
            await self.journal.settled()
            if not run.given_up and self.journal.rejections[job_id] == rejections:
                return
        await self.ended(job_id)
        job = await self.get(job_id)
        raise ThalwegError("JOB_ENDED", {"job": job_id, "state": state_name(job.state)})

    def _scale_run(self, run: JobDriver, workers: int) -> None:
        if workers:
            run.job.spec.training.workers = workers
            run.job.paused = False
        elif not run.job.paused:
            run.job.paused = True
            # It gives up its place as well: others would wait for nothing.
            self._begun_before.discard(run.job.id)
            self._choose()
            run.pause()
        self._choose()
        if not run.job.progress.workers:
            self._wait(run.job, run)
        run.telemetry.enter(run.job.state, run.job.status)
        self.allot()

    def shortage_of_slots(self, job: job_pb2.Job) -> str:
        """That the fleets have not as many CPU slots as a job's workers take, in words for people; empty if they have."""
        slots, wanted = job.spec.training.threads_per_worker, job.spec.training.workers
        if job.paused:
            return ""
        if not self.fleets.attending:
            return "no fleet is connected to this server; workers start when one does"
        room = sum(fleet.slots // slots for fleet in self.fleets.attending)
        if room >= wanted:
            return ""
        have = sum(fleet.slots for fleet in self.fleets.attending)
        return f"the fleets have {have} CPU slots, room for {room} of the {wanted} workers; more start when there is room"

    async def delete(self, job_id: str) -> None:
        """Removes a job that has ended, also one whose end waits for room. Raises ThalwegError if it has not."""
        async with self._taking_up:
            if ending := self._endings.get(job_id):
                short = self.answers.begin(self.answers.shortage_of(job_id))
                await asyncio.wait({ending, short}, return_when=asyncio.FIRST_COMPLETED)
                short.cancel()
                ending.cancel()
                await asyncio.wait({ending})
                await self.journal.files_settled()
            await self.get(job_id)
            if job_id in self._runs:
                raise ThalwegError("JOB_NOT_ENDED", {"job": job_id})
            async with self._removing:
                try:
                    await self.journal.run(self.storage.delete_job, job_id)
                except (sqlite3.Error, OSError) as error:
                    raise self.answers.refusal(error, "Nothing was removed.") from error
            await self.journal.run_files(self.storage.empty_bin)
            self._untidy.set()

    async def watch(self, job_id: str, after: int, until_now: bool = False) -> AsyncIterator[training_service_pb2.Event]:
        """The events of a job, as `Journal.watch` gives them. Raises ThalwegError if there is no such job."""
        await self.get(job_id)
        async for event in self.journal.watch(job_id, after, until_now):
            yield event

    async def parameters(self, job_id: str) -> Download[training_service_pb2.ParametersHeader]:
        """A job's parameters. Raises ThalwegError if it has none."""
        later = "The parameters are available as soon as there is disk space."
        while run := await self.answers.wait(job_id, self._living(job_id), later):
            now = await run.snapshot()
            if now:
                return now
        await self.answers.wait(job_id, self.ended(job_id), later)
        await self.get(job_id)
        kept = await self.journal.run_files(self.storage.parameters, job_id)
        return kept or await self._last_kept(job_id)

    async def _last_kept(self, job_id: str) -> Download[training_service_pb2.ParametersHeader]:
        """The parameters of a job's last checkpoint. Raises ThalwegError if there is none."""
        try:
            checkpoint, _ = await self.journal.run_aside(self.storage.checkpoints(job_id).latest)
        except NewerCheckpointError as error:
            raise ThalwegError("NO_PARAMETERS", {"job": job_id}) from error
        if checkpoint is None:
            raise ThalwegError("NO_PARAMETERS", {"job": job_id})
        header = header_of(checkpoint.prepared, checkpoint.position.version)
        header.sha256 = await asyncio.to_thread(layouts.digest, checkpoint.parameters)
        return Download(header, [checkpoint.parameters])

    async def trajectory(self, job_id: str) -> Download[training_service_pb2.TrajectoryHeader]:
        """A job's trajectory. Raises ThalwegError if it kept none."""
        await self.answers.wait(job_id, self.ended(job_id), "The trajectory is available as soon as there is disk space.")
        await self.get(job_id)
        if job_id in self._runs:
            raise ThalwegError("JOB_NOT_ENDED", {"job": job_id})
        kept = await self.journal.run_files(self.storage.trajectory, job_id)
        if kept is None:
            limit = f"only models of at most {MAX_BYTES >> 21} MiB of parameters record one, from the first parameters on"
            raise ThalwegError("NO_TRAJECTORY", {"job": job_id, "problem": limit})
        return kept

    def allot(self) -> None:
        """Gives places and shares the workers out anew. To be called whenever jobs or fleets have changed.

        With thousands of jobs that takes long: then it happens once for all changes of some time.
        """
        loop = asyncio.get_running_loop()
        if self._allotting is None and loop.time() < self._allot_from:
            self._allotting = loop.call_at(self._allot_from, self._allot)
        elif self._allotting is None:
            self._allot()

    def _allot(self) -> None:
        began = time.perf_counter()
        self._allotting = None
        self._choose()
        self.fleets.allot([self._runs[job_id] for job_id in self._queue.places])
        took = time.perf_counter() - began
        if took > _QUICK_SECONDS:
            self._allot_from = asyncio.get_running_loop().time() + took / _ALLOT_SHARE

    def _choose(self) -> None:
        """Gives the places anew."""
        self._queue = choose(self.max_running, [self._candidate(run.job) for run in self._runs.values() if not run.job.paused])

    def _candidate(self, job: job_pb2.Job) -> Candidate:
        # A job that was paused has given up its place, and waits for one like a job that has not begun.
        begun = (job.state == job_pb2.JOB_STATE_RUNNING and self.has_place(job.id)) or job.id in self._begun_before
        servable = not self.fleets.attending or self.fleets.have_room(job.spec.training.threads_per_worker)
        return Candidate(job.id, job.spec.priority, begun, servable)

    def _run_ended(self, ending: JobOutcome) -> None:
        self._endings[ending.job_id] = asyncio.create_task(self._end(ending))

    async def _end(self, ending: JobOutcome) -> None:
        """Makes the end of a job durable: first its parameters, then the state that it ended in. The job ends whatever fails."""
        run = self._runs[ending.job_id]
        try:
            try:
                ending = await self._keeping.keep(ending, run.telemetry, partial(self._tell_shortage, ending.job_id))
            except Exception as error:  # noqa: BLE001 - whatever it is, the job ends
                _log.exception("job %s: its result cannot be kept", ending.job_id)
                ending = ending.failed(f"internal error: {type(error).__name__}: {error}")
            await self._record_end(run, ending)
            if ending.state == job_pb2.JOB_STATE_SUCCEEDED:
                await self._keeping.remove_checkpoints(ending.job_id)
        except Exception:  # noqa: BLE001 - whatever it is, the job ends
            _log.exception("job %s: its end cannot be recorded", ending.job_id)
        finally:
            await self._forget(run)

    async def _record_end(self, run: JobDriver, ending: JobOutcome) -> None:
        job = run.job
        if ending.result:
            job.result.CopyFrom(ending.result)
        job.error = ending.error
        job.end_time.GetCurrentTime()
        job.ClearField("waiting_for")
        job.ClearField("paused")
        for _ in range(_RECORD_ATTEMPTS):
            self._rejected.discard(job.id)
            run.telemetry.enter(ending.state, "")
            await self.journal.settled()
            if job.id not in self._rejected:
                reason = f": {visible(job.error)}" if job.error else ""
                _log.info("job %s: ended as %s at step %d%s", job.id, state_name(job.state), job.progress.step, reason)
                return
        _log.error("job %s: its end is not recorded; the next start of the server resumes it", job.id)

    async def _forget(self, run: JobDriver) -> None:
        """A job has ended: its place is free, and its workers may leave."""
        job_id = run.job.id
        self._runs.pop(job_id, None)
        self._endings.pop(job_id, None)
        self.answers.shortages.pop(job_id, None)
        self._begun_before.discard(job_id)
        self._rejected.discard(job_id)
        self._progressed.discard(job_id)
        self.allot()
        self.journal.close(job_id)
        try:
            run.dismiss()
        except Exception:  # noqa: BLE001 - they notice by themselves when the server says no more
            _log.exception("job %s: its workers cannot be dismissed", job_id)

    def _tell_shortage(self, job_id: str, shortage: Shortage | None) -> None:
        """The result of a job that has ended waits for room, or does no longer."""
        if shortage:
            self.answers.shortages[job_id] = shortage
        else:
            self.answers.shortages.pop(job_id, None)
