"""The driver of one running job: turns messages into events for its coordinator and carries the decisions out.

It owns the job's arrays and its workers' connections. All of it happens in the server's event loop; nothing here waits.

Where shards hold ranges of the arrays, `shares.py` has them carry out their parts of what is decided, and `turns.py` keeps what
needs their answers, and all that is behind it, until those have come. Copies of the parameters are put together meanwhile.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from thalweg.contract import layout as layouts
from thalweg.contract.errors import ThalwegError
from thalweg.contract.layout import Slab
from thalweg.contract.payload import Parcel
from thalweg.contract.states import state_name
from thalweg.server import messages, wire
from thalweg.server.checkpoints import Checkpoint
from thalweg.server.coordinator import Coordinator, Phase
from thalweg.server.ending import Ending
from thalweg.server.messages import Facts, WorkerId
from thalweg.server.optimizers import State
from thalweg.server.parameters import PARAMETERS, Parameters
from thalweg.server.residuals import Residuals
from thalweg.server.settings import DEFAULT_SETTINGS, RunSettings
from thalweg.server.shards import AttendingShard, Shards
from thalweg.server.shares import Shares
from thalweg.server.sharing import JobSharing, Sharing
from thalweg.server.telemetry import NOTHING_RECORDED, Clock, Recorded, Recorder, Telemetry
from thalweg.server.trajectory import Trajectory
from thalweg.server.turns import Turns
from thalweg.v1 import job_pb2, parameter_service_pb2, training_service_pb2

_log = logging.getLogger(__name__)


class Connection(Protocol):
    """One worker's stream, as a run sees it."""

    worker: WorkerId
    name: str

    def send(self, message: parameter_service_pb2.WorkResponse) -> None:
        """Queues a message."""
        ...

    def send_parameters(self, version: int, serialized: bytes) -> None:
        """Queues a message with parameters at a version. It may take the place of those of earlier versions."""
        ...

    def evict(self) -> None:
        """Ends the stream of a worker that is taken for lost."""
        ...


