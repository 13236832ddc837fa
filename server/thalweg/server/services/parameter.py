"""ParameterService: workers' streams."""

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, NamedTuple

import grpc

from thalweg.contract import payload
from thalweg.contract.errors import ThalwegError
from thalweg.contract.payload import Parcel
from thalweg.server.jobs import Jobs
from thalweg.server.run import JobRun
from thalweg.server.services.guard import errors
from thalweg.v1 import parameter_service_pb2 as pb

_log = logging.getLogger(__name__)


class _Parameters(NamedTuple):
    """A message with parameters at a version."""

    version: int
    serialized: bytes


class WorkerStream:
    """The server's end of one worker's stream: a queue, emptied as fast as the worker takes it.

    Parameters that a worker has not taken when those of the version after the next come are not sent, unless it has yet to take
    a task behind them, which is computed with them. So a worker takes the memory of three versions at most, however slow its
    connection is.
    """

    def __init__(self, worker: int, name: str) -> None:
        self.worker = worker
        self.name = name
        self._queue: deque[pb.WorkResponse | _Parameters] = deque()
        self._newest = -1
        self._filled = asyncio.Event()
        self._evicted = asyncio.Event()

    def send(self, message: pb.WorkResponse) -> None:
        """Queues a message."""
        self._queue.append(message)
        self._filled.set()

    def send_parameters(self, version: int, serialized: bytes) -> None:
        """Queues a message with parameters at a version. Parameters two versions older, for which no task waits, are left out."""
        queue = self._queue
        if version > self._newest:
            self._newest = version
            waiting: list[pb.WorkResponse | _Parameters] = []
            while queue and isinstance(queue[-1], _Parameters):
                waiting.append(queue.pop())
            queue.extend(each for each in reversed(waiting) if isinstance(each, _Parameters) and each.version >= version - 1)
        queue.append(_Parameters(version, serialized))
        self._filled.set()

    def evict(self) -> None:
        """Ends the stream."""
        self._evicted.set()

    async def evicted(self) -> None:
        """Waits until the worker is taken for lost. Raises ThalwegError then."""
        await self._evicted.wait()
        raise ThalwegError("EVICTED")

    async def write(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Writes what is queued, until cancelled or told goodbye."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._queue:
                message = self._queue.popleft()
                if isinstance(message, _Parameters):
                    await context.write(message.serialized)
                    continue
                await context.write(message)
                if message.HasField("goodbye"):
                    return


class ParameterService:
    """Translates workers' streams."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._ids = itertools.count(1)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Has a server offer the service."""
        work: Any = grpc.stream_stream_rpc_method_handler(self._work, payload.request_of, payload.serialize)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(payload.SERVICE, {"Work": work}),))

    async def _work(self, requests: AsyncIterator[Parcel[pb.WorkRequest]], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        async with errors(context):
            requests = aiter(requests)
            opening = await anext(requests, None)
            if opening is None or not opening.message.HasField("hello"):
                raise ThalwegError("PROTOCOL_VIOLATION", {"problem": "a stream begins with hello"})
            first = opening.message
            run = self._jobs.run(first.hello.job_id)
            if run is None or not self._jobs.has_place(first.hello.job_id):
                absent = f"there is no job {first.hello.job_id} to work for"
                goodbye = pb.Goodbye(reason=f"job {first.hello.job_id} has no place yet" if run else absent)
                await context.write(pb.WorkResponse(goodbye=goodbye))
                return
            stream = WorkerStream(next(self._ids), first.hello.worker[:200])
            writer = asyncio.create_task(stream.write(context))
            reader = asyncio.create_task(_read(requests, run, stream))
            eviction = asyncio.create_task(stream.evicted())
            try:
                done, _ = await asyncio.wait({reader, eviction}, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    await task
            finally:
                run.leave(stream.worker)
                for task in (reader, eviction, writer):
                    task.cancel()
                    with suppress(asyncio.CancelledError, grpc.aio.UsageError, grpc.aio.InternalError, ThalwegError):
                        await task


async def _read(requests: AsyncIterator[Parcel[pb.WorkRequest]], run: JobRun, stream: WorkerStream) -> None:
    """Hands what a worker says to its job, until it says no more."""
    run.join(stream)
    async for request in requests:
        run.receive(stream.worker, request)
