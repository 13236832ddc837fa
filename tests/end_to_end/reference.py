"""Training as a plain loop: no server, no workers, no gRPC. What bulk and local training must equal, bit for bit."""

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np

from thalweg.contract import codecs, tree
from thalweg.contract.codecs import AnyCodec
from thalweg.contract.endpoint import CHUNK_BYTES
from thalweg.contract.layout import Slab
from thalweg.contract.segments import Kind, Segment
from thalweg.learning import clipping, data, optimizers, registry, schedules
from thalweg.learning.data.order import Order
from thalweg.learning.numerical import NumericalDifferentiator
from thalweg.learning.objective import Objective
from thalweg.learning.optimizers import AnyOptimizer, OptimizerState, Spans
from thalweg.learning.optimizers.groups import Span
from thalweg.v1 import job_pb2

# What a microbatch adds to a step: a gradient, the sum of losses, the number of samples.
Part = tuple[Slab, float, int]


def reference(spec: job_pb2.JobSpec, upload: Path | None = None) -> tuple[Slab, list[float]]:
    """The final parameters and the loss of each step; where synchrony is local, of each round of steps."""
    course = _Course(spec, data.load(spec, lambda _: upload or Path()))
    return course.local() if spec.training.synchrony.HasField("local") else course.bulk()


