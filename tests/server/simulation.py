"""A job's coordinator and arrays, driven by imaginary workers whose messages arrive in an order drawn from a seed."""

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thalweg.contract import layout as layouts
from thalweg.contract import tree
from thalweg.contract.layout import Slab
from thalweg.contract.sums import Sums
from thalweg.server import messages, validation
from thalweg.server.coordinator import Coordinator, Phase
from thalweg.server.messages import Facts
from thalweg.server.parameters import Parameters
from thalweg.v1 import job_pb2

ELEMENTS = 7


def make_spec(**training: Any) -> job_pb2.JobSpec:
    """A complete specification of a small job."""
    spec = job_pb2.JobSpec(
        model=job_pb2.Model(layers=[job_pb2.Layer(dense=job_pb2.Dense(units=1))], loss="mean_squared_error"),
        data=job_pb2.Data(builtin="xor"),
        training=job_pb2.Training(**training),
        optimizer=job_pb2.Optimizer(momentum=job_pb2.Momentum(learning_rate=0.1)),
    )
    return validation.complete(spec)


@dataclass
class Worker:
    """An imaginary worker: its two buffers, what is on its way to it, and what is on its way from it."""

    buffers: tuple[Slab, Slab] = field(default_factory=lambda: (np.zeros(ELEMENTS, np.float32), np.zeros(ELEMENTS, np.float32)))
    inbox: deque[Any] = field(default_factory=deque)
    outbox: deque[messages.Event] = field(default_factory=deque)


def leaf_gradient(parameters: Slab, step: int, microbatch: int) -> Slab:
    """An imaginary gradient: a function of the parameters and the task, sensitive to the order of additions."""
    noise = np.random.default_rng([step, microbatch]).normal(size=ELEMENTS)
    return (parameters * np.float32(0.3) + noise.astype(np.float32) * np.float32(10.0 ** (microbatch % 5))).astype(np.float32)


