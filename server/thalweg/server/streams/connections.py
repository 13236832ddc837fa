"""The workers of one running job: their streams, the memory that they share, and what is decided for them."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol, assert_never

from thalweg.contract.errors import ThalwegError
from thalweg.server.arrays.interface import Arrays
from thalweg.server.arrays.parameters import Parameters
from thalweg.server.deciding.decisions import (
    AdmitWorker,
    AssignDifferentiate,
    AssignEvaluate,
    AssignInitialize,
    Dismiss,
    Evict,
    ForWorkers,
    LetGo,
    Refuse,
    SendRange,
)
from thalweg.server.deciding.values import Place, WorkerId
from thalweg.server.settings import RunSettings
from thalweg.server.streams import wire
from thalweg.server.streams.job_sharing import JobSharing
from thalweg.server.streams.memory_listener import Sharing
from thalweg.server.telemetry import Telemetry
from thalweg.v1 import parameter_service_pb2

_log = logging.getLogger(__name__)
# Nodes that are remembered, since a worker may lie about where it is.
_MAX_NODES = 1000


class Connection(Protocol):
    """One worker's stream, as a run sees it."""

    worker: WorkerId
    name: str
    place: Place

    def send(self, message: parameter_service_pb2.WorkResponse) -> None:
        """Queues a message."""
        ...

    def send_parameters(self, version: int, serialized: bytes, *, constant: bool) -> None:
        """Queues a message with parameters at a version. It may take the place of those of earlier versions, unless these are
        `constant`: what holds constants alone is sent once.
        """
        ...

    def evict(self, error: ThalwegError | None = None) -> None:
        """Ends the stream of a worker that counts as lost, or that broke the protocol."""
        ...


def broadcast(parameters: Parameters, connections: Sequence[Connection], version: int, chunks: range) -> int:
    """Sends chunks of the parameters at a version to all of some workers. How many bytes they are, encoded, for all of them."""
    sent = 0
    for chunk in chunks if connections else ():
        message, size = wire.parameters_chunk(parameters, version, chunk)
        sent += size * len(connections)
        for connection in connections:
            connection.send_parameters(version, message, constant=chunk in parameters.plan.constant)
    return sent


