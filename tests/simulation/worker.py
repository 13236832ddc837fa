"""An imaginary worker: it computes imaginary gradients, takes its time, and may stand still."""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from thalweg.contract import codecs, tree
from thalweg.contract.codecs import SlabCodec
from thalweg.contract.errors import ThalwegError
from thalweg.contract.layout import Slab, layout_of, ranges
from thalweg.contract.segments import Kind, Segment, end_of
from thalweg.contract.sums import Sums
from thalweg.contract.tree import Node
from thalweg.server.deciding.values import Place
from thalweg.v1 import job_pb2
from thalweg.v1 import parameter_service_pb2 as pb
from thalweg.workers.transport.error_feedback import GradientEncoder
from thalweg.workers.transport.streams import unload

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster
    from tests.simulation.shards import GuestStream
    from thalweg.server.driving.job.driver import JobDriver

ELEMENTS = 9
TRAIN_SAMPLES = 20
NODES = 3
SEGMENTS = (
    Segment("0.weight", (ELEMENTS - 5,)),
    Segment("0.bias", (2,)),
    Segment("0.mean", (2,), Kind.STATISTIC),
    Segment("mask", (1,), Kind.CONSTANT),
)
PARAMETERS = end_of(Kind.PARAMETER, SEGMENTS)
LAYOUT = layout_of(SEGMENTS, np.dtype(np.float32))
_GRADIENT_SECONDS = 0.01
Leaf = Callable[[Slab, int, int, int], Slab]


def noise(parameters: Slab, step: int, steps: int, microbatch: int) -> Slab:
    """A gradient, or the movement of a lane, that depends on all parameters, the task, and the order of additions."""
    total = np.full(ELEMENTS, np.float32(0.01) * parameters.sum(), np.float32)
    for each in range(step, step + steps):
        drawn = np.random.default_rng([each, microbatch]).normal(size=ELEMENTS).astype(np.float32)
        total += parameters * np.float32(0.01) + drawn * np.float32(10.0 ** (microbatch % 5 - 4))
    return total


def ledger(_: Slab, step: int, steps: int, microbatch: int) -> Slab:
    """A gradient of small whole numbers, whose sum tells whether each was added once, in whatever order."""
    return np.full(ELEMENTS, sum(range(step, step + steps)) + 1 + 100 * microbatch, np.float32)


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
        self._cluster = cluster
        self._spec = job_pb2.JobSpec()
        self._chunk_elements = 0
        self._buffers = (np.zeros(ELEMENTS, np.float32), np.zeros(ELEMENTS, np.float32))

    def send(self, message: pb.WorkResponse) -> None:
        """The server's end of the stream: a message to the worker."""
        self._cluster.to_worker(self, message)

    def send_parameters(self, version: int, serialized: bytes) -> None:
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
        start = part.chunk * self._chunk_elements
        self._incoming.decode(start, data, self._buffers[part.version % 2][start : start + self._chunk_elements])

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
                self._say(prepared=prepared)
            case "accepted":
                self._chunk_elements = message.accepted.chunk_elements
                self._incoming = SlabCodec(codecs.of_parameters(self._spec, self._chunk_elements), PARAMETERS)
                self._outgoing = GradientEncoder(self._spec, SEGMENTS, self._chunk_elements)
                self.streams = [self._cluster.stream_to_shard(self, shard) for shard in message.accepted.shards]
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
                loss = float(np.abs(self._buffers[task.version % 2]).sum())
                sums = pb.Sums(loss=loss, samples=task.end - task.first, metrics=[1])
                answer = pb.Evaluation(version=task.version, split=task.split, first=task.first, sums=sums)
                self._say(evaluation=answer)
            case "goodbye":
                self._cluster.let_go(self)

    def _differentiate(self, task: pb.DifferentiateTask) -> None:
        parameters, node, leaf = self._buffers[task.version % 2], Node(task.level, task.index), self._cluster.leaf
        m = self._spec.training.microbatches
        gradient = tree.fold(node, m, lambda each: leaf(parameters, task.step, task.steps, each), np.add)
        gradient = gradient + (self.disagrees or self.odd)
        gradient[end_of(Kind.STATISTIC, SEGMENTS) :] = 0
        sums = tree.fold(node, m, lambda each: Sums(0.1 * each + float(parameters[0]), 1, (1.0,)), lambda a, b: a + b)
        self._outgoing.begin(node, task.step)
        for chunk in range(task.first_chunk, task.end_chunk):
            start = chunk * self._chunk_elements
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

    def _say(self, **message: object) -> None:
        self._cluster.to_server(self, pb.WorkRequest(**message))  # type: ignore[arg-type]
