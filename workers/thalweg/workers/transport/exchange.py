"""How a worker gets parameters and delivers gradients: over the stream, or in memory that it shares with the server."""

import logging
import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeAlias

import grpc
import numpy as np

from thalweg.contract import codecs, shared_memory
from thalweg.contract.codecs import Bytes, SlabCodec
from thalweg.contract.frames import Parcel, serialize
from thalweg.contract.layout import Slab, ranges
from thalweg.contract.segments import Kind, Segment, end_of
from thalweg.contract.sums import Sums
from thalweg.contract.tree import Node
from thalweg.v1 import job_pb2
from thalweg.v1 import parameter_service_pb2 as pb
from thalweg.workers.transport.error_feedback import GradientEncoder
from thalweg.workers.transport.streams import Said, Streams

Send: TypeAlias = Callable[[Said], object]

_log = logging.getLogger(__name__)
# The server answers at once, unless it is busy.
_SECONDS = 10.0
# The fewest chunks in shared memory that are worth a message before the gradient is complete.
_MIN_SHARED = 4
# A sleeping processor takes 0.1 ms to wake, which is long for a step of less than 1 ms. So a worker stays awake for this time if
# the last message came within twice the time. With long steps it never does.
_AWAKE_SECONDS = 0.0005


@contextmanager
def attach(offer: pb.SharedMemory) -> Iterator[socket.socket | None]:
    """A connection over which memory is shared, as long as the context lasts.

    None if there is no offer, or if it cannot be accepted: the server may run on another machine, or as another user.
    """
    if not offer.address or not shared_memory.AVAILABLE:
        yield None
        return
    try:
        peer = shared_memory.connect(offer.address, offer.token, _SECONDS)
    except shared_memory.SharingError as error:
        _log.debug("no shared memory: %s", error)
        yield None
        return
    with peer:
        yield peer


def _messages(peer: socket.socket) -> Iterator[bytes]:
    """The messages at a socket, until its other end is closed."""
    waited = 0.0
    while True:
        start = time.perf_counter()
        data = _stay_awake(peer, start + _AWAKE_SECONDS) if waited < 2 * _AWAKE_SECONDS else None
        if data is None:
            data = peer.recv(shared_memory.MAX_BYTES)
        if not data:
            return
        waited = time.perf_counter() - start
        yield data


def _stay_awake(peer: socket.socket, until: float) -> bytes | None:
    """The next message before a time, or None. The thread does not sleep meanwhile, but lets all others run."""
    while time.perf_counter() < until:
        with suppress(BlockingIOError):
            return peer.recv(shared_memory.MAX_BYTES, socket.MSG_DONTWAIT)
        os.sched_yield()
    return None


def listen(peer: socket.socket, stream: Iterator[Parcel[pb.WorkResponse]]) -> Iterator[Parcel[pb.WorkResponse]]:
    """The server's messages at the socket, then those on the stream. Raises what the stream raises."""
    last: list[Parcel[pb.WorkResponse]] = []
    problems: list[grpc.RpcError] = []

    def await_end() -> None:
        try:
            for parcel in stream:
                last.append(parcel)
                if parcel.message.HasField("goodbye"):
                    break
        except grpc.RpcError as error:
            problems.append(error)
        # Ends the wait at the socket.
        with suppress(OSError):
            peer.shutdown(socket.SHUT_RDWR)

    thread = threading.Thread(target=await_end, name="thalweg-stream", daemon=True)
    thread.start()
    peer.settimeout(None)
    with suppress(OSError):
        for data in _messages(peer):
            yield Parcel(pb.WorkResponse.FromString(data))
    thread.join()
    if problems:
        raise problems[0]
    yield from last


class Exchange(ABC):
    """The slabs of one worker. `parameters` are those at even and at odd versions, of shape (elements)."""

    # The fewest chunks of a gradient that are sent before it is complete.
    least_chunks = 1

    def __init__(self, parameters: tuple[Slab, Slab], chunk_elements: int, send: Send) -> None:
        self.parameters = parameters
        self.chunk_elements = chunk_elements
        self.send = send

    def chunk(self, number: int) -> slice:
        """The range of a chunk in a slab."""
        start = number * self.chunk_elements
        return slice(start, min(start + self.chunk_elements, self.parameters[0].size))

    @abstractmethod
    def keep(self, part: pb.ParametersChunk, data: memoryview) -> None:
        """Takes a chunk of the parameters: version v stays complete while v + 1 arrives."""

    def initial(self, values: Slab) -> list[bytes]:
        """The messages with the initial parameters."""
        return [
            serialize(Parcel(pb.WorkRequest(initial=pb.ParametersChunk(version=0, chunk=chunk)), values[where]))
            for chunk, where in enumerate(ranges(values.size, self.chunk_elements))
        ]

    @abstractmethod
    def slab(self, version: int) -> Slab:
        """The slab for a gradient that is computed at a version. Raises MemoryError."""

    @abstractmethod
    def gradient(self, task: pb.DifferentiateTask, slab: Slab, chunks: range, sums: Sums | None) -> None:
        """Sends some chunks of a gradient. `sums` are given if the slab's last chunk is among them, and sent with it."""


def gradient_chunk(
    task: pb.DifferentiateTask, chunk: int, values: Slab | Bytes, sums: Sums | None, residual_since: int = 0
) -> bytes:
    """The message with an encoded chunk of a gradient. The chunk is copied, since its array is used again."""
    part = pb.GradientChunk(
        version=task.version,
        step=task.step,
        level=task.level,
        index=task.index,
        chunk=chunk,
        residual_since=residual_since,
    )
    if sums:
        part.sums.CopyFrom(sums_message(sums))
    return serialize(Parcel(pb.WorkRequest(gradient=part), values))