class Connections:
    """Who works for a job now. `sharing` is where workers on this machine get memory, if it is shared."""

    def __init__(self, sharing: Sharing | None, telemetry: Telemetry, settings: RunSettings) -> None:
        self.shared = JobSharing(sharing, telemetry.job.spec)
        self._telemetry = telemetry
        self._settings = settings
        self._all: dict[WorkerId, Connection] = {}
        self._names: dict[WorkerId, str] = {}
        self._since: dict[WorkerId, float] = {}
        # How many workers were lost on each node.
        self._lost: Counter[tuple[str, str]] = Counter()

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, worker: WorkerId) -> bool:
        return worker in self._all

    def name(self, worker: WorkerId) -> str:
        """The name of a worker; empty if it is not there."""
        return self._names.get(worker, "")

    def join(self, connection: Connection, hear: Callable[[Connection, bytes], object]) -> None:
        """A worker came: it is welcomed. `hear` is called with what it says beside its stream."""
        worker = connection.worker
        self._all[worker] = connection
        self._names[worker] = connection.name
        self._since[worker] = time.time()
        offer = self.shared.invite(worker, partial(hear, connection), partial(self._cut, connection))
        welcome = parameter_service_pb2.Welcome(
            spec=self._telemetry.job.spec,
            heartbeat_seconds=self._settings.heartbeat_seconds,
            silence_seconds=self._settings.silence_seconds,
            shared_memory=offer,
        )
        connection.send(parameter_service_pb2.WorkResponse(welcome=welcome))
        _log.info("job %s: worker %s joined", self._telemetry.job.id, connection.name)
        self._telemetry.workers_changed(self._names.values(), joined=[connection.name])

    def leave(self, worker: WorkerId, missed: bool = True) -> bool:
        """A worker is gone. Whether it was still there, and is missed."""
        self.shared.leave(worker)
        name = self._names.pop(worker, None)
        self._since.pop(worker, None)
        connection = self._all.pop(worker, None)
        if connection is None or name is None or not missed:
            return False
        if len(self._lost) < _MAX_NODES or connection.place.key in self._lost:
            self._lost[connection.place.key] += 1
        _log.info("job %s: worker %s left", self._telemetry.job.id, name)
        self._telemetry.contributions.lost_workers += 1
        self._telemetry.workers_changed(self._names.values(), left=[name])
        return True

    def carry_out(self, decision: ForWorkers, arrays: Arrays) -> None:
        """Sends a worker, if it is there, what was decided for it, or ends its stream. Shards hear of it before."""
        match decision:
            case SendRange(workers, version, chunks):
                self._send_range(arrays, workers, version, arrays.send(workers, version, chunks))
            case AssignDifferentiate(worker, _, _, again):
                self._telemetry.contributions.reissued_tasks += again
                self._assign(arrays, worker, wire.differentiate(decision))
            case AssignEvaluate(worker, task):
                self._assign(arrays, worker, wire.evaluate(task))
            case AssignInitialize(worker):
                initialize = parameter_service_pb2.InitializeTask()
                self._send(worker, parameter_service_pb2.WorkResponse(initialize=initialize))
            case AdmitWorker(worker):
                self._admit(arrays, worker)
            case Evict(worker):
                arrays.leave(worker)
                self._evict(worker)
            case Dismiss(worker, reason):
                arrays.leave(worker)
                self._dismiss(worker, reason)
            case LetGo(worker, reason):
                arrays.leave(worker)
                self._let_go(worker, reason)
            case Refuse(worker, problem, reason):
                arrays.leave(worker)
                self._refuse(worker, problem, reason)
            case _:
                assert_never(decision)

    def _evict(self, worker: WorkerId) -> None:
        """Ends the stream of a worker that said nothing for too long."""
        connection = self._all.get(worker)
        if connection:
            silent = f"{self._settings.silence_seconds:g} s"
            self._telemetry.notice(f"worker {connection.name} was silent for {silent}; its tasks go to other workers")
            connection.evict()
            self.leave(worker)

    def _dismiss(self, worker: WorkerId, reason: str) -> None:
        """Lets a worker go that cannot do its job."""
        connection = self._all.get(worker)
        if connection:
            connection.send(parameter_service_pb2.WorkResponse(goodbye=parameter_service_pb2.Goodbye(reason=reason)))
            self.leave(worker)

    def _let_go(self, worker: WorkerId, reason: str) -> None:
        """Lets a worker go that has done its work: it is not lost."""
        connection = self._all.get(worker)
        if connection:
            connection.send(parameter_service_pb2.WorkResponse(goodbye=parameter_service_pb2.Goodbye(reason=reason)))
            self.leave(worker, missed=False)
            _log.info("job %s: worker %s was let go: %s", self._telemetry.job.id, connection.name, reason)
            self._telemetry.workers_changed(self._names.values(), left=[connection.name])

    def _refuse(self, worker: WorkerId, problem: str, reason: str) -> None:
        """Ends the stream of a worker that cannot work beside the others, with the error of a reason."""
        connection = self._all.get(worker)
        if connection:
            connection.evict(ThalwegError(reason, {"problem": problem}))
            self.leave(worker)

    @property
    def all(self) -> list[tuple[Connection, float]]:
        """The streams of all of them, and since when each is there, in seconds since 1970."""
        return [(connection, self._since[worker]) for worker, connection in self._all.items()]

    def at(self, place: Callable[[Place], object]) -> tuple[WorkerId, ...]:
        """The workers at some places."""
        return tuple(worker for worker, connection in self._all.items() if place(connection.place))

    def on(self, fleet: str, node: str) -> int:
        """How many workers that a fleet started run on a node."""
        return sum(connection.place.key == (fleet, node) for connection in self._all.values())

    def of_fleet(self, fleet: str) -> int:
        """How many workers that a fleet started are there."""
        return sum(connection.place.fleet == fleet for connection in self._all.values())

    def __iter__(self) -> Iterator[Connection]:
        """The connections of those who are there, in the order in which they came."""
        return iter(self._all.values())

    def lost_at(self, place: Place) -> int:
        """How many workers were lost on a place's node."""
        return self._lost[place.key]

    def _cut(self, connection: Connection, problem: str) -> None:
        """Nothing more can be said to a worker that shares memory: it has ended, as a rule, and that is logged when it leaves."""
        _log.debug("job %s: the socket of worker %s: %s", self._telemetry.job.id, connection.name, problem)
        connection.evict()

    def _admit(self, arrays: Arrays, worker: WorkerId) -> None:
        """Tells a worker how the slab is cut and where it lies, and lets it come to the shards."""
        connection = self._all.get(worker)
        if connection is None:
            return
        try:
            shared = self.shared.accept(worker)
        except OSError as error:
            # Its stream is about to break anyhow, if the worker is gone, and that is no news.
            if not isinstance(error, ConnectionError):
                self._telemetry.notice(f"no memory could be shared with worker {connection.name}: {error}")
            connection.evict()
            return
        chunk_elements, shards = arrays.parameters.plan.chunk_elements, arrays.invite(worker)
        accepted = parameter_service_pb2.Accepted(chunk_elements=chunk_elements, shared_memory=shared, shards=shards)
        connection.send(parameter_service_pb2.WorkResponse(accepted=accepted))

    def _assign(self, arrays: Arrays, worker: WorkerId, task: parameter_service_pb2.WorkResponse) -> None:
        arrays.announce(worker, task)
        self._send(worker, task)

    def _send(self, worker: WorkerId, message: parameter_service_pb2.WorkResponse) -> None:
        connection = self._all.get(worker)
        if connection and not self.shared.say(worker, message):
            connection.send(message)

    def _send_range(self, arrays: Arrays, workers: Iterable[WorkerId], version: int, chunks: range) -> None:
        """Sends chunks of the parameters that are here to those of the workers that do not share them."""
        if chunks:
            connections = [self._all[worker] for worker in self.shared.remote(workers) if worker in self._all]
            self._telemetry.exchange.parameter_bytes += broadcast(arrays.parameters, connections, version, chunks)

    def say_goodbye(self, reason: str) -> None:
        """Tells all workers that there is nothing more to do."""
        goodbye = parameter_service_pb2.Goodbye(reason=reason)
        for connection in self._all.values():
            connection.send(parameter_service_pb2.WorkResponse(goodbye=goodbye))
        self.shared.close()

    def forget(self) -> None:
        """Whose stream ends from now on is not missed."""
        self._all.clear()
        self._names.clear()