class Simulation:
    """One run of a job. The same seed gives the same run."""

    def __init__(self, spec: job_pb2.JobSpec, seed: int, validation_samples: int = 0) -> None:
        self.spec = spec
        self.facts = Facts(ELEMENTS, 20, validation_samples, classifier=True)
        self.random = random.Random(seed)
        self.coordinator = Coordinator(spec)
        self.parameters: Parameters | None = None
        self.workers: dict[int, Worker] = {}
        self.finish: messages.Finish | None = None
        self.losses: list[float] = []
        self.versions: list[int] = []
        self.epochs: list[messages.ReportEpoch] = []
        self.dropped: list[str] = []
        self._next = 0

    def join(self) -> int:
        """A worker joins."""
        self._next += 1
        worker = self.workers[self._next] = Worker()
        self.handle(messages.WorkerJoined(self._next))
        worker.outbox.append(messages.WorkerPrepared(self._next, self.facts))
        return self._next

    def lose(self, worker: int) -> None:
        """A worker is lost, with all that is on its way."""
        del self.workers[worker]
        self.handle(messages.WorkerLost(worker))

    def run(self, faults: float = 0.0, most: int = 6) -> Slab:
        """Runs to the end, with a fault now and then, and gives the final parameters."""
        self.join()
        while self.finish is None:
            if self.random.random() < faults:
                self._fault(most)
            if not self.workers:
                self.join()
            self.advance()
        if self.parameters is None:
            raise AssertionError("no parameters were made")
        return self.parameters.current

    def _fault(self, most: int) -> None:
        kind = self.random.randrange(3)
        if kind == 0 and len(self.workers) < most:
            self.join()
        elif kind == 1 and self.workers:
            self.lose(self.random.choice(list(self.workers)))
        elif kind == 2 and self.workers:
            outbox = self.workers[self.random.choice(list(self.workers))].outbox
            if outbox and not isinstance(outbox[0], messages.WorkerPrepared):
                outbox.appendleft(outbox[0])

    def advance(self) -> None:
        """One message arrives somewhere."""
        choices = [(w, box) for w, worker in self.workers.items() for box in (worker.inbox, worker.outbox) if box]
        if not choices:
            raise AssertionError(f"nothing moves any more: {self.coordinator.phase}")
        name, box = self.random.choice(choices)
        worker = self.workers[name]
        message = box.popleft()
        if box is worker.outbox:
            self.handle(message)
        else:
            self._work(name, worker, message)

    def _work(self, name: int, worker: Worker, message: Any) -> None:
        match message:
            case ("parameters", version, where, values):
                worker.buffers[version % 2][where] = values
            case messages.AssignInitialize():
                plan = self.coordinator.plan
                assert plan is not None
                initial = np.linspace(-1, 1, ELEMENTS, dtype=np.float32)
                for chunk, where in enumerate(layouts.ranges(ELEMENTS, plan.chunk_elements)):
                    worker.outbox.append(messages.InitialReceived(name, chunk, initial[where]))
            case messages.AssignDifferentiate(_, task):
                self._differentiate(name, worker, task)
            case messages.AssignEvaluate(_, task):
                sums = Sums(float(np.abs(worker.buffers[task.version % 2]).sum()), 1.0, task.end - task.first)
                worker.outbox.append(messages.EvaluationReceived(name, task.version, task.split, task.first, sums))

    def _differentiate(self, name: int, worker: Worker, task: messages.Task) -> None:
        plan = self.coordinator.plan
        assert plan is not None
        parameters = worker.buffers[task.version % 2]
        m = plan.microbatches
        gradient = tree.fold(task.node, m, lambda leaf: leaf_gradient(parameters, task.version, leaf), np.add)
        sums = tree.fold(task.node, m, lambda leaf: Sums(0.1 * leaf + float(parameters[0]), 1.0, 1), lambda a, b: a + b)
        for chunk in range(task.first_chunk, task.end_chunk):
            values = gradient[plan.chunk_range(chunk)].copy()
            of_chunk = sums if chunk == 0 else None
            worker.outbox.append(messages.ContributionReceived(name, task.version, task.node, chunk, of_chunk, values))

    def handle(self, event: messages.Event) -> None:
        """Lets the coordinator decide, and does what it says."""
        for decision in self.coordinator.handle(event):
            if self.finish:
                return
            if self.parameters is None and self.coordinator.plan:
                self.parameters = Parameters(self.coordinator.plan)
            match decision:
                case messages.Finish():
                    self.finish = decision
                    assert self.coordinator.phase is Phase.FINISHED
                case messages.ReportStep(_, loss):
                    self.losses.append(loss)
                case messages.ReportEpoch():
                    self.epochs.append(decision)
                case messages.Dropped(_, reason):
                    self.dropped.append(reason)
                case messages.AssignInitialize(name) | messages.AssignDifferentiate(name) | messages.AssignEvaluate(name):
                    self.workers[name].inbox.append(decision)
                case _ if self.parameters:
                    self._compute(self.parameters, decision)

    def _compute(self, parameters: Parameters, decision: messages.Decision) -> None:
        match decision:
            case messages.SendRange(workers, version, chunk):
                values = np.frombuffer(parameters.chunk(version, chunk), np.float32)
                for name in workers:
                    self.workers[name].inbox.append(("parameters", version, parameters.plan.chunk_range(chunk), values))
            case messages.KeepInitial(chunk, payload):
                parameters.keep_initial(chunk, payload)
            case messages.Keep(node, chunk, payload):
                parameters.keep(node, chunk, payload)
            case messages.Merge(parent, chunk):
                parameters.merge(parent, chunk)
            case messages.MeasureGradient():
                parameters.measure()
            case messages.ApplyRange(version, chunk, factor):
                if not parameters.apply(version, chunk, factor):
                    self.handle(messages.RangeNotFinite(version))
            case messages.Promote(version):
                self.versions.append(version)
                parameters.promote(version)
