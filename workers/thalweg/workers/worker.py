"""A worker: a stream to the parameter server, on which it receives tasks and answers them, and perhaps streams to shards."""

import queue
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import grpc
import numpy as np
from threadpoolctl import threadpool_limits

from thalweg.contract.code import entry_points
from thalweg.contract.endpoint import Endpoint
from thalweg.contract.errors import ThalwegError
from thalweg.contract.frames import Parcel
from thalweg.contract.layout import Slab
from thalweg.contract.release import hello
from thalweg.contract.segments import Kind, end_of
from thalweg.contract.shared_memory import SharingError
from thalweg.contract.tree import Node
from thalweg.learning import data
from thalweg.learning.data.memory import check_memory
from thalweg.learning.data.samples import Samples
from thalweg.learning.errors import NodeError
from thalweg.learning.objective import layout, notices
from thalweg.v1 import job_pb2
from thalweg.v1 import parameter_service_pb2 as pb
from thalweg.workers import code, needs, premises
from thalweg.workers.data_access import DEFAULT_POLICY, DataPolicy, NodeAccess
from thalweg.workers.differentiator import EVALUATION_BATCH, Differentiator
from thalweg.workers.failures import failure_of
from thalweg.workers.transport import exchange
from thalweg.workers.transport.exchange import Exchange
from thalweg.workers.transport.fetch import fetcher
from thalweg.workers.transport.streams import Inbox, Outbox, ShardStream, Streams, open_stream
from thalweg.workers.watch import Watch

# The time for which the cost of numerical differentiation is measured.
_MEASURE_SECONDS = 0.25
# The time that compiling may take beside the job's limit, on a machine with much else to do.
_COMPILATION_SECONDS = 600.0


def work(
    server: Endpoint,
    job_id: str,
    name: str,
    answered: Callable[[], object] = lambda: None,
    place: pb.Place | None = None,
    allow_code: bool = False,
    own_process: bool = False,
    policy: DataPolicy = DEFAULT_POLICY,
) -> str:
    """Works for a job until the server says goodbye, and returns the reason. Calls `answered` after each task.

    `place` is where it runs, if a fleet started it. `allow_code` is whether it may run code of the job's author. `own_process` is
    whether this process is the worker's alone: it ends where that code does not. `policy` is what the job's data may use. Raises
    ThalwegError if the server is lost or refuses the worker. Any other error is reported to the server, which decides what
    follows for the job.
    """
    with server.open() as channel, ExitStack() as until_the_end:
        outbox: Outbox = queue.SimpleQueue()
        outbox.put(pb.WorkRequest(hello=hello(job_id=job_id, worker=name, place=place)))
        inbox = open_stream(channel, outbox, server.metadata)
        worker = _Worker(channel, server, outbox, inbox, until_the_end, answered, allow_code, own_process, policy)
        try:
            try:
                return worker.run()
            except (grpc.RpcError, SharingError, ThalwegError):
                raise
            except Exception as error:  # noqa: BLE001 - every error is reported to the server
                outbox.put(pb.WorkRequest(failure=failure_of(error)))
                return worker.goodbye()
        except grpc.RpcError as error:
            raise worker.lost_shard or server.translated(error) from error
        except SharingError as error:
            raise ThalwegError("UNREACHABLE", {"address": str(server.address), "problem": str(error)}) from error
        finally:
            outbox.put(None)


