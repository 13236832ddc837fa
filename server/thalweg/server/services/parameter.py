"""ParameterService: workers' streams, to a server or to a shard."""

import asyncio
import itertools
import logging
import math
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, Protocol

import grpc

from thalweg.contract import frames
from thalweg.contract.errors import ThalwegError
from thalweg.contract.frames import Parcel
from thalweg.contract.release import check_protocol
from thalweg.contract.text import MAX_WORKER_NAME, visible
from thalweg.server.access.principal import caller
from thalweg.server.access.table import covers
from thalweg.server.deciding.values import NOWHERE, Place
from thalweg.server.driving.jobs import Jobs
from thalweg.server.services.guarding.guard import end, errors
from thalweg.server.streams import wire
from thalweg.v1 import parameter_service_pb2 as pb

_log = logging.getLogger(__name__)
# With these a write fails when its stream has ended.
_STREAM_ENDED = (grpc.aio.UsageError, grpc.aio.InternalError, grpc.aio.AbortError)


class _Waiting(NamedTuple):
    """A message that the worker has not taken, and the version whose parameters make it useless if they come."""

    message: pb.WorkResponse | bytes
    until: float = math.inf


class WorkerStream:
    """The server's end of one worker's stream: a queue, emptied as fast as the worker takes it.

    What a worker has not taken when it is no longer of use is not sent: parameters two versions old, for tasks are given out at
    the current version only, which is the newest or the one before; and a task to evaluate any but the newest, for no version is
    made before the evaluation of the one before has ended. Constants stay: they are sent once, before
    everything else. So does everything that is queued before a task to compute a gradient, and a worker with such tasks gets no
    further parameters. So a worker that takes nothing costs the memory of a few versions, however long.
    """

    def __init__(self, worker: int, name: str, place: Place = NOWHERE) -> None:
        self.worker = worker
        self.name = name
        self.place = place
        self._queue: deque[_Waiting] = deque()
        self._newest = -1
        self._filled = asyncio.Event()
        self._evicted = asyncio.Event()
        self._end = ThalwegError("EVICTED")

    def send(self, message: pb.WorkResponse) -> None:
        """Queues a message."""
        if message.HasField("evaluate"):
            # Where there are constants alone, tasks are all that tells of a version.
            self._reach(message.evaluate.version)
            self._put(_Waiting(message, message.evaluate.version + 1))
        else:
            self._put(_Waiting(message))

    def send_parameters(self, version: int, serialized: bytes, *, constant: bool) -> None:
        """Queues a message with parameters at a version, or with constants, which are of use as long as the stream."""
        self._reach(version)
        self._put(_Waiting(serialized) if constant else _Waiting(serialized, version + 2))

    def _reach(self, version: int) -> None:
        if version > self._newest:
            self._newest = version
            self._drop_useless()

    def _put(self, waiting: _Waiting) -> None:
        self._queue.append(waiting)
        self._filled.set()

    def _drop_useless(self) -> None:
        useful: list[_Waiting] = []
        while self._queue and self._queue[-1].until < math.inf:
            waiting = self._queue.pop()
            if waiting.until > self._newest:
                useful.append(waiting)
        self._queue.extend(reversed(useful))

    def evict(self, error: ThalwegError | None = None) -> None:
        """Ends the stream, with an error."""
        self._end = error or ThalwegError("EVICTED")
        self._evicted.set()

    async def evicted(self) -> None:
        """Waits until the stream is to end. Raises the error with which it ends, a ThalwegError."""
        await self._evicted.wait()
        raise self._end

    def _next(self) -> pb.WorkResponse | bytes:
        """The next message. A task takes the chunk before it along: a message of its own costs more than to copy that."""
        message = self._queue.popleft().message
        if isinstance(message, bytes) and self._queue:
            following = self._queue[0].message
            if isinstance(following, pb.WorkResponse) and following.HasField("differentiate"):
                self._queue.popleft()
                return frames.with_parameters(following, message)
        return message

    async def write(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Writes what is queued, until it is cancelled or has written a goodbye."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._queue:
                message = self._next()
                await context.write(message)
                if isinstance(message, pb.WorkResponse) and message.HasField("goodbye"):
                    return


class Workplace(Protocol):
    """What a worker's stream leads to."""

    def join(self, stream: WorkerStream) -> None:
        """The stream is open."""
        ...

    def receive(self, worker: int, request: Parcel[pb.WorkRequest]) -> None:
        """Takes a worker's message. Raises ThalwegError if it makes no sense."""
        ...

    def leave(self, worker: int) -> None:
        """The stream has ended."""
        ...


class Reception(Protocol):
    """What lets workers in."""

    async def admit(self, hello: pb.Hello) -> tuple[Workplace, WorkerStream] | str:
        """Where a worker is to work, or why nowhere. Raises ThalwegError if what it says makes no sense."""
        ...


class JobReception:
    """Lets workers in who are to work for a server's jobs."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._ids = itertools.count(1)

    async def admit(self, hello: pb.Hello) -> tuple[Workplace, WorkerStream] | str:
        """The job's run, if the job has a place. Raises ThalwegError if the caller is the worker of another job."""
        principal, _, scope, _ = caller()
        if not covers(scope, principal, job=hello.job_id, owner="", shared=False):
            problem = f"its token is for job {principal.job}"
            raise ThalwegError("PERMISSION_DENIED", {"name": principal.name, "method": "Work", "problem": problem})
        run = self._jobs.run(hello.job_id)
        place = wire.place_of(hello.place, hello.worker)
        try:
            check_protocol("worker", hello.protocol, hello.release)
        except ThalwegError as error:
            if run:
                run.worker_refused(place, str(error))
            raise
        if run is None:
            return f"there is no job {hello.job_id} to work for"
        if not self._jobs.places.has(hello.job_id):
            return f"job {hello.job_id} {'is paused' if run.job.paused else 'is still queued'}"
        if not self._jobs.places.permits(run.job):
            return f"job {hello.job_id} has code, which this server does not allow"
        if refusal := self._jobs.cluster.refusal(place):
            return refusal
        return run, WorkerStream(next(self._ids), visible(hello.worker, MAX_WORKER_NAME), place)


class ParameterService:
    """Translates workers' streams."""

    def __init__(self, reception: Reception) -> None:
        self._reception = reception

    def add_to(self, server: grpc.aio.Server) -> None:
        """Has a server offer the service."""
        work: Any = grpc.stream_stream_rpc_method_handler(self._work, frames.request_of, frames.serialize)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(frames.SERVICE, {"Work": work}),))

    async def _work(self, requests: AsyncIterator[Parcel[pb.WorkRequest]], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        async with errors(context):
            requests = aiter(requests)
            opening = await anext(requests, None)
            if opening is None or not opening.message.HasField("hello"):
                raise ThalwegError("PROTOCOL_VIOLATION", {"problem": "a stream begins with hello"})
            admitted = await self._reception.admit(opening.message.hello)
            if isinstance(admitted, str):
                await context.write(pb.WorkResponse(goodbye=pb.Goodbye(reason=admitted)))
                return
            place, stream = admitted
            writer = asyncio.create_task(stream.write(context))
            reader = asyncio.create_task(_read(requests, place, stream))
            eviction = asyncio.create_task(stream.evicted())
            try:
                # Here and not in a task: between being admitted and joining, nothing else may happen.
                place.join(stream)
                done, _ = await asyncio.wait({reader, eviction}, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    await task
            finally:
                place.leave(stream.worker)
                *_, problem = await end(reader, eviction, writer)
                if isinstance(problem, Exception) and not isinstance(problem, _STREAM_ENDED):
                    raise problem


async def _read(requests: AsyncIterator[Parcel[pb.WorkRequest]], place: Workplace, stream: WorkerStream) -> None:
    """Hands what a worker says to where it works, until it says no more."""
    async for request in requests:
        place.receive(stream.worker, request)