class _Course:
    def __init__(self, spec: job_pb2.JobSpec, dataset: data.Dataset) -> None:
        self.spec = spec
        self.dataset = dataset
        self.model = registry.objective(spec, dataset.schema)
        self.microbatches = spec.training.microbatches
        self.order = Order(spec, len(dataset.train), dataset.train.groups)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.total_steps = self.steps_per_epoch * spec.training.epochs
        self.parameters = np.empty(self.model.size, self.model.dtype)
        self.model.initialize(self.parameters)
        self.losses: list[float] = []
        chunk_elements = CHUNK_BYTES // self.parameters.itemsize
        self.gradients = codecs.of_gradients(spec, chunk_elements)
        self.sent = codecs.of_parameters(spec, chunk_elements)
        kinds = [segment.kind for segment in self.model.segments for _ in range(segment.size)]
        self.encoded = slice(kinds.count(Kind.PARAMETER))
        self.constants = slice(len(kinds) - kinds.count(Kind.CONSTANT), None)
        self.left: dict[int, Slab] = {}

    def bulk(self) -> tuple[Slab, list[float]]:
        update = _Update(self.spec.optimizer, self.model, self.steps_per_epoch, self.total_steps)
        scheme = self.spec.training.gradient
        numerical = None if scheme == "backpropagation" else NumericalDifferentiator(self.double(), scheme)

        def leaf(step: int, microbatch: int) -> Part:
            indices, denominator = self.order.microbatch(step, microbatch)
            gradient = np.empty(self.model.size, self.model.dtype)
            batch, draw = self.dataset.train.take(indices), (step, microbatch)
            if numerical:
                point = numerical.at(parameters, batch, draw)
                numerical.differentiate(point, denominator, slice(0, self.model.size), gradient)
                sums = point.sums
            else:
                sums = self.model.gradient(parameters, batch, denominator, draw, gradient)
            return self._travelled(gradient, microbatch), sums.loss, sums.samples

        for step in range(self.total_steps):
            parameters = self._decoded(self.sent, self.parameters)
            update(self.parameters, self._added([leaf(step, microbatch) for microbatch in range(self.microbatches)]), step)
        return self.parameters, self.losses

    def local(self) -> tuple[Slab, list[float]]:
        policy = self.spec.training.synchrony.local
        starts = range(0, self.total_steps, policy.steps)
        frozen = self.spec.optimizer.groups
        outer = _Update(policy.outer, self.model, max(1, self.steps_per_epoch // policy.steps), len(starts), frozen)

        def lane(first: int, microbatch: int) -> Part:
            start = self._decoded(self.sent, self.parameters)
            parameters = start.copy()
            update = _Update(self.spec.optimizer, self.model, self.steps_per_epoch, self.total_steps)
            loss, samples, taken = 0.0, 0, 0
            for step in range(first, min(first + policy.steps, self.total_steps)):
                indices, _ = self.order.microbatch(step, microbatch)
                if len(indices):
                    gradient = np.empty(self.model.size, self.model.dtype)
                    batch = self.dataset.train.take(indices)
                    loss += self.model.gradient(parameters, batch, len(indices), (step, microbatch), gradient).loss
                    samples += len(indices)
                    update(parameters, gradient, step, taken)
                    taken += 1
            parameters[self.constants] = start[self.constants] = 0
            return self._travelled((start - parameters) / self.microbatches, microbatch), loss, samples

        for number, first in enumerate(starts):
            moved = self._added([lane(first, microbatch) for microbatch in range(self.microbatches)])
            outer(self.parameters, moved, number)
        return self.parameters, self.losses

    def double(self) -> Objective:
        """The objective in double precision."""
        return registry.objective(self.spec, self.dataset.schema, "float64")

    def _travelled(self, gradient: Slab, microbatch: int) -> Slab:
        """What arrives of a microbatch's gradient; with error feedback, what is left of it is added to the next one."""
        if self.gradients.feedback:
            gradient = gradient + self.left.get(microbatch, np.zeros_like(gradient))
        arrived = self._decoded(self.gradients, gradient)
        self.left[microbatch] = gradient - arrived
        return arrived

    def _added(self, parts: list[Part]) -> Slab:
        """The sum of all microbatches' gradients, along the tree. Takes note of the mean loss."""

        def add(a: Part, b: Part) -> Part:
            return a[0] + b[0], a[1] + b[1], a[2] + b[2]

        gradient, loss, samples = tree.fold(tree.root(self.microbatches), self.microbatches, parts.__getitem__, add)
        self.losses.append(loss / samples)
        return gradient

    def _decoded(self, codec: AnyCodec, values: Slab) -> Slab:
        """A copy of values as they arrive: what is not descended is not encoded."""
        out = values.copy()
        codec.decode(codec.encode(values[self.encoded]), out[self.encoded])
        return out


class _Update:
    """An optimizer with its state, in place. With groups, each tensor has an optimizer of its own, or, frozen, none.

    The change of a statistic, which has none either, is subtracted.
    """

    def __init__(
        self,
        spec: job_pb2.Optimizer,
        model: Objective,
        steps_per_epoch: int,
        total_steps: int,
        frozen: Sequence[job_pb2.Group] = (),
    ) -> None:
        self._spec = spec
        self._course = (steps_per_epoch, total_steps)
        mixed = any(segment.kind != Kind.PARAMETER for segment in model.segments)
        by_tensor = mixed or spec.groups or frozen or spec.HasField("lamb")
        segments = model.segments if by_tensor else (Segment("", (model.size,)),)
        self._parts: list[_Part] = []
        self._statistics: list[slice] = []
        start = 0
        for name, shape, kind in segments:
            where = slice(start, start + math.prod(shape))
            start = where.stop
            group, other = _group(spec.groups, name), _group(frozen, name)
            if kind == Kind.STATISTIC:
                self._statistics.append(where)
            fixed = kind != Kind.PARAMETER or group.frozen or other.frozen
            optimizer = None if fixed else optimizers.make(_with_decay(spec, group))
            state = optimizer.init(where.stop - where.start, model.dtype) if optimizer else {}
            self._parts.append(_Part(where, optimizer, group.learning_rate_factor if group.pattern else 1.0, state))

    def __call__(self, parameters: Slab, gradient: Slab, step: int, taken: int | None = None) -> None:
        """Takes a step. `taken` is how many the state has seen, if not `step`."""
        for where in self._statistics:
            parameters[where] -= gradient[where]
        if self._spec.HasField("clip_global_norm"):
            for part in self._parts:
                if part.optimizer is None:
                    gradient[part.where] = 0
            scale = clipping.scale(squared_norm(gradient) ** 0.5, self._spec.clip_global_norm)
            if scale != 1.0:
                gradient *= gradient.dtype.type(scale)
        factor = schedules.factor(self._spec.schedule, step, *self._course)
        for where, optimizer, own_factor, state in self._parts:
            if optimizer:
                values, own, at = parameters[where], gradient[where], step if taken is None else taken
                trust = _trust_ratio(optimizer, values, own, state, at, where.start) if self._spec.HasField("lamb") else 1.0
                rate = optimizer.learning_rate * factor * (own_factor * trust)
                optimizers.apply(optimizer, values, own, state, values, rate, at, spans=unscaled(optimizer, values.size))


def unscaled(optimizer: AnyOptimizer, elements: int) -> list[Span]:
    """One span for a whole slab, whose updates the optimizer's reductions do not change: their factors are 1."""
    spans = Spans([Span(0, elements, 1.0, optimizer.weight_decay, frozen=False)])
    for reduction in optimizer.reductions:
        spans = spans.scaled(reduction, [1.0])
    return spans.within(slice(0, elements))


def _trust_ratio(optimizer: AnyOptimizer, values: Slab, gradient: Slab, state: OptimizerState, step: int, start: int) -> float:
    """LAMB's factor of a tensor's learning rate. The tensor begins at a position of the slab."""
    update, scratch = np.empty_like(values), np.empty_like(values)
    optimizer.rule(1.0, step)(gradient, {name: slab.copy() for name, slab in state.items()}, update, scratch)
    if optimizer.weight_decay:
        update += values * optimizer.weight_decay
    norms = squared_norm(values, start) ** 0.5, squared_norm(update, start) ** 0.5
    return norms[0] / norms[1] if all(norms) else 1.0


def squared_norm(values: Slab, start: int = 0) -> float:
    """The sum of squares of values that begin at a position of the slab, by its blocks of 65,536 elements, in float64."""
    total, position, end = 0.0, start, start + values.size
    while position < end:
        stop = min((position // 65_536 + 1) * 65_536, end)
        block = values[position - start : stop - start].astype(np.float64)
        with np.errstate(over="ignore"):
            block *= block
            total += float(np.add.reduce(block))
        position = stop
    return total


class _Part(NamedTuple):
    """A range of the slab, its optimizer, None if it is frozen, the factor of the learning rate, and the optimizer's state."""

    where: slice
    optimizer: AnyOptimizer | None
    factor: float
    state: OptimizerState


def _group(groups: Sequence[job_pb2.Group], name: str) -> job_pb2.Group:
    """The group of a tensor; an empty one if it has none."""
    return next((group for group in groups if fnmatchcase(name, group.pattern)), job_pb2.Group())


def _with_decay(spec: job_pb2.Optimizer, group: job_pb2.Group) -> job_pb2.Optimizer:
    """An optimizer with a group's weight decay, if the group states one."""
    made = job_pb2.Optimizer()
    made.CopyFrom(spec)
    if group.HasField("weight_decay"):
        getattr(made, str(made.WhichOneof("kind"))).weight_decay = group.weight_decay
    return made