class JobRun:
    """One job while it is queued or running. `ended` is called once, when it ends.

    `save` is handed checkpoints to be written in the background, behind the events recorded so far; it is answered by
    `checkpoint_done`. `checkpoint` and `recorded` are what earlier runs have left; `initial`, if the job is to start from given
    parameters, gives them as a slab of a layout, or raises ValueError.
    `sharing` is where workers on this machine get memory, if it is shared; `shards` are those over which the slab may be split.
    `over` is set when the run has ended, or was given up.
    """

    def __init__(
        self,
        job: job_pb2.Job,
        journal: Recorder,
        ended: Callable[[Ending], None],
        save: Callable[[Checkpoint], None],
        *,
        settings: RunSettings = DEFAULT_SETTINGS,
        clock: Clock = time.monotonic,
        checkpoint: Checkpoint | None = None,
        recorded: Recorded = NOTHING_RECORDED,
        initial: Callable[[job_pb2.Layout], Slab] | None = None,
        sharing: Sharing | None = None,
        shards: Shards | None = None,
    ) -> None:
        self.over = asyncio.Event()
        self.given_up = self.cancelled = False
        self.telemetry = Telemetry(job, journal, clock, recorded)
        self.settings = settings
        position = checkpoint.position if checkpoint else None
        self.coordinator = Coordinator(job.spec, settings, position, given=initial is not None)
        self.parameters: Parameters | None = None
        self.trajectory: Trajectory | None = None
        self._prepared = checkpoint.prepared if checkpoint else None
        self._checkpoint = checkpoint
        self._initial = initial
        self._clock = clock
        self._ended = ended
        self._save = save
        self._connections: dict[WorkerId, Connection] = {}
        self._residuals = Residuals()
        self._shared = JobSharing(sharing, job.spec)
        self._shards = shards
        self._shares: Shares | None = None
        self._turns = Turns(self._decide, self._carry_out, self._ready, self._failed)

    @property
    def job(self) -> job_pb2.Job:
        """The job as it is now. Its state may be ahead of what is durable."""
        return self.telemetry.job

    def parameters_now(self) -> tuple[training_service_pb2.ParametersHeader, Slab] | None:
        """The parameters at the current version, not copied, with their header; None if there are none yet."""
        if self._prepared is None:
            return None
        if self._checkpoint:
            version, slab = self._checkpoint.position.version, self._checkpoint.parameters
        elif self.parameters and self.coordinator.policy:
            version, slab = self.parameters.version, self.parameters.current
        else:
            return None
        return _header(self._prepared, version, slab), slab

    async def snapshot(self) -> tuple[training_service_pb2.ParametersHeader, Slab] | None:
        """A copy of the parameters as they are now. Raises ThalwegError if there are none yet.

        None if they are on shards, and the run ends before they have come.
        """
        if self._shares and self.coordinator.policy and self.parameters and self._prepared:
            version, copies = self.parameters.version, asyncio.Queue[State]()
            self._shares.copy(copies.put_nowait, state=False)
            waiting: list[asyncio.Task[Any]] = [asyncio.create_task(each) for each in (copies.get(), self.over.wait())]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            slab = waiting[0].result()[PARAMETERS] if waiting[0].done() else None
            for task in waiting:
                task.cancel()
            return None if slab is None else (_header(self._prepared, version, slab), slab)
        now = self.parameters_now()
        if now is None:
            raise ThalwegError("NO_PARAMETERS", {"job": self.job.id})
        return now[0], now[1].copy()

    def join(self, connection: Connection) -> None:
        """A worker opened its stream."""
        self._connections[connection.worker] = connection
        welcome = parameter_service_pb2.Welcome(
            spec=self.job.spec,
            heartbeat_seconds=self.settings.heartbeat_seconds,
            silence_seconds=self.settings.silence_seconds,
            shared_memory=self._shared.invite(connection.worker),
        )
        connection.send(parameter_service_pb2.WorkResponse(welcome=welcome))
        self._workers_changed()
        self.handle(messages.WorkerJoined(connection.worker))

    def leave(self, worker: WorkerId) -> None:
        """A worker's stream ended."""
        self._shared.leave(worker)
        if self._shares:
            self._shares.leave(worker)
        if self._connections.pop(worker, None) and self.coordinator.phase is not Phase.FINISHED:
            self._lost()
            self.handle(messages.WorkerLost(worker))

    def worker_crashed(self, problem: str) -> None:
        """A fleet tells that a worker of this job ended by itself."""
        self.handle(messages.WorkerCrashed(problem[: wire.MOST_CHARACTERS]))

    def tick(self) -> None:
        """Some time has passed."""
        if self._connections:
            self.handle(messages.Tick())

    def checkpoint_done(self, version: int, size: int, seconds: float, problem: str = "") -> None:
        """A checkpoint that was to be saved is on disk, or, if there was a problem, is not."""
        if problem:
            self.telemetry.checkpoint_failed(version, problem)
        else:
            self.telemetry.checkpoint_written(version, size, seconds)
        self.handle(messages.CheckpointDone(seconds))

    def _lost(self) -> None:
        self.telemetry.contributions.lost_workers += 1
        self._workers_changed()

    def _workers_changed(self) -> None:
        self.telemetry.workers_changed([connection.name for connection in self._connections.values()])

    def cancel(self) -> None:
        """Somebody asked for the end."""
        self.cancelled = True
        self.handle(messages.CancelRequested())

    def receive(self, worker: WorkerId, request: Parcel[parameter_service_pb2.WorkRequest]) -> None:
        """Takes a worker's message. Raises ThalwegError if it makes no sense."""
        if request.message.HasField("gradient"):
            self.telemetry.exchange.gradient_bytes += len(request.data)
        if request.message.HasField("prepared"):
            self._receive_prepared(worker, request.message.prepared)
            return
        event = wire.event_of(worker, request, self.parameters, self._shared)
        if self._shares:
            self._shares.received(event)
        else:
            self.handle(event)

    def _receive_prepared(self, worker: WorkerId, prepared: parameter_service_pb2.Prepared) -> None:
        wire.check_prepared(prepared, self.job.spec.model.dtype)
        if not self._shared.settle(worker, prepared.shared_memory):
            raise wire.violation("shared memory that was not taken")
        prepared.ClearField("shared_memory")
        elements = layouts.elements(prepared.layout)
        facts = Facts(elements, prepared.train_samples, prepared.validation_samples, prepared.classifier)
        if self._prepared is None:
            self._prepared = prepared
        elif self._prepared.layout != prepared.layout:
            raise wire.violation("another layout than the first worker's")
        self.handle(messages.WorkerPrepared(worker, facts))

    def _allocate(self) -> None:
        """Makes the job's arrays."""
        if self.coordinator.plan is None or self._prepared is None:
            return
        plan = self.coordinator.plan
        try:
            dtype = layouts.dtype_of(self._prepared.layout)
            self.parameters = self._split() or Parameters(plan, self._shared.allocate(plan.elements, dtype))
        except (MemoryError, ValueError):
            elements = layouts.elements(self._prepared.layout)
            raise _JobError(f"model.layers: {elements:,} parameters do not fit the server's memory") from None
        self.trajectory = Trajectory(plan)
        self.telemetry.planned(plan, self._prepared.loss_seconds)

    def _split(self) -> Parameters | None:
        """Splits the arrays over the shards that are there, and gives what is left; None if there are none."""
        plan = self.coordinator.plan
        if plan is None or self._shards is None or not (shards := self._shards.suitable(plan)):
            return None
        self._shared.close()
        self._shares = Shares(plan, shards, self._shards, self._turns, self.telemetry.exchange)
        self.telemetry.notice(f"the parameters are split over this server and {', '.join(self._shares.addresses)}")
        return self._shares.parameters

    def _load_given(self) -> None:
        """Puts given parameters in place of random ones."""
        if self.parameters is None or self.trajectory is None or self._prepared is None:
            return
        checkpoint, self._checkpoint = self._checkpoint, None
        try:
            if checkpoint:
                self._load(checkpoint.position.version, checkpoint.parameters, checkpoint.state)
                self.trajectory.restore(checkpoint.versions, checkpoint.trajectory)
            elif self._initial:
                self._load(0, self._initial(self._prepared.layout), None)
        except ValueError as error:
            raise _JobError(str(error)) from error

    def _load(self, version: int, parameters: Slab, state: State | None) -> None:
        """Has the arrays hold a version. Raises ValueError if it does not fit."""
        if self._shares:
            self._shares.load(version, parameters, state)
        elif self.parameters:
            self.parameters.restore(version, parameters, state)

    def handle(self, event: messages.Event) -> None:
        """Lets the coordinator decide about an event, and carries its decisions out. If that fails, so does the job."""
        self._turns.handle(event)

    def _decide(self, event: messages.Event) -> list[messages.Decision]:
        decisions = self.coordinator.handle(event, self._clock())
        self.telemetry.contributions.applied += any(isinstance(decision, messages.Keep) for decision in decisions)
        if self._shares:
            self._shares.decided(event, decisions)
        return decisions

    def _ready(self, decision: messages.Decision) -> bool:
        return self._shares is None or self._shares.ready(decision)

    def _failed(self, error: Exception) -> messages.Event:
        if isinstance(error, _JobError):
            return messages.DriverFailed(str(error))
        _log.error("job %s: decisions could not be carried out", self.job.id, exc_info=error)
        return messages.DriverFailed(f"internal error: {type(error).__name__}: {error}")

    def _carry_out(self, decision: messages.Decision) -> messages.Event | None:
        """Carries a decision out. Gives an event if what else was decided takes for granted what did not happen."""
        if isinstance(decision, messages.Keep):
            lost = [self._residuals.lost(decision.node, chunk, decision.payload.residual_since) for chunk in decision.chunks]
            self.telemetry.contributions.lost_residuals += any(lost)
        own = self._shares.forward(decision) if self._shares else decision
        if isinstance(own, messages.ApplyRange) and self.parameters:
            if not self.parameters.apply(own.version, own.step, own.chunks, own.schedule_factor):
                return messages.RangeNotFinite(own.version)
        elif own:
            self._do(own)
        return None

    def _do(self, decision: messages.Decision) -> None:
        match decision:
            case messages.SendRange(workers, version, chunks):
                self._send_range(self._shared.remote(workers), version, chunks)
            case messages.AssignDifferentiate(worker, _, _, again):
                self.telemetry.contributions.reissued_tasks += again
                self._send(worker, wire.differentiate(decision))
            case messages.AssignEvaluate(worker, task):
                self._send(worker, wire.evaluate(task))
            case messages.AssignInitialize(worker):
                initialize = parameter_service_pb2.InitializeTask()
                self._send(worker, parameter_service_pb2.WorkResponse(initialize=initialize))
            case messages.Accept(worker):
                self._accept(worker)
            case messages.ReportStep(step, loss, samples, factor, staleness):
                self.telemetry.step(step, loss, samples, factor, staleness)
            case messages.ReportEpoch(epoch, step, train_loss, validation):
                self.telemetry.epoch(epoch, step, train_loss, validation)
            case messages.Dropped(_, reason):
                self._count(reason)
            case messages.Evict(worker):
                self._evict(worker)
            case messages.WriteCheckpoint(position):
                self._write_checkpoint(position)
            case messages.Allocate():
                self._allocate()
            case messages.LoadGiven():
                self._load_given()
            case messages.Finish():
                self._finish(decision)
            case _:
                self._compute(decision)

    def _compute(self, decision: messages.Decision) -> None:
        if self.parameters is None:
            return
        match decision:
            case messages.Keep(step, node, chunks, payload):
                for chunk in chunks:
                    self.parameters.keep(step, node, chunk, payload.chunk(self.parameters.plan, chunk))
            case messages.Merge(step, parent, chunks):
                for chunk in chunks:
                    self.parameters.merge(step, parent, chunk)
            case messages.MeasureGradient(step):
                self.parameters.measure(step)
            case messages.Promote(version, step):
                self.parameters.promote(version, step)
                self._offer()
            case messages.KeepInitial(chunk, payload):
                self.parameters.keep_initial(chunk, payload)
            case messages.ReportReady():
                self.telemetry.ready()
                self._offer()

    def _offer(self) -> None:
        """Lets the trajectory have the current version, if it wants it."""
        if self.parameters is None or self.trajectory is None or not self.trajectory.wants(self.parameters.version):
            return
        if self._shares:
            add, version = self.trajectory.add, self.parameters.version
            self._shares.copy(lambda slabs: add(version, slabs[PARAMETERS]), state=False)
        else:
            self.trajectory.add(self.parameters.version, self.parameters.current)

    def _accept(self, worker: WorkerId) -> None:
        if self.coordinator.plan:
            try:
                shared = self._shared.accept(worker)
            except OSError as error:
                # Its stream is about to break, if the worker is gone.
                self.telemetry.notice(f"no memory could be shared with worker {self._connections[worker].name}: {error}")
                self._evict(worker)
                return
            chunk_elements = self.coordinator.plan.chunk_elements
            shards = self._shares.invite(worker) if self._shares else []
            accepted = parameter_service_pb2.Accepted(chunk_elements=chunk_elements, shared_memory=shared, shards=shards)
            self._send(worker, parameter_service_pb2.WorkResponse(accepted=accepted))

    def _send_range(self, workers: list[WorkerId], version: int, chunks: range) -> None:
        if self.parameters is None or not workers:
            return
        connections = [self._connections[worker] for worker in workers if worker in self._connections]
        for chunk in chunks:
            message, size = wire.parameters_chunk(self.parameters, version, chunk)
            self.telemetry.exchange.parameter_bytes += size * len(connections)
            for connection in connections:
                connection.send_parameters(version, message)

    def _count(self, reason: messages.Drop) -> None:
        counts = self.telemetry.contributions
        match reason:
            case messages.Drop.DUPLICATE:
                counts.duplicate += 1
            case messages.Drop.LATE:
                counts.late += 1
            case messages.Drop.STALE_INCARNATION:
                counts.stale_incarnation += 1
            case messages.Drop.UNKNOWN:
                counts.unknown += 1

    def _evict(self, worker: WorkerId) -> None:
        connection = self._connections.pop(worker, None)
        if connection:
            silent = f"{self.settings.silence_seconds:g} s"
            self.telemetry.notice(f"worker {connection.name} said nothing for {silent}; its tasks go to others")
            self._shared.leave(worker)
            connection.evict()
            self._lost()

    def _write_checkpoint(self, position: messages.Position) -> None:
        # What is durable may not be ahead of what is told: steps behind a checkpoint are never taken again.
        self.telemetry.flush()
        if self._shares:
            samples, seconds = self.telemetry.samples, self.telemetry.seconds
            self._shares.copy(lambda slabs: self._save_copy(position, slabs, samples, seconds), state=True)
            return
        checkpoint = self.checkpoint(position)
        if checkpoint:
            self._save(checkpoint)

    def checkpoint(self, position: messages.Position) -> Checkpoint | None:
        """The state at a position, copied; None as long as there is none."""
        if self.parameters is None:
            return None
        parameters, state = self.parameters.snapshot()
        return self._checkpoint_of(position, parameters, state, self.telemetry.samples, self.telemetry.seconds)

    def _checkpoint_of(
        self, position: messages.Position, parameters: Slab, state: State, samples: int, seconds: float
    ) -> Checkpoint | None:
        if self._prepared is None or self.trajectory is None:
            return None
        versions, trajectory = tuple(self.trajectory.versions), self.trajectory.slabs()
        return Checkpoint(position, self._prepared, parameters, state, versions, trajectory, samples, seconds)

    def _save_copy(self, position: messages.Position, slabs: State, samples: int, seconds: float) -> None:
        checkpoint = self._checkpoint_of(position, slabs.pop(PARAMETERS), slabs, samples, seconds)
        if checkpoint:
            self._save(checkpoint)

    def _send(self, worker: WorkerId, message: parameter_service_pb2.WorkResponse) -> None:
        connection = self._connections.get(worker)
        if connection:
            connection.send(message)

    def _finish(self, finish: messages.Finish) -> None:
        self.telemetry.flush()
        if self._shares is None:
            self._end(finish)
        elif self.coordinator.policy is None or self._shares.broken:
            self._come_home(None)
            self._end(finish)
        else:
            self._shares.copy(lambda slabs: self._end(finish, slabs), state=finish.position is not None)

    def _end(self, finish: messages.Finish, slabs: State | None = None) -> None:
        ending = Ending(self.job.id, finish)
        try:
            if slabs:
                self._come_home(slabs)
            ending.collect(self, finish)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job ends
            _log.exception("job %s: what came of it cannot be kept", self.job.id)
            ending = Ending(self.job.id, messages.Finish(job_pb2.JOB_STATE_FAILED, f"{type(error).__name__}: {error}"))
        self._ended(ending)
        self.over.set()

    def _come_home(self, slabs: State | None) -> None:
        """The shards are not needed any more: all arrays are here again, if there is anything to be kept."""
        shares, own = self._shares, self.parameters
        self._shares = self.parameters = None
        if shares:
            shares.close()
        if slabs and own:
            self.parameters = Parameters(own.plan)
            self.parameters.restore(own.version, slabs.pop(PARAMETERS), slabs or None)

    def needs(self, shard: AttendingShard) -> bool:
        """Whether a shard holds something that the job cannot do without."""
        return self._shares is not None and self._shares.at(shard)

    def give_up(self, reason: str) -> None:
        """Ends the run, not the job, as the end of the server would: nothing that it holds is kept."""
        self.given_up = True
        self._turns.close()
        self.telemetry.flush()
        self._say_goodbye(reason)
        self._connections.clear()
        if self._shares:
            self._shares.close()
        self.over.set()

    def dismiss(self) -> None:
        """Tells the workers that the job has ended. To be called when that is durable."""
        self._say_goodbye(f"the job ended: {state_name(self.job.state)}")

    def _say_goodbye(self, reason: str) -> None:
        goodbye = parameter_service_pb2.Goodbye(reason=reason)
        for connection in self._connections.values():
            connection.send(parameter_service_pb2.WorkResponse(goodbye=goodbye))
        self.release()

    def release(self) -> None:
        """Shares no more memory."""
        self._shared.close()


def _header(prepared: parameter_service_pb2.Prepared, version: int, slab: Slab) -> training_service_pb2.ParametersHeader:
    return training_service_pb2.ParametersHeader(
        layout=prepared.layout, version=version, sha256=layouts.digest(slab), preprocessing=prepared.preprocessing
    )


class _JobError(Exception):
    """A decision cannot be carried out, for a reason that is the job's."""
