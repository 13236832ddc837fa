"""The driver of one running job: turns messages into events for its coordinator and carries the decisions out.

It owns the job's arrays and its workers' connections. All of it happens in the server's event loop; nothing here waits.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Protocol

from thalweg.contract import layout as layouts
from thalweg.contract.errors import ThalwegError
from thalweg.contract.layout import Slab
from thalweg.contract.payload import Parcel, serialize
from thalweg.contract.states import state_name
from thalweg.server import messages, wire
from thalweg.server.checkpoints import Checkpoint
from thalweg.server.coordinator import Coordinator, Phase
from thalweg.server.ending import Ending
from thalweg.server.messages import Facts, WorkerId
from thalweg.server.parameters import Parameters
from thalweg.server.residuals import Residuals
from thalweg.server.settings import DEFAULT_SETTINGS, RunSettings
from thalweg.server.sharing import JobSharing, Sharing
from thalweg.server.telemetry import NOTHING_RECORDED, Clock, Recorded, Recorder, Telemetry
from thalweg.server.trajectory import Trajectory
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

    def evict(self, error: ThalwegError | None = None) -> None:
        """Ends the stream of a worker that is taken for lost, or that broke the protocol."""
        ...


class JobRun:
    """One job while it is queued or running. `ended` is called once, when it ends.

    `save` is handed checkpoints to be written in the background, behind the events recorded so far; it is answered by
    `checkpoint_done`. `checkpoint` and `recorded` are what earlier runs have left; `initial`, if the job is to start from given
    parameters, gives them as a slab of a layout, or raises ValueError.
    `sharing` is where workers on this machine get memory, if it is shared; `threads` share in the arithmetic.
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
        threads: Executor | None = None,
    ) -> None:
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
        self._threads = threads

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
        header = training_service_pb2.ParametersHeader(
            layout=self._prepared.layout,
            version=version,
            sha256=layouts.digest(slab),
            preprocessing=self._prepared.preprocessing,
        )
        return header, slab

    def snapshot(self) -> tuple[training_service_pb2.ParametersHeader, Slab]:
        """A copy of the parameters as they are now. Raises ThalwegError if there are none yet."""
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
            shared_memory=self._shared.invite(connection.worker, partial(self._hear, connection), partial(self._cut, connection)),
        )
        connection.send(parameter_service_pb2.WorkResponse(welcome=welcome))
        self._workers_changed()
        self.handle(messages.WorkerJoined(connection.worker))

    def leave(self, worker: WorkerId) -> None:
        """A worker's stream ended."""
        self._shared.leave(worker)
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
        self.handle(messages.CancelRequested())

    def receive(self, worker: WorkerId, request: Parcel[parameter_service_pb2.WorkRequest]) -> None:
        """Takes a worker's message. Raises ThalwegError if it makes no sense."""
        if request.message.HasField("gradient"):
            self.telemetry.exchange.gradient_bytes += len(request.data)
        if request.message.HasField("prepared"):
            self._receive_prepared(worker, request.message.prepared)
        else:
            self.handle(wire.event_of(worker, request, self.parameters, self._shared))

    def _hear(self, connection: Connection, data: bytes) -> None:
        """A worker says something beside its stream."""
        try:
            self.receive(connection.worker, wire.request_of(data))
        except ThalwegError as error:
            self._shared.leave(connection.worker)
            connection.evict(error)

    def _cut(self, connection: Connection, problem: str) -> None:
        """Nothing more can be said to a worker that shares memory."""
        _log.info("job %s: worker %s is lost: %s", self.job.id, connection.name, problem)
        connection.evict()

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
        plan = self.coordinator.plan
        if plan is None or self._prepared is None:
            return
        try:
            dtype = layouts.dtype_of(self._prepared.layout)
            self.parameters = Parameters(plan, self._shared.allocate(plan.elements, dtype), self._threads)
        except (MemoryError, ValueError):
            elements = layouts.elements(self._prepared.layout)
            raise _JobError(f"model.layers: {elements:,} parameters do not fit the server's memory") from None
        self.trajectory = Trajectory(plan)
        self.telemetry.planned(plan, self._prepared.loss_seconds)

    def _load_given(self) -> None:
        """Puts given parameters in place of random ones."""
        if self.parameters is None or self.trajectory is None or self._prepared is None:
            return
        checkpoint, self._checkpoint = self._checkpoint, None
        try:
            if checkpoint:
                self.parameters.restore(checkpoint.position.version, checkpoint.parameters, checkpoint.state)
                self.trajectory.restore(checkpoint.versions, checkpoint.trajectory)
            elif self._initial:
                self.parameters.restore(0, self._initial(self._prepared.layout), self.parameters.snapshot()[1])
        except ValueError as error:
            raise _JobError(str(error)) from error

    def handle(self, event: messages.Event) -> None:
        """Lets the coordinator decide about an event, and carries its decisions out. If that fails, so does the job."""
        try:
            self._handle(event)
        except _JobError as error:
            self._handle(messages.DriverFailed(str(error)))
        except Exception as error:  # noqa: BLE001 - half carried out, whatever it was
            _log.exception("job %s: decisions could not be carried out", self.job.id)
            self._handle(messages.DriverFailed(f"internal error: {type(error).__name__}: {error}"))

    def _handle(self, event: messages.Event) -> None:
        decisions = self.coordinator.handle(event, self._clock())
        self.telemetry.contributions.applied += any(isinstance(decision, messages.Keep) for decision in decisions)
        for decision in decisions:
            if isinstance(decision, messages.ApplyRange) and self.parameters:
                if not self.parameters.apply(decision.version, decision.step, decision.chunks, decision.schedule_factor):
                    # What else was decided takes this update for granted.
                    self._handle(messages.RangeNotFinite(decision.version))
                    return
            else:
                self._carry_out(decision)

    def _carry_out(self, decision: messages.Decision) -> None:
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
                if self.parameters.incoming.feedback:
                    lost = [self._residuals.lost(node, chunk, payload.residual_since) for chunk in chunks]
                    self.telemetry.contributions.lost_residuals += any(lost)
                for chunk in chunks:
                    self.parameters.keep(step, node, chunk, payload.chunk(self.parameters.plan, chunk))
            case messages.Merge(step, parent, chunks):
                for chunk in chunks:
                    self.parameters.merge(step, parent, chunk)
            case messages.MeasureGradient(step):
                self.parameters.measure(step)
            case messages.Promote(version, step):
                self.parameters.promote(version, step)
                if self.trajectory:
                    self.trajectory.offer(version, self.parameters.current)
            case messages.KeepInitial(chunk, payload):
                self.parameters.keep_initial(chunk, payload)
            case messages.ReportReady():
                self.telemetry.ready()
                if self.trajectory:
                    self.trajectory.offer(self.parameters.version, self.parameters.current)

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
            accepted = parameter_service_pb2.Accepted(chunk_elements=chunk_elements, shared_memory=shared)
            self._connections[worker].send(parameter_service_pb2.WorkResponse(accepted=accepted))

    def _send_range(self, workers: list[WorkerId], version: int, chunks: range) -> None:
        if self.parameters is None or not workers:
            return
        connections = [self._connections[worker] for worker in workers if worker in self._connections]
        for chunk in chunks:
            data = self.parameters.outgoing.encode(self.parameters.chunk(version, chunk))
            self.telemetry.exchange.parameter_bytes += data.size * len(connections)
            part = parameter_service_pb2.ParametersChunk(version=version, chunk=chunk)
            message = parameter_service_pb2.WorkResponse(parameters=part)
            serialized = serialize(Parcel(message, data))
            for connection in connections:
                connection.send_parameters(version, serialized)

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
        checkpoint = self.checkpoint(position)
        if checkpoint:
            self._save(checkpoint)

    def checkpoint(self, position: messages.Position) -> Checkpoint | None:
        """The state at a position, copied; None as long as there is none."""
        if self.parameters is None or self._prepared is None or self.trajectory is None:
            return None
        parameters, state = self.parameters.snapshot()
        return Checkpoint(
            position=position,
            prepared=self._prepared,
            parameters=parameters,
            state=state,
            versions=tuple(self.trajectory.versions),
            trajectory=self.trajectory.slabs(),
            samples=self.telemetry.samples,
            seconds=self.telemetry.seconds,
        )

    def _send(self, worker: WorkerId, message: parameter_service_pb2.WorkResponse) -> None:
        connection = self._connections.get(worker)
        if connection and not self._shared.say(worker, message):
            connection.send(message)

    def _finish(self, finish: messages.Finish) -> None:
        self.telemetry.flush()
        ending = Ending(self.job.id, finish)
        try:
            ending.collect(self, finish)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job ends
            _log.exception("job %s: what came of it cannot be kept", self.job.id)
            ending = Ending(self.job.id, messages.Finish(job_pb2.JOB_STATE_FAILED, f"{type(error).__name__}: {error}"))
        self._ended(ending)

    def dismiss(self) -> None:
        """Tells the workers that the job has ended. To be called when that is durable."""
        goodbye = parameter_service_pb2.Goodbye(reason=f"the job ended: {state_name(self.job.state)}")
        for connection in self._connections.values():
            connection.send(parameter_service_pb2.WorkResponse(goodbye=goodbye))
        self.release()

    def release(self) -> None:
        """Shares no more memory."""
        self._shared.close()


class _JobError(Exception):
    """A decision cannot be carried out, for a reason that is the job's."""
