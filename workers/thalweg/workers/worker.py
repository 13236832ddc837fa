"""A worker: one stream to the parameter server, on which it takes tasks and answers them."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import numpy as np
from threadpoolctl import threadpool_limits

from thalweg.contract import codecs
from thalweg.contract.channel import OPTIONS, Address, authorization
from thalweg.contract.errors import from_rpc_error
from thalweg.contract.layout import ranges
from thalweg.contract.sums import Sums
from thalweg.contract.tree import Node
from thalweg.v1 import job_pb2, parameter_service_pb2_grpc
from thalweg.v1 import parameter_service_pb2 as pb
from thalweg.workers import data
from thalweg.workers.data import DataError
from thalweg.workers.differentiation import Differentiator
from thalweg.workers.fetch import fetcher
from thalweg.workers.model import ModelError
from thalweg.workers.residuals import Outgoing

# How long the cost of numerical differentiation is measured.
_MEASURE_SECONDS = 0.25


def work(server: Address, token: str | None, job_id: str, name: str, answered: Callable[[], object] = lambda: None) -> str:
    """Works for a job until the server says goodbye, and gives the reason that it says. Calls `answered` behind each task.

    Raises ThalwegError if the server is lost, and whatever the computation raises. A mistake in the job's model or data is told
    to the server, which fails the job.
    """
    with grpc.insecure_channel(str(server), options=list(OPTIONS)) as channel:
        outbox: queue.SimpleQueue[pb.WorkRequest | None] = queue.SimpleQueue()
        outbox.put(pb.WorkRequest(hello=pb.Hello(job_id=job_id, worker=name)))
        stub = parameter_service_pb2_grpc.ParameterServiceStub(channel)
        inbox = stub.Work(iter(outbox.get, None), metadata=authorization(token))
        try:
            try:
                return _Worker(channel, token, outbox, answered).run(inbox)
            except (ModelError, DataError) as error:
                outbox.put(pb.WorkRequest(failure=pb.Failure(problem=str(error))))
                return _goodbye(inbox)
        except grpc.RpcError as error:
            raise from_rpc_error(error, str(server)) from error
        finally:
            outbox.put(None)


def _goodbye(inbox: Iterator[pb.WorkResponse]) -> str:
    """Waits for the server's last word."""
    for message in inbox:
        if message.HasField("goodbye"):
            return message.goodbye.reason
    return "the server ended the stream"


