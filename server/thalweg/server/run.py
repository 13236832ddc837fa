"""The driver of one running job: turns messages into events for its coordinator and carries the decisions out.

It owns the job's arrays and its workers' connections. All of it happens in the server's event loop; nothing here waits.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import numpy as np

from thalweg.contract import layout as layouts
from thalweg.contract.errors import ThalwegError
from thalweg.contract.layout import Slab
from thalweg.contract.states import state_name
from thalweg.contract.sums import Sums
from thalweg.contract.tree import Node
from thalweg.server import messages
from thalweg.server.coordinator import Coordinator, Phase
from thalweg.server.journal import Journal
from thalweg.server.messages import Facts, WorkerId
from thalweg.server.parameters import Parameters
from thalweg.server.telemetry import Telemetry
from thalweg.server.trajectory import Trajectory
from thalweg.v1 import job_pb2, parameter_service_pb2, training_service_pb2

_log = logging.getLogger(__name__)
# What no honest worker comes near, and a broken one may not fill the server's memory with.
_MOST_SAMPLES = 1 << 28
_MOST_TENSORS = 4096
_MOST_AXES = 8
_MOST_CHARACTERS = 2000


class Connection(Protocol):
    """One worker's stream, as a run sees it."""

    worker: WorkerId
    name: str

    def send(self, message: parameter_service_pb2.WorkResponse) -> None:
        """Queues a message."""
        ...


class Ending:
    """What a run leaves when it ends."""

    def __init__(self, job_id: str, finish: messages.Finish) -> None:
        self.job_id = job_id
        self.state = finish.state
        self.error = finish.error
        self.header: training_service_pb2.ParametersHeader | None = None
        self.slab: Slab | None = None
        self.trajectory: Trajectory | None = None
        self.result: job_pb2.Result | None = None

    def collect(self, run: "JobRun", finish: messages.Finish) -> None:
        """Takes what a run has, if it has parameters."""
        if run.parameters is None or run.coordinator.plan is None or run.coordinator.policy is None:
            return
        self.slab = run.parameters.current
        self.header = run.header(self.slab)
        if run.trajectory:
            run.trajectory.add(run.parameters.version, self.slab)
            self.trajectory = run.trajectory
        self.result = run.telemetry.result(run.coordinator.plan, run.parameters.version, self.header.sha256)
        if finish.train:
            self.result.train.CopyFrom(finish.train)
        if finish.validation:
            self.result.validation.CopyFrom(finish.validation)


