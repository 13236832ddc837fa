"""An imaginary worker: it computes imaginary gradients, takes its time, and may stand still."""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.contract import shared_memory, tree
from thalweg.contract.errors import ThalwegError
from thalweg.contract.layout import Slab, layout_of, ranges
from thalweg.contract.segments import Kind, Segment, end_of
from thalweg.contract.sums import Sums
from thalweg.contract.tree import Node
from thalweg.server.deciding.values import Place
from thalweg.v1 import job_pb2
from thalweg.v1 import parameter_service_pb2 as pb
from thalweg.workers.transport.error_feedback import GradientEncoder
from thalweg.workers.transport.exchange import Arriving, Shared
from thalweg.workers.transport.streams import unload

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster
    from tests.simulation.shards import GuestStream
    from tests.simulation.sockets import ImaginarySocket
    from thalweg.server.driving.job.driver import JobDriver

ELEMENTS = 11
TRAIN_SAMPLES = 20
NODES = 3
SEGMENTS = (
    Segment("0.weight", (4,)),
    Segment("0.bias", (2,)),
    Segment("0.mean", (2,), Kind.STATISTIC),
    # With chunks of two elements, its first one is not part of a gradient.
    Segment("mask", (3,), Kind.CONSTANT),
)
LAYOUT = layout_of(SEGMENTS, np.dtype(np.float32))
_GRADIENT_SECONDS = 0.01
# How long a worker waits for the server's socket.
_ATTACH_SECONDS = 10.0
Leaf = Callable[[Slab, int, int, int], Slab]


def noise(parameters: Slab, step: int, steps: int, microbatch: int) -> Slab:
    """A gradient, or the movement of a lane, that depends on all parameters, the task, and the order of additions."""
    total = np.full(ELEMENTS, np.float32(0.01) * parameters.sum(), np.float32)
    for each in range(step, step + steps):
        total += parameters * np.float32(0.01) + _drawn(each, microbatch)
    return total


@cache
def _drawn(step: int, microbatch: int) -> Slab:
    drawn = np.random.default_rng([step, microbatch]).normal(size=ELEMENTS).astype(np.float32)
    drawn *= np.float32(10.0 ** (microbatch % 5 - 4))
    drawn.flags.writeable = False
    return drawn


def ledger(_: Slab, step: int, steps: int, microbatch: int) -> Slab:
    """A gradient of small whole numbers, whose sum tells whether each was added once, in whatever order."""
    return np.full(ELEMENTS, sum(range(step, step + steps)) + 1 + 100 * microbatch, np.float32)


class SharedTask:
    """A task that is computed where the server writes parameters and reads gradients: what is read of the parameters so far."""

    def __init__(self, buffer: Slab, parameters: Slab, slab: Slab | None) -> None:
        self.buffer = buffer
        self.parameters = parameters
        self.slab = slab
        self.gradient: Slab | None = None
        # The first chunk that the server has not been told.
        self.told = 0