class _Worker:
    """The state of one stream."""

    def __init__(
        self,
        channel: grpc.Channel,
        endpoint: Endpoint,
        outbox: Outbox,
        inbox: Inbox,
        until_the_end: ExitStack,
        answered: Callable[[], object],
        allow_code: bool,
        own_process: bool,
        policy: DataPolicy,
    ) -> None:
        self.lost_shard: ThalwegError | None = None
        self._channel = channel
        self._endpoint = endpoint
        self._outbox = outbox
        self._inbox: Iterator[Parcel[pb.WorkResponse]] = inbox
        self._cancel = inbox.cancel
        self._until_the_end = until_the_end
        self._answered = answered
        self._allow_code = allow_code
        self._own_process = own_process
        self._policy = policy
        self._streams = Streams(outbox, [])
        self._exchange: Exchange
        self._watch: Watch

    def run(self) -> str:
        """Answers messages until goodbye."""
        for message, _ in self._inbox:
            match message.WhichOneof("message"):
                case "welcome":
                    spec = message.welcome.spec
                    self._watch = self._watch_for(message.welcome)
                    # Open also while an error is reported: to the server, a closed socket is a lost worker.
                    self._peer = self._until_the_end.enter_context(exchange.attach(message.welcome.shared_memory))
                    threads = spec.training.threads_per_worker
                    limits = threadpool_limits(threads, "blas")
                    with self._watch, limits, self._code(spec):
                        self._prepare(spec)
                        return self._serve()
                case "goodbye":
                    return message.goodbye.reason
        return "the server ended the stream"

    def _watch_for(self, welcome: pb.Welcome) -> Watch:
        spec = welcome.spec
        # Code of this package's own neither hangs nor ends the process.
        alone = self._own_process and bool(entry_points(spec))
        seconds = welcome.heartbeat_seconds, welcome.silence_seconds, spec.training.task_seconds
        return Watch(self._outbox.put, *seconds, own_process=alone)

    @contextmanager
    def _code(self, spec: job_pb2.JobSpec) -> Iterator[None]:
        """Within the context, the job's code can run. The archive is not needed for that, once it is unpacked."""
        with ExitStack() as stack:
            with fetcher(self._channel, self._endpoint.metadata, "code.sha256") as fetch:
                stack.enter_context(code.ready(spec, fetch, allowed=self._allow_code))
            yield

    def _prepare(self, spec: job_pb2.JobSpec) -> None:
        self._spec = spec
        with fetcher(self._channel, self._endpoint.metadata) as fetch, self._watch.doing("loading the data"):
            access = self._until_the_end.enter_context(NodeAccess(fetch, self._policy, self._watch.doing))
            dataset = data.load(spec, access)
        with self._watch.doing("making the model"):
            self._differentiator = Differentiator(spec, dataset)
        objective = self._differentiator.objective
        need = needs.of_worker(spec, objective, len(dataset.train), EVALUATION_BATCH, shared=self._peer is not None)
        check_memory(f"model.layers: a worker for {objective.size:,} parameters", need)
        if spec.model.compile:
            # Before tasks are given, each of which should take the usual time.
            with self._watch.doing("compiling the model", _COMPILATION_SECONDS):
                self._differentiator.compile()
        prepared = pb.Prepared(
            layout=layout(objective),
            train_samples=len(dataset.train),
            validation_samples=len(dataset.validation),
            test_samples=len(dataset.test),
            preprocessing=dataset.preprocessing,
            metrics=objective.metrics,
            shared_memory=self._peer is not None,
            premises=premises.of_objective(objective) + premises.of_data(spec.data),
            numerical=self._differentiator.numerical,
            notice="; ".join((*notices(objective), *dataset.notices)),
        )
        if self._differentiator.numerical and spec.training.epochs:
            initial = self._initial()
            with self._watch.doing("computing the loss"):
                prepared.loss_seconds = self._differentiator.cost(initial, _MEASURE_SECONDS)
        self._streams.send(pb.WorkRequest(prepared=prepared))

    def goodbye(self) -> str:
        """Waits for the server's goodbye."""
        for message, _ in self._inbox:
            if message.HasField("goodbye"):
                return message.goodbye.reason
        return "the server ended the stream"

    def _serve(self) -> str:
        while (parcel := next(self._inbox, None)) is not None:
            message, values = parcel
            match message.WhichOneof("message"):
                case "differentiate" | "evaluate" if not self._streams.receive(parcel, self._exchange.keep):
                    pass
                case "differentiate":
                    with self._watch.doing("computing a gradient"):
                        self._differentiate(message.differentiate)
                    self._answered()
                    with self._watch.doing("reading samples"):
                        self._differentiator.prefetch()
                case "parameters":
                    self._exchange.keep(message.parameters, values)
                case "evaluate":
                    with self._watch.doing("evaluating samples"):
                        self._evaluate(message.evaluate)
                    self._answered()
                case "initialize":
                    for chunk, part in enumerate(self._exchange.initial(self._initial())):
                        self._streams.send_chunk(chunk, part)
                case "accepted":
                    shards = [ShardStream(shard, self._shard_lost, self._endpoint.tls) for shard in message.accepted.shards]
                    self._streams = self._until_the_end.enter_context(Streams(self._outbox, shards))
                    self._exchange = self._agreed(message.accepted)
                case "goodbye":
                    return message.goodbye.reason
        return "the server ended the stream"

    def _shard_lost(self, error: ThalwegError) -> None:
        """Called in a thread of a shard's stream. Without the shard the worker cannot continue."""
        self.lost_shard = self.lost_shard or error
        self._cancel()

    def _agreed(self, accepted: pb.Accepted) -> Exchange:
        """The exchange of parameters and gradients that the server accepted."""
        objective, chunk_elements = self._differentiator.objective, accepted.chunk_elements
        try:
            if accepted.shared_memory and self._peer:
                self._inbox = exchange.listen(self._peer, self._inbox)
                return exchange.Shared(self._peer, objective.size, objective.dtype, chunk_elements)
            return exchange.Streamed(self._spec, objective.segments, objective.dtype, chunk_elements, self._streams)
        except MemoryError:
            raise self._too_large() from None

    def _initial(self) -> Slab:
        objective = self._differentiator.objective
        try:
            initial: Slab = np.empty(objective.size, objective.dtype)
        except MemoryError:
            raise self._too_large() from None
        with self._watch.doing("making the initial parameters"):
            objective.initialize(initial)
        return initial

    def _too_large(self) -> NodeError:
        return NodeError(f"model.layers: {self._differentiator.objective.size:,} parameters do not fit in this worker's memory")

    def _differentiate(self, task: pb.DifferentiateTask) -> None:
        node, end = Node(task.level, task.index), task.end_chunk
        parameters = self._exchange.parameters[task.version % 2]
        size, width = parameters.size, self._exchange.chunk_elements
        last = -(-size // width) - 1
        if self._differentiator.numerical:
            constants = end_of(Kind.STATISTIC, self._differentiator.objective.segments)
            for chunk in range(task.first_chunk, end):
                where = self._exchange.chunk(chunk)
                gradient, sums = self._differentiator.gradient(parameters, task.version, task.step, node, where)
                # Constants have no gradient that would be sent.
                values = gradient[: max(0, constants - where.start)]
                self._streams.send(exchange.gradient_chunk(task, chunk, values, sums if chunk == last else None))
                self._differentiator.release(gradient)
            return
        try:
            slab = self._exchange.slab(task.version)
        except MemoryError:
            raise self._too_large() from None
        sent = task.first_chunk

        def send_what_is_done(gradient: Slab, elements: int) -> None:
            nonlocal sent
            done = min(elements // width, end)
            if elements < size and done - sent >= self._exchange.least_chunks:
                self._exchange.gradient(task, gradient, range(sent, done), None)
                sent = done

        _, sums = self._differentiator.gradient(
            parameters, task.version, task.step, node, slice(0, size), task.steps, send_what_is_done, slab
        )
        self._exchange.gradient(task, slab, range(sent, end), sums if end > last else None)

    def _evaluate(self, task: pb.EvaluateTask) -> None:
        samples = self._samples_of(task.split)
        parameters = self._exchange.parameters[task.version % 2]
        sums = self._differentiator.evaluate(parameters, samples, range(task.first, task.end))
        answer = pb.Evaluation(version=task.version, split=task.split, first=task.first, sums=exchange.sums_message(sums))
        self._exchange.send(pb.WorkRequest(evaluation=answer))

    def _samples_of(self, split: pb.Split.ValueType) -> Samples:
        dataset = self._differentiator.dataset
        match split:
            case pb.SPLIT_TRAIN:
                return dataset.train
            case pb.SPLIT_VALIDATION:
                return dataset.validation
            case _:
                return dataset.test
