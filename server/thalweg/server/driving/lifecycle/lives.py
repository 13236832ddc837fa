"""The lives of a server's jobs: hands events to the state machine of each, and carries its decisions out."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine
from functools import partial
from typing import Any

from thalweg.contract.states import state_name
from thalweg.server.deciding.lifecycle import decisions, events
from thalweg.server.deciding.lifecycle.decisions import Start
from thalweg.server.deciding.lifecycle.events import Ask
from thalweg.server.deciding.lifecycle.life import Life, State
from thalweg.server.driving.answers import Answers
from thalweg.server.driving.job.driver import JobDriver
from thalweg.server.driving.job.outcome import JobOutcome
from thalweg.server.driving.lifecycle.beginnings import Beginnings
from thalweg.server.driving.lifecycle.calls import Calls
from thalweg.server.driving.lifecycle.endings import Endings
from thalweg.server.driving.lifecycle.places import Places
from thalweg.server.driving.lifecycle.recovery import Recovery
from thalweg.server.driving.lifecycle.result_writer import ResultWriter
from thalweg.server.driving.lifecycle.runs import Runs
from thalweg.server.driving.lifecycle.stories import Stories
from thalweg.server.settings import RunSettings
from thalweg.server.storage.journal import Journal
from thalweg.server.streams.memory_listener import Sharing
from thalweg.server.telemetry import Clock
from thalweg.v1 import job_pb2

_log = logging.getLogger(__name__)


class Lives:
    """The executor of what is decided about the lives of jobs. Belongs to the server's event loop.

    A decision that takes time is carried out by a task, of which a job has one at a time; it ends with an event.
    """

    def __init__(
        self, journal: Journal, answers: Answers, settings: RunSettings, max_running: int, sharing: Sharing | None, clock: Clock
    ) -> None:
        self._journal = journal
        self._storage = journal.storage
        self._answers = answers
        self.writer = ResultWriter(journal.storage, journal, clock)
        self.recovery = Recovery(journal)
        self.runs = Runs(journal, answers, self.writer, settings, sharing, clock, self._run_ended, self._avoid, self._worker_left)
        self.places = Places(max_running, self.runs.of, self._keeps_place, allow_code=settings.allow_code)
        self.stories = Stories()
        self.beginnings = Beginnings(journal, self.writer, self.recovery, self.runs)
        self.endings = Endings(journal, answers, self.writer, self.runs)
        self._lives: dict[str, Life] = {}
        self._accepted: dict[str, job_pb2.Job] = {}
        self._calls = Calls()
        self._events: deque[tuple[Life, events.Event]] = deque()
        self._handling = False
        self._work: dict[str, asyncio.Task[None]] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}

    def run(self, job_id: str) -> JobDriver | None:
        """The run of a job that has not ended and is not ending."""
        life = self._lives.get(job_id)
        return self.runs.of.get(job_id) if life and life.runs else None

    def living(self) -> list[JobDriver]:
        """The runs that have neither ended nor been given up."""
        return [run for job_id, run in self.runs.of.items() if self.run(job_id) is run]

    def ending(self, job_id: str) -> bool:
        """Whether a job's run has ended, and its end is not durable."""
        life = self._lives.get(job_id)
        return life is not None and life.ending

    def _keeps_place(self, job_id: str) -> bool:
        life = self._lives.get(job_id)
        return life is not None and life.keeps_place

    def _avoid(self) -> None:
        self.places.allot()

    def _worker_left(self) -> None:
        # Where fleets are open, they replace it by themselves.
        if self.places.fleets.closed:
            self.places.allot()

    async def accept(self, job: job_pb2.Job) -> None:
        """Begins the life of a new job, which is on record."""
        await self._journal.open(job.id)
        self._accepted[job.id] = job
        await self._ask(self._begin(job.id), events.Accepted)

    async def recover(self, resume_all: bool, kept: Collection[str]) -> None:
        """Goes on with the jobs on record that have not ended: all, or those in `kept`. Sets the others aside."""
        for found in await self.recovery.unfinished(resume_all, kept):
            started = partial(events.ServerStarted, aside=found.aside, begun=found.begun)
            await self._ask(self._begin(found.job_id), started)
        self.places.allot()

    async def cancel(self, job_id: str) -> None:
        """Ends a job, and waits until that is durable."""
        if life := self._lives.get(job_id):
            await self._ask(life, events.CancelRequested)

    async def scale(self, job_id: str, workers: int | None, priority: int | None = None) -> bool:
        """Changes how many workers a job wants, and its priority, and waits until that is durable. False if it ended long ago.

        None leaves what is.
        """
        life = self._lives.get(job_id)
        if life:
            await self._ask(life, lambda ask: events.ScaleRequested(ask, workers, priority))
        return life is not None

    async def resume(self, job: job_pb2.Job, max_seconds: float | None = None) -> None:
        """Resumes a job that has ended, with another time limit if one is given. Raises ThalwegError if it cannot be."""
        await self._ask(self._life(job), lambda ask: events.ResumeRequested(ask, max_seconds))

    async def delete(self, job: job_pb2.Job) -> None:
        """Removes a job that has ended. Raises ThalwegError if it has not, or if the disk refuses."""
        await self._ask(self._life(job), events.DeleteRequested)

    def result_expired(self, job: job_pb2.Job) -> None:
        """The result of a job that has ended is as old as results may be."""
        self.handle(self._life(job), events.ResultExpired())

    async def rest(self, job_id: str) -> None:
        """Waits until a job has a run, or has ended."""
        life = self._lives.get(job_id)
        if life and not life.runs:
            await self._ask(life, events.RestAwaited)

    def shard_lost(self, run: JobDriver, address: str) -> None:
        """A shard that a run needs is gone."""
        self.handle(self._lives[run.job.id], events.ShardLost(address))

    def event_rejected(self, job_id: str, problem: str) -> None:
        """An event of a job cannot be recorded, so what has happened since is not durable: the job fails, and no other."""
        if life := self._lives.get(job_id):
            self.handle(life, events.EventRejected(problem))

    async def stop(self) -> None:
        """Waits until the jobs that are ending have ended. No run begins any more."""
        self.places.close()
        for job_id, work in self._work.items():
            if not self.ending(job_id):
                work.cancel()
        while ending := [work for job_id, work in self._work.items() if self.ending(job_id)]:
            await asyncio.wait(ending)
        await self.writer.settled()

    def close(self) -> None:
        """Ends what is still under way, and what the runs share."""
        for task in (*self._work.values(), *self._watching.values()):
            task.cancel()
        self.runs.close()

    def _begin(self, job_id: str) -> Life:
        life = self._lives[job_id] = Life(job_id, self.stories.open(job_id))
        return life

    def _life(self, job: job_pb2.Job) -> Life:
        """The life of a job on record, which has ended if it has none."""
        life = self._lives.get(job.id)
        if life is None:
            life = self._lives[job.id] = Life(job.id, self.stories.open(job.id), State.ENDED, state_name(job.state))
        return life

    async def _ask(self, life: Life, event: Callable[[Ask], events.Event]) -> None:
        """Hands over a call, and waits for its answer. Raises the error with which it is answered."""
        await self._calls.wait(lambda ask: self.handle(life, event(ask)))

    def handle(self, life: Life, event: events.Event) -> None:
        """Lets a life decide about an event and carries the decisions out, then about what happens meanwhile."""
        self._events.append((life, event))
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                life, event = self._events.popleft()
                for decision in life.handle(event, time.time()):
                    self._try(life, decision)
                if life.over and self._lives.get(life.job_id) is life:
                    del self._lives[life.job_id]
                    self.stories.close(life.job_id, forget=life.state is State.DELETED)
        finally:
            self._handling = False

    def _try(self, life: Life, decision: decisions.Decision) -> None:
        try:
            self._carry_out(life, decision)
        except Exception:  # noqa: BLE001 - what else was decided does not depend on it
            _log.exception("job %s: %s could not be carried out. Story:\n%s", life.job_id, decision, life.story)

    def _carry_out(self, life: Life, decision: decisions.Decision) -> None:
        job_id = life.job_id
        match decision:
            case decisions.StartRun(Start.ACCEPTED):
                self._start_accepted(life)
            case decisions.StartRun(start, reason, max_seconds):
                self._do(life, self._start(life, start, reason, max_seconds))
            case decisions.SetAside(reason):
                self._do(life, self._end_with(life, partial(self.beginnings.set_aside, job_id, reason)))
            case decisions.KeepResult():
                self._do(life, self._end_with(life, partial(self.endings.keep, job_id)))
            case decisions.RecordEnd():
                # The event is recorded now; that it is durable comes later.
                problem = self.endings.record(job_id)
                self._do(life, self._end_with(life, partial(self.endings.recorded, problem)))
            case decisions.RemoveCheckpoints():
                self._do(life, self._end_with(life, partial(self.endings.clear, job_id)))
            case decisions.AwaitShortage():
                if job_id not in self._watching:
                    self._watching[job_id] = asyncio.create_task(self._await_shortage(life))
            case decisions.AbandonEnd():
                self._do(life, self._end_with(life, partial(self.endings.abandon, self._work[job_id])))
            case decisions.ForgetRun(problem):
                self._forget(job_id, problem)
            case decisions.DeleteJob():
                self._do(life, self._end_with(life, partial(self.endings.delete, job_id)))
            case decisions.RemoveResult():
                self._do(life, self._end_with(life, partial(self.endings.remove_result, job_id)))
            case decisions.Answer(ask, error):
                self._calls.answer(ask, error)
            case _:
                self._carry_out_on(self.runs.of[job_id], life, decision)

    def _carry_out_on(self, run: JobDriver, life: Life, decision: decisions.Decision) -> None:
        """Carries out what is decided about a run."""
        match decision:
            case decisions.GiveUpRun(reason):
                run.give_up(reason)
            case decisions.FailRun(problem):
                run.fail(problem)
            case decisions.CancelRun():
                run.cancel()
            case decisions.PauseRun():
                run.job.paused = True
                self.places.choose()
                run.pause()
            case decisions.ScaleRun(workers):
                run.job.spec.training.workers = workers
                run.job.paused = False
            case decisions.PrioritizeRun(priority):
                run.job.spec.priority = priority
            case decisions.RecordScale(ask):
                self._enter(run, run.job.state)
                self._answers.begin(self._settle(life, ask))

    def _enter(self, run: JobDriver, state: job_pb2.JobState.ValueType) -> None:
        """Records a run's job as it is, with why it has no workers."""
        self.places.choose()
        if not run.job.progress.workers:
            self.places.explain(run.job, run)
        run.telemetry.enter(state, run.job.status)
        self.places.allot()

    async def _settle(self, life: Life, ask: Ask) -> None:
        await self._journal.settled()
        self.handle(life, events.ScaleDurable(ask))

    def _do(self, life: Life, work: Coroutine[Any, Any, None]) -> None:
        """Begins what takes time."""
        task = self._work[life.job_id] = asyncio.create_task(work)

        def done(task: asyncio.Task[None]) -> None:
            if self._work.get(life.job_id) is task:
                del self._work[life.job_id]
            if not task.cancelled() and (error := task.exception()):
                _log.error("job %s: %s. Story:\n%s", life.job_id, error, life.story, exc_info=error)

        task.add_done_callback(done)

    async def _end_with(self, life: Life, work: Callable[[], Awaitable[events.Event]]) -> None:
        self.handle(life, await work())

    def _start_accepted(self, life: Life) -> None:
        try:
            self._enter(self.runs.begin(self._accepted.pop(life.job_id), life.story), job_pb2.JOB_STATE_QUEUED)
        except Exception as error:  # noqa: BLE001 - the caller hears of it
            self.handle(life, self.beginnings.failed(life.job_id, Start.ACCEPTED, error))
        else:
            self.handle(life, events.RunStarted())

    async def _start(self, life: Life, start: Start, reason: str, max_seconds: float | None) -> None:
        self.handle(life, await self.beginnings.start(life.job_id, life.story, start, reason, max_seconds))
        if start is not Start.RESTART:
            self.places.allot()

    def _run_ended(self, outcome: JobOutcome) -> None:
        self.endings.outcomes[outcome.job_id] = outcome
        self.handle(self._lives[outcome.job_id], events.RunEnded(outcome.state))

    async def _await_shortage(self, life: Life) -> None:
        await self._answers.shortage_of(life.job_id)
        self.handle(life, events.DiskFull())

    def _forget(self, job_id: str, problem: str) -> None:
        """A job has ended: its place is free, and its workers may leave."""
        run = self.endings.forget(job_id, problem)
        if watching := self._watching.pop(job_id, None):
            watching.cancel()
        self.places.allot()
        self._journal.close(job_id)
        if run:
            run.dismiss()