class ImaginaryWorker:
    """One process with one stream to the server."""

    def __init__(self, cluster: "Cluster", number: int) -> None:
        self.worker = number
        self.name = f"imaginary/{number}"
        # Nodes take turns; several workers run on each.
        self.place = Place("imaginary", f"node-{number % NODES}", f"node-{number % NODES}")
        # What it reports, and instead of which answer: to `welcome`, or to a task.
        self.fails: pb.Failure | None = None
        self.fails_at = "welcome"
        self.disagrees = False
        # The kind of its machine. On an odd one other bits are computed.
        self.machine, self.odd = "one kind", False
        self.initialize_seconds = 0.0  # how long it takes to make the initial parameters
        self.run: JobDriver | None = None  # to which its stream leads
        self.left = False  # its stream has ended
        self.alive = True  # the process
        self.heard = True  # the network in between
        self.slowness = 1.0
        self.heartbeat_seconds = 0.0
        self.stopped_until = 0.0
        self.inbox: deque[pb.WorkResponse] = deque()
        self.busy = False  # with its first message, or waiting for what belongs to it
        # Its streams to shards; of those that have handed over all before its first message, a task, whether that is to be done.
        self.streams: list[GuestStream] = []
        self._wanted: list[bool] = []
        self._waiting = False
        # Whether it is on the server's machine, and how it takes the offer of shared memory: `whole`, or it stops half way.
        self.near, self.attaches = False, "whole"
        self._peer: ImaginarySocket | None = None
        self._exchange: Shared | None = None
        self._task: SharedTask | None = None
        self._cluster = cluster
        self._spec = job_pb2.JobSpec()
        self._chunk_elements = 0
        self._buffers = (np.zeros(ELEMENTS, np.float32), np.zeros(ELEMENTS, np.float32))

    def send(self, message: pb.WorkResponse) -> None:
        """The server's end of the stream: a message to the worker."""
        self._cluster.to_worker(self, message)

    def send_parameters(self, version: int, serialized: bytes, *, constant: bool) -> None:
        """The server's end of the stream: parameters to the worker."""
        self.send(pb.WorkResponse.FromString(serialized))

    def evict(self, error: ThalwegError | None = None) -> None:
        """The server's end of the stream: the worker is taken for lost or refused, and hears of it if it can."""
        self._cluster.evicted(self, error)

    def end(self) -> None:
        """The process ends."""
        self.alive = False
        for stream in self.streams:
            stream.close()
        if self._peer:
            self._peer.close()

    def missing(self, message: pb.WorkResponse) -> bool:
        """Takes what came from shards before a message. Whether some of it has yet to come. See `Streams.receive`."""
        if not (self.streams and (message.HasField("differentiate") or message.HasField("evaluate"))):
            return False
        while len(self._wanted) < len(self.streams):
            stream = self.streams[len(self._wanted)]
            if not stream.arrived:
                if not stream.over:
                    self._waiting = True
                    return True
                self._wanted.append(False)
                continue
            parcel = stream.arrived.take(message)
            if parcel is None:
                self._wanted.append(False)
                continue
            unload(parcel, self._keep)
            if parcel.message == message:
                self._wanted.append(True)
        return False

    def shard_spoke(self) -> None:
        """Something has come from a shard."""
        if self._waiting:
            self._waiting = False
            self._cluster.work(self)

    def _keep(self, part: pb.ParametersChunk, data: memoryview) -> None:
        self._arriving.keep(part, data)

    def seconds(self, message: pb.WorkResponse) -> float:
        """How long a message keeps the worker busy."""
        if not all(self._wanted):
            return 0.0
        if message.HasField("differentiate"):
            task = message.differentiate
            leaves = len(Node(task.level, task.index).leaves(self._spec.training.microbatches))
            return _GRADIENT_SECONDS * leaves * self.slowness
        if message.HasField("initialize"):
            return self.initialize_seconds
        return _GRADIENT_SECONDS * self.slowness if message.HasField("evaluate") else 0.0

    def handle(self, message: pb.WorkResponse) -> None:
        """Answers a message, unless it is a task that is out of date."""
        wanted, self._wanted = all(self._wanted), []
        if not wanted:
            return
        if self.fails and message.WhichOneof("message") == self.fails_at:
            self._say(failure=self.fails)
            self.fails = None
            return
        match message.WhichOneof("message"):
            case "welcome":
                self._spec = message.welcome.spec
                self.heartbeat_seconds = message.welcome.heartbeat_seconds
                self._cluster.beat(self)
                prepared = pb.Prepared()
                prepared.CopyFrom(self._cluster.prepared)
                prepared.train_samples += self.disagrees
                prepared.premises.add(name="processor", value="odd" if self.odd else self.machine)
                offer = message.welcome.shared_memory
                if self.near and offer.address:
                    self._attach(prepared, offer.token)
                else:
                    self._say(prepared=prepared)
            case "accepted":
                self._chunk_elements = message.accepted.chunk_elements
                self._arriving = Arriving(self._spec, SEGMENTS, self._chunk_elements, self._buffers)
                self._outgoing = GradientEncoder(self._spec, SEGMENTS, self._chunk_elements)
                self.streams = [self._cluster.stream_to_shard(self, shard) for shard in message.accepted.shards]
                if message.accepted.shared_memory:
                    self._share()
            case "parameters":
                self._keep(message.parameters, memoryview(message.parameters.data))
            case "initialize":
                initial = np.linspace(-1, 1, ELEMENTS, dtype=np.float32)
                for chunk, where in enumerate(ranges(ELEMENTS, self._chunk_elements)):
                    self._say_chunk(chunk, initial=pb.ParametersChunk(chunk=chunk, data=initial[where].tobytes()))
            case "differentiate":
                self._differentiate(message.differentiate)
            case "evaluate":
                task = message.evaluate
                loss = float(np.abs(self._parameters(task.version)).sum())
                sums = pb.Sums(loss=loss, samples=task.end - task.first, metrics=[1])
                answer = pb.Evaluation(version=task.version, split=task.split, first=task.first, sums=sums)
                self._say_beside(pb.WorkRequest(evaluation=answer))
            case "goodbye":
                self._cluster.let_go(self)

    def _attach(self, prepared: pb.Prepared, token: bytes) -> None:
        """Takes the offer of shared memory step by step, as `exchange.attach` does, or leaves it half way."""
        busy, network = self._cluster.busy(self), self._cluster.network
        peer = self._peer = self._cluster.call(busy)
        said = False

        def say(*, shared: bool) -> None:
            nonlocal said
            if not said and self.alive:
                said = True
                prepared.shared_memory = shared
                self._say(prepared=prepared)
                if self.attaches == "dies prepared":
                    self._cluster.replace_worker(self)

        def give_up() -> None:
            if not said and peer:
                peer.close()
                self._peer = None
            say(shared=False)

        def hear() -> None:
            if not peer or said:
                return
            peer.on_readable = None
            if peer.recv(len(shared_memory.OK)) == shared_memory.OK:
                say(shared=True)
            else:
                give_up()

        def show_token() -> None:
            if not self.alive or not peer:
                return
            try:
                peer.send(bytes(len(token)) if self.attaches == "another token" else token)
            except OSError:
                give_up()
            if self.attaches == "dies":
                self._cluster.replace_worker(self)

        if peer is None:
            say(shared=False)
            return
        peer.on_readable = hear
        if self.attaches != "silent":
            self._cluster.at(network.seconds(), show_token)
        self._cluster.at(_ATTACH_SECONDS, give_up)

    def _share(self) -> None:
        """The server hands over the parameters."""
        peer: Any = self._peer
        assert peer, "memory is shared that was not asked for"
        try:
            self._exchange = Shared(peer, ELEMENTS, np.dtype(np.float32), self._chunk_elements)
        except shared_memory.SharingError:
            self._cluster.replace_worker(self)
            return
        self._buffers = self._exchange.parameters
        peer.on_readable = self._look
        peer.wake()

    def _look(self) -> None:
        if not self.busy:
            self._cluster.work(self)

    def read(self) -> bool:
        """Takes the next message from the socket, if there is one."""
        if not self._exchange or not self._peer:
            return False
        with suppress(BlockingIOError):
            data = self._peer.recv(shared_memory.MAX_BYTES)
            if data:
                self.inbox.append(pb.WorkResponse.FromString(data))
            else:
                # The stream tells what has happened.
                self._peer.on_readable = None
            return bool(data)
        return False

    def begin(self, message: pb.WorkResponse) -> None:
        """Begins to read the parameters for a task where the server writes them, and to write a gradient where it reads it."""
        if not self._exchange or not (message.HasField("differentiate") or message.HasField("evaluate")):
            return
        numerical = self._spec.training.gradient != "backpropagation"
        slab: Slab | None = None
        version = message.evaluate.version if message.HasField("evaluate") else message.differentiate.version
        if message.HasField("differentiate") and not numerical:
            try:
                slab = self._exchange.slab(version)
            except MemoryError as error:
                self.fails, self.fails_at = pb.Failure(problem=str(error), scope=pb.Failure.SCOPE_NODE), "differentiate"
                return
            # What a reader would find who does not wait.
            slab[:] = np.nan
        buffer = self._exchange.parameters[version % 2]
        self._task = SharedTask(buffer, buffer[: ELEMENTS // 2].copy(), slab)

    def half_way(self, message: pb.WorkResponse) -> None:
        """Reads the rest of the parameters, and tells the first chunks of the gradient."""
        if self._task is None or self._exchange is None:
            return
        shared = self._task
        shared.parameters = np.concatenate([shared.parameters, shared.buffer[ELEMENTS // 2 :]])
        if shared.slab is None:
            return
        task = message.differentiate
        shared.gradient = self._gradient(task, shared.parameters)
        end = min(ELEMENTS // self._chunk_elements, task.end_chunk)
        if end - task.first_chunk >= self._exchange.least_chunks:
            chunks = range(task.first_chunk, end)
            self._write(shared, chunks)
            self._exchange.gradient(task, shared.slab, chunks, None)
            shared.told = end

    def _write(self, shared: "SharedTask", chunks: range) -> None:
        assert shared.slab is not None
        assert shared.gradient is not None
        where = slice(chunks.start * self._chunk_elements, chunks.stop * self._chunk_elements)
        shared.slab[where] = shared.gradient[where]

    def _parameters(self, version: int) -> Slab:
        """Those that were read for a task, or that have come for it."""
        shared, self._task = self._task, None
        return shared.parameters if shared else self._buffers[version % 2]

    def _gradient(self, task: pb.DifferentiateTask, parameters: Slab) -> Slab:
        node, leaf = Node(task.level, task.index), self._cluster.leaf
        m = self._spec.training.microbatches
        gradient: Slab = tree.fold(node, m, lambda each: leaf(parameters, task.step, task.steps, each), np.add)
        gradient += self.disagrees or self.odd
        gradient[end_of(Kind.STATISTIC, SEGMENTS) :] = 0
        return gradient

    def _differentiate(self, task: pb.DifferentiateTask) -> None:
        shared = self._task
        parameters, node, m = self._parameters(task.version), Node(task.level, task.index), self._spec.training.microbatches
        sums = tree.fold(node, m, lambda each: Sums(0.1 * each + float(parameters[0]), 1, (1.0,)), lambda a, b: a + b)
        if shared and self._exchange and shared.slab is not None:
            chunks = range(max(task.first_chunk, shared.told), task.end_chunk)
            self._write(shared, chunks)
            last = task.end_chunk * self._chunk_elements >= ELEMENTS
            self._exchange.gradient(task, shared.slab, chunks, sums if last else None)
            return
        gradient = self._gradient(task, parameters)
        self._outgoing.begin(node, task.step)
        for chunk in range(task.first_chunk, task.end_chunk):
            start = chunk * self._chunk_elements
            if start >= end_of(Kind.STATISTIC, SEGMENTS) and start + self._chunk_elements < ELEMENTS:
                continue
            part = pb.GradientChunk(
                version=task.version,
                step=task.step,
                level=task.level,
                index=task.index,
                chunk=chunk,
                data=self._outgoing.encode(gradient[start : start + self._chunk_elements], start).tobytes(),
                residual_since=self._outgoing.since,
            )
            if (chunk + 1) * self._chunk_elements >= ELEMENTS:
                part.sums.CopyFrom(pb.Sums(loss=sums.loss, samples=sums.samples, metrics=sums.metrics))
            self._say_chunk(chunk, gradient=part)

    def _say_chunk(self, chunk: int, **message: object) -> None:
        """Says a chunk to the shard that holds it, or else to the server."""
        stream = next((stream for stream in self.streams if chunk in stream.chunks), None)
        if stream:
            stream.send(pb.WorkRequest(**message))  # type: ignore[arg-type]
        else:
            self._say(**message)

    def _say_beside(self, message: pb.WorkRequest) -> None:
        """Says something on the socket, if there is one, or else on the stream."""
        if self._exchange:
            self._exchange.send(message)
        else:
            self._cluster.to_server(self, message)

    def _say(self, **message: object) -> None:
        self._cluster.to_server(self, pb.WorkRequest(**message))  # type: ignore[arg-type]