class JobRun:
    """One job while it is queued or running. `ended` is called once, when it ends."""

    def __init__(self, job: job_pb2.Job, journal: Journal, ended: Callable[[Ending], None]) -> None:
        self.telemetry = Telemetry(job, journal)
        self.coordinator = Coordinator(job.spec)
        self.parameters: Parameters | None = None
        self.trajectory: Trajectory | None = None
        self._prepared: parameter_service_pb2.Prepared | None = None
        self._ended = ended
        self._connections: dict[WorkerId, Connection] = {}

    @property
    def job(self) -> job_pb2.Job:
        """The job as it is now. Its state may be ahead of what is durable."""
        return self.telemetry.job

    def header(self, slab: Slab) -> training_service_pb2.ParametersHeader:
        """What a slab of this job's parameters is. Raises ThalwegError if there are none yet."""
        if self._prepared is None or self.parameters is None:
            raise ThalwegError("NO_PARAMETERS", {"job": self.job.id})
        return training_service_pb2.ParametersHeader(
            layout=self._prepared.layout,
            version=self.parameters.version,
            sha256=layouts.digest(slab),
            preprocessing=self._prepared.preprocessing,
        )

    def snapshot(self) -> tuple[training_service_pb2.ParametersHeader, Slab]:
        """A copy of the parameters as they are now. Raises ThalwegError if there are none yet."""
        if self.parameters is None or self.coordinator.phase is Phase.PREPARING:
            raise ThalwegError("NO_PARAMETERS", {"job": self.job.id})
        slab = self.parameters.current.copy()
        return self.header(slab), slab

    def join(self, connection: Connection) -> None:
        """A worker opened its stream."""
        self._connections[connection.worker] = connection
        connection.send(parameter_service_pb2.WorkResponse(welcome=parameter_service_pb2.Welcome(spec=self.job.spec)))
        self._workers_changed()
        self.handle(messages.WorkerJoined(connection.worker))

    def leave(self, worker: WorkerId) -> None:
        """A worker's stream ended."""
        if self._connections.pop(worker, None) and self.coordinator.phase is not Phase.FINISHED:
            self._workers_changed()
            self.handle(messages.WorkerLost(worker))

    def _workers_changed(self) -> None:
        self.telemetry.workers_changed([connection.name for connection in self._connections.values()])

    def worker_crashed(self, problem: str) -> None:
        """A worker of this job ended by itself."""
        _log.debug("job %s: a worker crashed: %s", self.job.id, problem)

    def cancel(self) -> None:
        """Somebody asked for the end."""
        self.handle(messages.CancelRequested())

    def receive(self, worker: WorkerId, message: parameter_service_pb2.WorkRequest) -> None:
        """Takes a worker's message. Raises ThalwegError if it makes no sense."""
        match message.WhichOneof("message"):
            case "gradient":
                self._receive_gradient(worker, message.gradient)
            case "evaluation":
                answer = message.evaluation
                sums = Sums(answer.sums.loss, answer.sums.correct, answer.sums.samples)
                self.handle(messages.EvaluationReceived(worker, answer.version, answer.split, answer.first, sums))
            case "prepared":
                self._receive_prepared(worker, message.prepared)
            case "initial":
                chunk = message.initial.chunk
                self.handle(messages.InitialReceived(worker, chunk, self._values(chunk, message.initial.data)))
            case "failure":
                self.handle(messages.WorkerFailed(worker, message.failure.problem[:_MOST_CHARACTERS]))
            case kind:
                raise _violation(f"{kind or 'an empty message'} was not expected")

    def _receive_prepared(self, worker: WorkerId, prepared: parameter_service_pb2.Prepared) -> None:
        _check_prepared(prepared, self.job.spec.model.dtype)
        elements = layouts.elements(prepared.layout)
        facts = Facts(elements, prepared.train_samples, prepared.validation_samples, prepared.classifier)
        if self._prepared is None:
            self._prepared = prepared
        elif self._prepared.layout != prepared.layout:
            raise _violation("another layout than the first worker's")
        self.handle(messages.WorkerPrepared(worker, facts))
        if self.parameters is None and self.coordinator.plan:
            try:
                self.parameters = Parameters(self.coordinator.plan)
            except (MemoryError, ValueError):
                problem = f"model.layers: {elements:,} parameters do not fit the server's memory"
                self.handle(messages.WorkerFailed(worker, problem))
                return
            self.trajectory = Trajectory(self.coordinator.plan)
            self.telemetry.planned(self.coordinator.plan, prepared.loss_seconds)

    def _receive_gradient(self, worker: WorkerId, gradient: parameter_service_pb2.GradientChunk) -> None:
        if gradient.HasField("sums") != (gradient.chunk == 0):
            raise _violation("sums come with chunk 0 and only with it")
        sums = Sums(gradient.sums.loss, gradient.sums.correct, gradient.sums.samples) if gradient.chunk == 0 else None
        values = self._values(gradient.chunk, gradient.data)
        node = Node(gradient.level, gradient.index)
        self.handle(messages.ContributionReceived(worker, gradient.version, node, gradient.chunk, sums, values))

    def _values(self, chunk: int, data: bytes) -> Slab:
        """The numbers of a chunk, not copied. Raises ThalwegError if there are too many or too few."""
        if self.parameters is None or chunk >= self.parameters.plan.chunks:
            raise _violation(f"there is no chunk {chunk}")
        where = self.parameters.plan.chunk_range(chunk)
        wanted = (where.stop - where.start) * self.parameters.dtype.itemsize
        if len(data) != wanted:
            raise _violation(f"chunk {chunk} has {len(data)} bytes, not {wanted}")
        return np.frombuffer(data, self.parameters.dtype)

    def handle(self, event: messages.Event) -> None:
        """Lets the coordinator decide about an event, and carries its decisions out. If that fails, so does the job."""
        try:
            self._handle(event)
        except Exception as error:  # noqa: BLE001 - half carried out, whatever it was
            _log.exception("job %s: decisions could not be carried out", self.job.id)
            self._handle(messages.DriverFailed(f"internal error: {type(error).__name__}: {error}"))

    def _handle(self, event: messages.Event) -> None:
        for decision in self.coordinator.handle(event):
            if isinstance(decision, messages.ApplyRange) and self.parameters:
                if not self.parameters.apply(decision.version, decision.chunk, decision.schedule_factor):
                    # What else was decided takes this update for granted.
                    self._handle(messages.RangeNotFinite(decision.version))
                    return
            else:
                self._carry_out(decision)

    def _carry_out(self, decision: messages.Decision) -> None:
        match decision:
            case messages.SendRange(workers, version, chunk):
                self._send_range(workers, version, chunk)
            case messages.AssignDifferentiate(worker, task):
                self._assign_differentiate(worker, task)
            case messages.AssignEvaluate(worker, task):
                message = parameter_service_pb2.EvaluateTask(
                    version=task.version, split=task.split, first=task.first, end=task.end
                )
                self._send(worker, parameter_service_pb2.WorkResponse(evaluate=message))
            case messages.AssignInitialize(worker):
                initialize = parameter_service_pb2.InitializeTask()
                self._send(worker, parameter_service_pb2.WorkResponse(initialize=initialize))
            case messages.Accept(worker):
                self._accept(worker)
            case messages.ReportStep(step, loss, samples, factor):
                self.telemetry.step(step, loss, samples, factor)
            case messages.ReportEpoch(epoch, step, train_loss, validation):
                self.telemetry.epoch(epoch, step, train_loss, validation)
            case messages.Dropped(worker, reason):
                _log.debug("job %s: dropped a message of worker %d: %s", self.job.id, worker, reason)
            case messages.Finish():
                self._finish(decision)
            case _:
                self._compute(decision)

    def _compute(self, decision: messages.Decision) -> None:
        if self.parameters is None:
            return
        match decision:
            case messages.Keep(node, chunk, payload):
                self.parameters.keep(node, chunk, payload)
            case messages.Merge(parent, chunk):
                self.parameters.merge(parent, chunk)
            case messages.MeasureGradient():
                self.parameters.measure()
            case messages.Promote(version):
                self.parameters.promote(version)
                if self.trajectory:
                    self.trajectory.offer(version, self.parameters.current)
            case messages.KeepInitial(chunk, payload):
                self.parameters.keep_initial(chunk, payload)
            case messages.ReportReady():
                self.telemetry.ready()
                if self.trajectory:
                    self.trajectory.offer(0, self.parameters.current)

    def _accept(self, worker: WorkerId) -> None:
        if self.coordinator.plan:
            accepted = parameter_service_pb2.Accepted(chunk_elements=self.coordinator.plan.chunk_elements)
            self._send(worker, parameter_service_pb2.WorkResponse(accepted=accepted))

    def _send_range(self, workers: tuple[WorkerId, ...], version: int, chunk: int) -> None:
        if self.parameters is None or not workers:
            return
        data = self.parameters.chunk(version, chunk)
        part = parameter_service_pb2.ParametersChunk(version=version, chunk=chunk, data=data)
        message = parameter_service_pb2.WorkResponse(parameters=part)
        for worker in workers:
            self._send(worker, message)

    def _assign_differentiate(self, worker: WorkerId, task: messages.Task) -> None:
        message = parameter_service_pb2.DifferentiateTask(
            version=task.version,
            step=task.version,
            steps=1,
            level=task.node.level,
            index=task.node.index,
            first_chunk=task.first_chunk,
            end_chunk=task.end_chunk,
        )
        self._send(worker, parameter_service_pb2.WorkResponse(differentiate=message))

    def _send(self, worker: WorkerId, message: parameter_service_pb2.WorkResponse) -> None:
        connection = self._connections.get(worker)
        if connection:
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


def _check_prepared(prepared: parameter_service_pb2.Prepared, dtype: str) -> None:
    if not 0 < prepared.train_samples <= _MOST_SAMPLES or prepared.validation_samples > _MOST_SAMPLES:
        raise _violation("no training samples, or too many samples")
    tensors = prepared.layout.tensors
    if len(tensors) > _MOST_TENSORS or any(len(tensor.shape) > _MOST_AXES for tensor in tensors):
        raise _violation("a layout of too many tensors or axes")
    if prepared.layout.dtype != dtype or len({tensor.name for tensor in tensors}) < len(tensors):
        raise _violation("a layout of another dtype, or with two tensors of one name")


def _violation(problem: str) -> ThalwegError:
    return ThalwegError("PROTOCOL_VIOLATION", {"problem": problem})
