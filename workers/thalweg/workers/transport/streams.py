"""A worker's streams: one to the server, on which tasks come, and one to each shard that holds a range of the slab."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Protocol, TypeAlias

import grpc

from thalweg.contract import frames
from thalweg.contract.endpoint import Endpoint, Metadata, authorization, parse_address
from thalweg.contract.errors import ThalwegError
from thalweg.contract.frames import METHOD, Parcel
from thalweg.contract.release import hello
from thalweg.contract.tls import Tls
from thalweg.v1 import parameter_service_pb2 as pb

# A message to a server, serialized or not; those to send, None for their end; those that are received.
Said: TypeAlias = pb.WorkRequest | bytes
Outbox: TypeAlias = "queue.SimpleQueue[Said | None]"
Keep: TypeAlias = Callable[[pb.ParametersChunk, memoryview], object]
# Versions of its range that are received from a shard ahead of time; with a few more messages for tasks.
_VERSIONS, _TASKS = 2, 64


class Inbox(Protocol):
    """The messages on a stream."""

    def __iter__(self) -> Iterator[Parcel[pb.WorkResponse]]: ...

    def __next__(self) -> Parcel[pb.WorkResponse]: ...

    def cancel(self) -> object:
        """Ends the stream, also while another thread waits for its next message."""
        ...


def open_stream(channel: grpc.Channel, outbox: Outbox, metadata: Metadata) -> Inbox:
    """Opens a stream. The generated stub would copy the large part of every message, several times."""
    method: Any = channel.stream_stream(METHOD, frames.serialize, frames.response_of)
    inbox: Inbox = method(iter(outbox.get, None), metadata=metadata)
    return inbox


class Arrivals:
    """Messages of a shard that were received and not taken: parameters, each followed by the tasks that need them."""

    def __init__(self) -> None:
        self._come: deque[Parcel[pb.WorkResponse]] = deque()

    def __len__(self) -> int:
        return len(self._come)

    def put(self, parcel: Parcel[pb.WorkResponse]) -> None:
        """Adds a received message."""
        self._come.append(parcel)

    def take(self, task: pb.WorkResponse) -> Parcel[pb.WorkResponse] | None:
        """The next message, up to those for a task. None if the task is out of date. Raises IndexError if there is no message.

        A task to evaluate is out of date if parameters or tasks at a later version were received: its own are not sent any more.
        """
        if task.HasField("evaluate") and _version(self._come[0].message) > task.evaluate.version:
            return None
        return self._come.popleft()


class ShardStream:
    """A stream to one shard. A thread receives, so that parameters arrive from all shards at once.

    `lost` is called, in that thread, if the shard is lost, but not after its goodbye. With `tls` the shard is verified as the
    server is.
    """

    def __init__(self, shard: pb.ShardRange, lost: Callable[[ThalwegError], object], tls: Tls | None = None) -> None:
        self.chunks = range(shard.first_chunk, shard.end_chunk)
        self.outbox: Outbox = queue.SimpleQueue()
        self._address = shard.address
        self._lost = lost
        self._come = Arrivals()
        self._most = _VERSIONS * len(self.chunks) + _TASKS
        self._changed = threading.Condition()
        self._ended = False
        # A shard must not get the server's own token.
        self._endpoint = Endpoint(parse_address(shard.address), shard.token.hex(), tls and tls._replace(name=shard.tls_name))
        self._channel = self._endpoint.open()
        self.outbox.put(pb.WorkRequest(hello=hello(token=shard.token)))
        self._inbox = open_stream(self._channel, self.outbox, authorization(self._endpoint.token))
        self._thread = threading.Thread(target=self._read, name="thalweg-shard", daemon=True)

    def __enter__(self) -> "ShardStream":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self.outbox.put(None)
        self._inbox.cancel()
        self._channel.close()
        self._thread.join()

    def _end(self) -> bool:
        """Stops receiving. Returns whether it was receiving before."""
        with self._changed:
            new, self._ended = not self._ended, True
            self._changed.notify_all()
        return new

    def _read(self) -> None:
        error = ThalwegError("UNREACHABLE", {"address": self._address, "problem": "the shard ended the stream"})
        try:
            for parcel in self._inbox:
                if parcel.message.HasField("goodbye"):
                    self._end()
                elif not self._put(parcel):
                    return
        except grpc.RpcError as rpc_error:
            error = self._endpoint.translated(rpc_error)
        except ValueError as closed:
            # The channel is closed while the next message is requested.
            error = ThalwegError("UNREACHABLE", {"address": self._address, "problem": str(closed)})
        finally:
            if self._end():
                self._lost(error)

    def _put(self, parcel: Parcel[pb.WorkResponse]) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._come) < self._most)
            self._come.put(parcel)
            self._changed.notify_all()
            return not self._ended

    def receive(self, task: pb.WorkResponse, keep: Keep) -> bool:
        """Keeps the parameters that come before a task. Returns whether to do the task: False if it is out of date, or if the
        stream has ended.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._come)
                if not self._come:
                    return False
                parcel = self._come.take(task)
                if parcel is None:
                    return False
                self._changed.notify_all()
            unload(parcel, keep)
            if parcel.message == task:
                return True


def _version(message: pb.WorkResponse) -> int:
    """The version that a message is about."""
    return int(getattr(message, str(message.WhichOneof("message"))).version)


class Streams:
    """Sends each chunk to the shard that holds it, or else to the server."""

    def __init__(self, outbox: Outbox, shards: list[ShardStream]) -> None:
        self._outbox = outbox
        self._shards = shards
        self._stack = ExitStack()

    def __enter__(self) -> "Streams":
        for shard in self._shards:
            self._stack.enter_context(shard)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def send(self, message: Said) -> None:
        """Sends a message to the server."""
        self._outbox.put(message)

    def send_chunk(self, chunk: int, message: Said) -> None:
        """Sends a chunk of a gradient, or of the initial parameters."""
        outboxes = (shard.outbox for shard in self._shards if chunk in shard.chunks)
        next(outboxes, self._outbox).put(message)

    def receive(self, task: Parcel[pb.WorkResponse], keep: Keep) -> bool:
        """Keeps the parameters that came with a task, and those that shards sent before it.

        Returns whether to do the task: see `ShardStream.receive`.
        """
        unload(task, keep)
        wanted = [shard.receive(task.message, keep) for shard in self._shards]
        return all(wanted)


def unload(parcel: Parcel[pb.WorkResponse], keep: Keep) -> None:
    """Keeps the parameters of a message; if it is a task that carries them, they are removed from it."""
    message, values = parcel
    if message.HasField("parameters"):
        keep(message.parameters, values)
    elif message.HasField("differentiate") and message.differentiate.HasField("parameters"):
        keep(message.differentiate.parameters, values)
        message.differentiate.ClearField("parameters")