def sums_message(sums: Sums) -> pb.Sums:
    """Sums, as a message."""
    return pb.Sums(loss=sums.loss, samples=sums.samples, metrics=sums.metrics)


class Arriving:
    """Puts the parameters that arrive on streams into two buffers, for even and for odd versions: v stays while v + 1 arrives."""

    def __init__(
        self, spec: job_pb2.JobSpec, segments: Sequence[Segment], chunk_elements: int, buffers: tuple[Slab, Slab]
    ) -> None:
        self._chunk_elements = chunk_elements
        self._buffers = buffers
        self._codec = SlabCodec(codecs.of_parameters(spec, chunk_elements), end_of(Kind.PARAMETER, segments))
        self._constants = end_of(Kind.STATISTIC, segments)

    def keep(self, part: pb.ParametersChunk, data: memoryview) -> None:
        """Keeps a chunk. Raises ValueError if the bytes are none of its encoding."""
        start = part.chunk * self._chunk_elements
        where = slice(start, start + self._chunk_elements)
        its, other = self._buffers[part.version % 2], self._buffers[(part.version + 1) % 2]
        self._codec.decode(start, data, its[where])
        if start >= self._constants:
            # It does not come again.
            other[where] = its[where]


class Streamed(Exchange):
    """Parameters and gradients travel over the stream, as the job's codec encodes them."""

    def __init__(
        self,
        spec: job_pb2.JobSpec,
        segments: Sequence[Segment],
        dtype: np.dtype[np.floating],
        chunk_elements: int,
        streams: Streams,
    ) -> None:
        elements = end_of(Kind.CONSTANT, segments)
        super().__init__((np.empty(elements, dtype), np.empty(elements, dtype)), chunk_elements, streams.send)
        self._streams = streams
        self._slab: Slab = np.empty(elements, dtype)
        self._constants = end_of(Kind.STATISTIC, segments)
        # Written at once, so that it counts when another worker on this machine asks how much memory is available.
        for slab in self.parameters:
            slab.fill(0)
        self._arriving = Arriving(spec, segments, chunk_elements, self.parameters)
        self._outgoing = GradientEncoder(spec, segments, chunk_elements)

    def keep(self, part: pb.ParametersChunk, data: memoryview) -> None:
        self._arriving.keep(part, data)

    def slab(self, version: int) -> Slab:  # noqa: ARG002 - earlier chunks were copied
        return self._slab

    def gradient(self, task: pb.DifferentiateTask, slab: Slab, chunks: range, sums: Sums | None) -> None:
        if chunks.start == task.first_chunk:
            self._outgoing.begin(Node(task.level, task.index), task.step)
        for chunk in chunks:
            where = self.chunk(chunk)
            if where.start >= self._constants and where.stop < slab.size:
                # Constants have no gradient. Only the slab's last chunk is sent nevertheless, with the sums.
                continue
            data = self._outgoing.encode(slab[where], where.start)
            message = gradient_chunk(task, chunk, data, sums if chunk == chunks[-1] else None, self._outgoing.since)
            self._streams.send_chunk(chunk, message)


class Shared(Exchange):
    """Parameters are read in the server's memory, and gradients are written where the server reads them."""

    least_chunks = _MIN_SHARED

    def __init__(self, peer: socket.socket, elements: int, dtype: np.dtype[np.floating], chunk_elements: int) -> None:
        """Raises SharingError if the server does not send the files that it announced."""
        self._peer = peer
        files: list[int] = []
        try:
            _, files = shared_memory.take(peer, 2)
            if len(files) != 2:
                raise shared_memory.SharingError("the server provided no parameters")
            even, odd = (shared_memory.slab(file, elements, dtype, writable=False) for file in files)
        except OSError as error:
            raise shared_memory.SharingError(f"the server's socket broke: {error}") from error
        finally:
            for file in files:
                os.close(file)
        super().__init__((even, odd), chunk_elements, self._say)
        self._slabs: list[Slab] = []
        self._used = 0
        self._version = -1

    def keep(self, part: pb.ParametersChunk, data: memoryview) -> None:  # noqa: ARG002 - the parameters are there already
        raise shared_memory.SharingError("the server sent parameters that it shares")

    def slab(self, version: int) -> Slab:
        # A task at a later version means that the server does not need the gradients of earlier versions any more.
        if version > self._version:
            self._version, self._used = version, 0
        if self._used == len(self._slabs):
            self._slabs.append(self._new())
        self._used += 1
        return self._slabs[self._used - 1]

    def _new(self) -> Slab:
        size, dtype = self.parameters[0].size, self.parameters[0].dtype
        try:
            file = shared_memory.create(size * dtype.itemsize)
        except OSError as error:
            raise MemoryError(f"{size * dtype.itemsize:,} bytes cannot be shared: {error.strerror}") from error
        try:
            # If the server is gone, or needs no more, the stream ends.
            with suppress(OSError):
                shared_memory.give(self._peer, file)
            return shared_memory.slab(file, size, dtype, writable=True)
        finally:
            os.close(file)

    def _say(self, message: Said) -> None:
        with suppress(OSError):
            self._peer.send(serialize(message))

    def gradient(self, task: pb.DifferentiateTask, slab: Slab, chunks: range, sums: Sums | None) -> None:
        number = next(number for number, each in enumerate(self._slabs) if each is slab)
        part = pb.SharedGradient(
            version=task.version,
            step=task.step,
            level=task.level,
            index=task.index,
            first_chunk=chunks.start,
            end_chunk=chunks.stop,
            slab=number,
            sums=sums_message(sums) if sums else None,
        )
        self.send(pb.WorkRequest(shared_gradient=part))
