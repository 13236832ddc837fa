"""The driver of one running job: hands events to its coordinator and carries the decisions out.

It owns the job's arrays, in its `Holdings`, and its workers' connections, which carry out what is decided for them; it carries
out what is decided for the job. What workers say becomes events in its `Inbox`. All of it happens in the server's event loop;
nothing here waits. Where shards hold ranges of the arrays, decisions that need their answers are queued, and later events wait
for them.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from itertools import islice
from typing import assert_never

from thalweg.contract.frames import Parcel
from thalweg.contract.states import state_name
from thalweg.contract.text import MAX_PROBLEM, visible
from thalweg.server.arrays.allocation import allocate
from thalweg.server.arrays.budget import Budget
from thalweg.server.arrays.compilation import KernelCompiler
from thalweg.server.arrays.copies import Spare, between_events
from thalweg.server.arrays.downloads import Download
from thalweg.server.arrays.interface import Arrays
from thalweg.server.arrays.pool import ArithmeticPool
from thalweg.server.arrays.sharded.registry import ShardLink, ShardRegistry
from thalweg.server.deciding.coordinator import Coordinator
from thalweg.server.deciding.decision_queue import DecisionQueue
from thalweg.server.deciding.decisions import (
    Allocate,
    Avoid,
    Decision,
    Dropped,
    Finish,
    ForArrays,
    ForJob,
    ForWorkers,
    Keep,
    LoadGiven,
    ReportEpoch,
    ReportReady,
    ReportStep,
    Tell,
    WriteCheckpoint,
)
from thalweg.server.deciding.events import (
    CancelRequested,
    CheckpointDone,
    CheckpointRequested,
    DriverFailed,
    Event,
    PauseRequested,
    Tick,
    WorkerDied,
    WorkerExited,
    WorkerJoined,
    WorkerLost,
    WorkerPrepared,
    WorkerRefused,
    WorkersReleased,
)
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.story import Story
from thalweg.server.deciding.values import Place, Position, WorkerId
from thalweg.server.driving.job.admission import Admission
from thalweg.server.driving.job.descriptions import described
from thalweg.server.driving.job.holdings import Holdings
from thalweg.server.driving.job.inbox import Inbox
from thalweg.server.driving.job.outcome import JobOutcome
from thalweg.server.driving.job.starting_point import Reader, StartingPoint
from thalweg.server.driving.job.watching import Watched, unwatched
from thalweg.server.settings import DEFAULT_SETTINGS, RunSettings
from thalweg.server.storage.checkpoints import Checkpoint
from thalweg.server.streams.connections import Connection, Connections
from thalweg.server.streams.memory_listener import Sharing
from thalweg.server.telemetry import NOTHING_RECORDED, Clock, Recorded, Recorder, Telemetry
from thalweg.v1 import job_pb2, parameter_service_pb2, training_service_pb2

_log = logging.getLogger(__name__)
# Workers that a client is told of: a message has a bound.
_MAX_LISTED = 1000


class JobDriver:
    """One job while it is queued or running. `ended` is called once, when it ends.

    `save` is handed checkpoints to be written in the background, after the events recorded so far; it is answered by
    `checkpoint_done`. `checkpoint` and `recorded` are what earlier runs have left; `initial`, if the job is to start from given
    parameters, gives them as a slab of a layout, or raises ValueError.
    `sharing` is where workers on this machine get memory, if it is shared; `shards` are those over which the slab may be split;
    `crew` shares in the arithmetic, `kernels` compiles it; `budget` promises the memory for the arrays; `avoid` is called when
    `avoided` has changed, the places where the job is to get no more workers for now, `left` when a worker has left. `story`
    takes down what is decided, and `watched` may put an observer around what decides and carries out. `over` is set when the run
    has ended, or was given up.
    """

    def __init__(
        self,
        job: job_pb2.Job,
        journal: Recorder,
        ended: Callable[[JobOutcome], None],
        save: Callable[[Checkpoint], None],
        *,
        settings: RunSettings = DEFAULT_SETTINGS,
        clock: Clock = time.monotonic,
        checkpoint: Checkpoint | None = None,
        recorded: Recorded = NOTHING_RECORDED,
        initial: Reader | None = None,
        sharing: Sharing | None = None,
        shards: ShardRegistry | None = None,
        crew: ArithmeticPool | None = None,
        kernels: KernelCompiler | None = None,
        budget: Budget | None = None,
        avoid: Callable[[], object] = lambda: None,
        left: Callable[[], object] = lambda: None,
        spare: Spare = between_events,
        story: Story | None = None,
        watched: Watched = unwatched,
    ) -> None:
        self.over = asyncio.Event()
        self.avoided: tuple[Place, ...] = ()
        self._avoid = avoid
        self._left = left
        self._spare = spare
        self._story = story or Story()
        self.given_up = False
        self._checkpointed = asyncio.Event()
        self._awaited_version = 0
        self.telemetry = Telemetry(job, journal, clock, recorded)
        self.settings = settings
        position, machines = (checkpoint.position, checkpoint.machines) if checkpoint else (None, ())
        used, given = (checkpoint.used if checkpoint else 0.0), initial is not None
        self.coordinator = Coordinator(job.spec, settings, position, given, machines, used)
        job.progress.machine_kinds = len(machines)
        self._holdings = Holdings(self.telemetry, StartingPoint(checkpoint, initial), self.over)
        self._clock = clock
        self._ended = ended
        self._save = save
        self._connections = Connections(sharing, self.telemetry, settings)
        self._shared = self._connections.shared
        self._crew = crew
        self._kernels = kernels
        self._shards = shards
        self._admission = Admission(budget, shards, self.telemetry, clock)
        self._inbox = Inbox(self.telemetry, self._holdings, self._admission, self._connections, self.handle)
        # What no tick has reported yet: a tick is dropped if other events wait.
        self._missed = 0.0
        self._queue = DecisionQueue(watched(job.id, self, self._connections.name))

    @property
    def job(self) -> job_pb2.Job:
        """The job as it is now. Its state may be ahead of what is durable."""
        return self.telemetry.job

    @property
    def arrays(self) -> Arrays:
        """The job's arrays."""
        return self._holdings.arrays

    async def snapshot(self) -> Download[training_service_pb2.ParametersHeader] | None:
        """See `Holdings.snapshot`."""
        return await self._holdings.snapshot()

    def join(self, connection: Connection) -> None:
        """A worker opened its stream. One that comes to a run that is over is sent away."""
        if self.over.is_set():
            goodbye = parameter_service_pb2.Goodbye(reason="the run that this worker joined has ended")
            connection.send(parameter_service_pb2.WorkResponse(goodbye=goodbye))
            return
        self._connections.join(connection, self._inbox.hear)
        self.handle(WorkerJoined(connection.worker, connection.place))

    def leave(self, worker: WorkerId) -> None:
        """A worker's stream ended."""
        self._admission.leave(worker)
        if self._connections.leave(worker, missed=not self.coordinator.over):
            self.handle(WorkerLost(worker))
        # What it holds back of the worker counts as that of one that is lost.
        self.arrays.leave(worker)
        self._left()

    def worker_exited(self, place: Place, problem: str, killed: bool) -> None:
        """A fleet says that a worker of this job ended before it contributed anything: `killed`, or unable to begin."""
        self.handle(WorkerExited(place, visible(problem, MAX_PROBLEM), killed))

    def worker_died(self, place: Place, problem: str, line: str) -> None:
        """A fleet says that a worker's process died, whether it had contributed or not: nobody is known to have ended it.

        `line` is where it was in the job's own code, empty if that is unknown.
        """
        self.handle(WorkerDied(place, visible(problem, MAX_PROBLEM), line))

    def worker_refused(self, place: Place, problem: str) -> None:
        """A worker that wanted to work for this job was refused."""
        self.handle(WorkerRefused(place, problem))

    def trouble(self) -> str:
        """What keeps the job from having workers that contribute, in words for people; empty if nothing does."""
        return self.coordinator.trouble(self._clock())

    def workers(self) -> training_service_pb2.ListWorkersResponse:
        """The workers that are connected, how they do, and how long steps take."""
        now = self._clock()
        listed = islice(self._connections, _MAX_LISTED)
        return training_service_pb2.ListWorkersResponse(
            workers=described(listed, self.coordinator.standing(now), self._connections.lost_at),
            total=len(self._connections),
            seconds_per_step=self.telemetry.seconds_per_step,
        )

    def workers_of(self, fleet: str) -> int:
        """How many workers that a fleet started are connected."""
        return self._connections.of_fleet(fleet)

    def workers_on(self, fleet: str, node: str) -> int:
        """How many of them run on a node."""
        return self._connections.on(fleet, node)

    @property
    def connected(self) -> list[tuple[Connection, float]]:
        """The streams of the workers that are connected, and since when each is, in seconds since 1970."""
        return self._connections.all

    def tick(self, missed: float = 0.0) -> None:
        """Some time has passed. For `missed` seconds of it nobody listened to the workers."""
        self._missed += missed
        if self._connections or self.avoided:
            self.handle(Tick(self._missed))
        if self._admission.due:
            self._inbox.admit()

    def checkpoint_done(self, version: int, size: int, seconds: float, problem: str = "") -> None:
        """A checkpoint that was to be saved is on disk, or, if there was a problem, is not."""
        if problem:
            self.telemetry.checkpoint_failed(version, problem)
        else:
            self.telemetry.checkpoint_written(version, size, seconds)
        self.handle(CheckpointDone(seconds))
        if version >= self._awaited_version:
            self._checkpointed.set()

    async def write_checkpoint(self) -> None:
        """Has a checkpoint written as soon as possible, and waits for it. Does nothing if there is nothing new to be kept."""
        if self.over.is_set() or not self._holdings.begun:
            return
        self._awaited_version = self.coordinator.version
        self._checkpointed.clear()
        self.handle(CheckpointRequested())
        waits = [asyncio.create_task(event.wait()) for event in (self._checkpointed, self.over)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    def cancel(self) -> None:
        """The end of the job was requested."""
        self.handle(CancelRequested())

    def pause(self) -> None:
        """Lets all workers go. Those that come are welcome."""
        self.handle(PauseRequested())

    def let_go(self, leave: Callable[[Place], object], reason: str, at_once: bool = False) -> None:
        """Lets the workers at the places that are to be left go: each after the tasks that it has, or `at_once`."""
        workers = self._connections.at(leave)
        if workers:
            self.handle(WorkersReleased(workers, reason, at_once))

    def fail(self, problem: str) -> None:
        """Ends the job: the server cannot go on with it."""
        self.handle(DriverFailed(problem))

    def receive(self, worker: WorkerId, request: Parcel[parameter_service_pb2.WorkRequest]) -> None:
        """Takes a worker's message. Raises ThalwegError if it makes no sense: the worker's node is at fault."""
        self._inbox.receive(worker, request)

    def handle(self, event: Event) -> None:
        """Lets the coordinator decide about an event, and carries its decisions out. If that fails, so does the job."""
        self._queue.handle(event)

    def decide(self, event: Event) -> list[Decision]:
        """Lets the coordinator decide."""
        if isinstance(event, Tick):
            self._missed = 0.0
        decisions: list[Decision] = []
        try:
            decisions = self.coordinator.handle(event, self._clock())
        finally:
            self._story.add_training(time.time(), event, decisions)
        if isinstance(event, WorkerPrepared):
            self.job.progress.machine_kinds = len(self.coordinator.machines.kinds)
        self.telemetry.contributions.applied += any(isinstance(decision, Keep) for decision in decisions)
        self.arrays.decided(event, decisions)
        return decisions

    def ready(self, decision: Decision) -> bool:
        """Whether a decision may be carried out, or has to wait for shards, or for the parameters to start from."""
        if isinstance(decision, LoadGiven) and not self._holdings.read(self._queue.go_on):
            return False
        return self.arrays.ready(decision)

    def failed(self, error: Exception) -> Event:
        """The end of the job, as an event."""
        if isinstance(error, _JobError):
            return DriverFailed(str(error))
        _log.error("job %s: decisions could not be carried out. Story:\n%s", self.job.id, self._story, exc_info=error)
        return DriverFailed(f"internal error: {type(error).__name__}: {error}")

    def carry_out(self, decision: Decision) -> Event | None:
        """Has the executor of a decision carry it out."""
        if isinstance(decision, ForArrays):
            return self.arrays.carry_out(decision)
        if isinstance(decision, ForWorkers):
            self._connections.carry_out(decision, self.arrays)
        else:
            self._carry_out(decision)
        return None

    def _carry_out(self, decision: ForJob) -> None:
        match decision:
            case ReportStep(step, loss, samples, factor, staleness):
                self.telemetry.step(step, loss, samples, factor, staleness)
            case ReportEpoch(epoch, step, train_loss, validation):
                self.telemetry.epoch(epoch, step, train_loss, validation)
            case Dropped(_, reason):
                self.telemetry.dropped(reason)
            case WriteCheckpoint(position):
                self._write_checkpoint(position)
            case Avoid(places):
                self.avoided = places
                self._avoid()
            case Tell(text):
                self.telemetry.notice(text)
            case Allocate(plan):
                self._allocate(plan)
            case LoadGiven():
                self._load_given()
            case ReportReady():
                self.telemetry.ready()
                self._holdings.begin()
            case Finish():
                self._finish(decision)
            case _:
                assert_never(decision)

    def _allocate(self, plan: Plan) -> None:
        try:
            arrays = allocate(plan, self._shared, self._shards, self._queue, self.telemetry, self._crew, self._spare)
        except (MemoryError, ValueError):
            raise _JobError(f"model.layers: {plan.elements:,} parameters do not fit the server's memory") from None
        self._holdings.arrays = arrays
        if self._kernels:
            self._kernels.prepare(plan)
        prepared = self._holdings.prepared
        self.telemetry.planned(plan, prepared.loss_seconds, visible(prepared.notice, MAX_PROBLEM))

    def _load_given(self) -> None:
        try:
            self._holdings.load()
        except ValueError as error:
            raise _JobError(str(error)) from error

    def _write_checkpoint(self, position: Position) -> None:
        # What is durable may not be ahead of what is reported: steps before a checkpoint are never taken again.
        self.telemetry.flush()
        made = self._holdings.checkpoint(position, self.coordinator)
        try:
            self.arrays.copy(lambda slabs: self._save(made(slabs)), state=True)
        except MemoryError as error:
            self.checkpoint_done(position.version, 0, 0.0, f"there is too little memory for a copy ({error})")

    def _finish(self, finish: Finish) -> None:
        """Carries the end out, whatever fails on the way."""
        try:
            self.telemetry.flush()
            self._holdings.leave(finish, self.coordinator, self._end)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job ends
            _log.exception("job %s: its arrays cannot be handed over at its end", self.job.id)
            problem = f"internal error: {type(error).__name__}: {error}"
            self._end(JobOutcome(self.job.id, job_pb2.JOB_STATE_FAILED, finish.error or problem))

    def _end(self, ending: JobOutcome) -> None:
        if self.over.is_set():
            return
        self.coordinator.finished()
        self._queue.close()
        self._ended(ending)
        self.over.set()
        self.arrays.close()

    def needs(self, shard: ShardLink) -> bool:
        """Whether a shard holds something that the job cannot do without."""
        return self.arrays.needs(shard)

    def give_up(self, reason: str) -> None:
        """Ends the run, not the job, as the end of the server would: nothing that it holds is kept."""
        self.given_up = True
        self._queue.close()
        self.telemetry.flush()
        self.telemetry.close()
        self._connections.say_goodbye(reason)
        self._connections.forget()
        self.arrays.close()
        self._admission.close()
        self.over.set()

    def dismiss(self) -> None:
        """Tells the workers that the job has ended, and gives its memory back. To be called when the end is durable."""
        self._admission.close()
        self._connections.say_goodbye(f"the job ended: {state_name(self.job.state)}")

    def release(self) -> None:
        """Shares no more memory."""
        self._shared.close()


class _JobError(Exception):
    """A decision cannot be carried out, for a reason that is the job's."""
