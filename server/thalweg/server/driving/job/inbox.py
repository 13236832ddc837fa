"""What workers say to one job, on their streams or beside them, as events."""

from collections.abc import Callable

from thalweg.contract import layout as layouts
from thalweg.contract.errors import ThalwegError, protocol_violation
from thalweg.contract.frames import Parcel
from thalweg.contract.text import MAX_PROBLEM, visible
from thalweg.server.deciding.events import DataChanged, Event, WorkerMisbehaved, WorkerPrepared
from thalweg.server.deciding.values import Facts, WorkerId
from thalweg.server.driving.job.admission import Admission
from thalweg.server.driving.job.holdings import Holdings
from thalweg.server.streams import wire
from thalweg.server.streams.connections import Connection, Connections
from thalweg.server.telemetry import Telemetry
from thalweg.v1 import parameter_service_pb2


class Inbox:
    """Hands events to `handle`. What a worker found out about the model and the data goes to `holdings`; `admission` says when
    prepared workers begin.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        holdings: Holdings,
        admission: Admission,
        connections: Connections,
        handle: Callable[[Event], object],
    ) -> None:
        self._telemetry = telemetry
        self._holdings = holdings
        self._admission = admission
        self._connections = connections
        self._shared = connections.shared
        self._handle = handle

    def receive(self, worker: WorkerId, request: Parcel[parameter_service_pb2.WorkRequest]) -> None:
        """Takes a worker's message. Raises ThalwegError if it makes no sense: the worker's node is at fault."""
        try:
            self._receive(worker, request)
        except ThalwegError as error:
            self._handle(WorkerMisbehaved(worker, str(error)))
            raise

    def _receive(self, worker: WorkerId, request: Parcel[parameter_service_pb2.WorkRequest]) -> None:
        if request.message.HasField("gradient"):
            self._telemetry.exchange.gradient_bytes += len(request.data)
        if request.message.HasField("heartbeat") and (name := self._connections.name(worker)):
            self._telemetry.prepares(name, visible(request.message.heartbeat.doing, MAX_PROBLEM))
        if request.message.HasField("prepared"):
            self._prepared(worker, request.message.prepared)
            return
        arrays = self._holdings.arrays
        for event in arrays.in_turn(wire.event_of(worker, request, arrays.expected, self._shared)):
            self._handle(event)

    def hear(self, connection: Connection, data: bytes) -> None:
        """Takes what a worker says beside its stream. A worker whose message makes no sense is evicted."""
        try:
            self.receive(connection.worker, wire.request_of(data))
        except ThalwegError as error:
            self._shared.leave(connection.worker)
            connection.evict(error)

    def _prepared(self, worker: WorkerId, prepared: parameter_service_pb2.Prepared) -> None:
        if worker not in self._connections:
            # It was let go while it prepared. What was offered to it has been withdrawn, and does not tell who lies.
            return
        wire.check_prepared(prepared, self._telemetry.job.spec)
        if not self._shared.settle(worker, prepared.shared_memory):
            raise protocol_violation("shared memory that was not accepted")
        prepared.ClearField("shared_memory")
        premises = wire.premises_of(prepared)
        prepared.ClearField("premises")
        elements = layouts.elements(prepared.layout)
        segments = layouts.segments_of(prepared.layout.tensors)
        samples = prepared.train_samples, prepared.validation_samples
        facts = Facts(elements, *samples, tuple(prepared.metrics), segments, prepared.numerical, prepared.test_samples)
        if problem := self._holdings.changed_data(prepared):
            self._handle(DataChanged(worker, problem))
            return
        if not self._holdings.learn(prepared):
            raise protocol_violation("a layout that differs from the first worker's")
        self._admission.add(WorkerPrepared(worker, facts, premises))
        self.admit()

    def admit(self) -> None:
        """Lets prepared workers begin, as soon as there is memory."""
        for event in self._admission.admit():
            self._handle(event)