@contextmanager
def _heartbeats(outbox: "queue.SimpleQueue[pb.WorkRequest | None]", seconds: float) -> Iterator[None]:
    """A thread sends a heartbeat every so many seconds, whatever else the worker does, as long as the context. None for 0."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(seconds):
            outbox.put(pb.WorkRequest(heartbeat=pb.Heartbeat()))

    thread = threading.Thread(target=beat, name="thalweg-heart", daemon=True)
    if seconds > 0:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()


class _Worker:
    """The state of one stream."""

    def __init__(
        self,
        channel: grpc.Channel,
        token: str | None,
        outbox: "queue.SimpleQueue[pb.WorkRequest | None]",
        answered: Callable[[], object],
    ) -> None:
        self._channel = channel
        self._token = token
        self._outbox = outbox
        self._answered = answered

    def run(self, inbox: Iterator[pb.WorkResponse]) -> str:
        """Answers messages until goodbye."""
        for message in inbox:
            match message.WhichOneof("message"):
                case "welcome":
                    spec = message.welcome.spec
                    heartbeats = _heartbeats(self._outbox, message.welcome.heartbeat_seconds)
                    with heartbeats, threadpool_limits(spec.training.threads_per_worker, "blas"):
                        self._prepare(spec)
                        return self._serve(inbox)
                case "goodbye":
                    return message.goodbye.reason
        return "the server ended the stream"

    def _prepare(self, spec: job_pb2.JobSpec) -> None:
        self._spec = spec
        with fetcher(self._channel, self._token) as fetch:
            dataset = data.load(spec, fetch)
        self._differentiator = Differentiator(spec, dataset)
        model = self._differentiator.model
        try:
            self._buffers = (np.empty(model.size, model.dtype), np.empty(model.size, model.dtype))
        except MemoryError:
            raise ModelError(f"model.layers: {model.size:,} parameters do not fit in this worker's memory") from None
        prepared = pb.Prepared(
            layout=model.layout,
            train_samples=len(dataset.train_x),
            validation_samples=len(dataset.validation_x),
            preprocessing=dataset.preprocessing,
            classifier=model.classifier,
        )
        if self._differentiator.numerical and spec.training.epochs:
            model.initial(self._buffers[0])
            prepared.loss_seconds = self._differentiator.cost(self._buffers[0], _MEASURE_SECONDS)
        self._send(pb.WorkRequest(prepared=prepared))

    def _serve(self, inbox: Iterator[pb.WorkResponse]) -> str:
        for message in inbox:
            match message.WhichOneof("message"):
                case "differentiate":
                    self._differentiate(message.differentiate)
                    self._answered()
                case "parameters":
                    self._keep(message.parameters)
                case "evaluate":
                    self._evaluate(message.evaluate)
                    self._answered()
                case "initialize":
                    self._initialize()
                case "accepted":
                    self._chunk_elements = message.accepted.chunk_elements
                    self._incoming = codecs.of_parameters(self._spec, self._chunk_elements)
                    self._outgoing = Outgoing(self._spec, self._buffers[0].size, self._chunk_elements)
                case "goodbye":
                    return message.goodbye.reason
        return "the server ended the stream"

    def _send(self, message: pb.WorkRequest) -> None:
        self._outbox.put(message)

    def _keep(self, part: pb.ParametersChunk) -> None:
        """Puts a chunk of the parameters in the buffer of its version; so version v stays whole while v + 1 arrives."""
        start = part.chunk * self._chunk_elements
        self._incoming.decode(part.data, self._buffers[part.version % 2][start : start + self._chunk_elements])

    def _initialize(self) -> None:
        initial = self._buffers[0]
        self._differentiator.model.initial(initial)
        for chunk, where in enumerate(ranges(initial.size, self._chunk_elements)):
            part = pb.ParametersChunk(version=0, chunk=chunk, data=initial[where].tobytes())
            self._send(pb.WorkRequest(initial=part))

    def _differentiate(self, task: pb.DifferentiateTask) -> None:
        node = Node(task.level, task.index)
        parameters = self._buffers[task.version % 2]
        size, width = parameters.size, self._chunk_elements
        chunks = [slice(c * width, min((c + 1) * width, size)) for c in range(task.first_chunk, task.end_chunk)]
        if self._differentiator.numerical:
            for chunk, where in enumerate(chunks, task.first_chunk):
                gradient, sums = self._differentiator.gradient(parameters, task.version, task.step, node, where)
                self._send_gradient(task, chunk, gradient.tobytes(), sums)
                self._differentiator.release(gradient)
            return
        gradient, sums = self._differentiator.gradient(parameters, task.version, task.step, node, slice(0, size), task.steps)
        self._outgoing.begin(node, task.step)
        for chunk, where in enumerate(chunks, task.first_chunk):
            self._send_gradient(task, chunk, self._outgoing.encode(gradient[where], where.start).tobytes(), sums)
        self._differentiator.release(gradient)

    def _send_gradient(self, task: pb.DifferentiateTask, chunk: int, values: bytes, sums: Sums) -> None:
        part = pb.GradientChunk(
            version=task.version,
            step=task.step,
            level=task.level,
            index=task.index,
            chunk=chunk,
            data=values,
            residual_since=self._outgoing.since,
        )
        if chunk == 0:
            part.sums.CopyFrom(_message(sums))
        self._send(pb.WorkRequest(gradient=part))

    def _evaluate(self, task: pb.EvaluateTask) -> None:
        dataset = self._differentiator.dataset
        train = task.split == pb.SPLIT_TRAIN
        x, y = (dataset.train_x, dataset.train_y) if train else (dataset.validation_x, dataset.validation_y)
        where = slice(task.first, task.end)
        sums = self._differentiator.evaluate(self._buffers[task.version % 2], x[where], y[where])
        answer = pb.Evaluation(version=task.version, split=task.split, first=task.first, sums=_message(sums))
        self._send(pb.WorkRequest(evaluation=answer))


def _message(sums: Sums) -> pb.Sums:
    return pb.Sums(loss=sums.loss, correct=sums.correct, samples=sums.samples)
