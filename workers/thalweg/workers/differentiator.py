"""Computes a task: gradients and metrics, as pure functions of the parameters and the task."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from thalweg.contract import codecs
from thalweg.contract.layout import Slab
from thalweg.contract.sums import Sums
from thalweg.contract.tree import Node
from thalweg.learning import registry
from thalweg.learning.data import Dataset
from thalweg.learning.data.groups import Groups
from thalweg.learning.data.microbatches import Microbatches
from thalweg.learning.data.order import Order
from thalweg.learning.data.samples import Samples
from thalweg.learning.errors import MistakeError
from thalweg.learning.numerical import NumericalDifferentiator, Point
from thalweg.learning.objective import Objective
from thalweg.v1 import job_pb2
from thalweg.workers.local_steps import Lanes
from thalweg.workers.tree_sum import Finished, Slabs, tree_sum

# Samples that are evaluated at once: they stay in the cache, and more would not be faster.
EVALUATION_BATCH = 256


class Differentiator:
    """Differentiates one job's loss. Belongs to one thread."""

    def __init__(self, spec: job_pb2.JobSpec, dataset: Dataset) -> None:
        self.dataset = dataset
        self.objective = registry.objective(spec, dataset.schema)
        for samples in filter(len, (dataset.train, dataset.validation, dataset.test)):
            self.objective.check(samples)
        self._numerical: NumericalDifferentiator | None = None
        if scheme := _scheme(spec, self.objective):
            self._numerical = NumericalDifferentiator(registry.objective(spec, dataset.schema, "float64"), scheme)
        self._microbatches = spec.training.microbatches
        order = Order(spec, len(dataset.train), dataset.train.groups)
        self._sizes = order.sizes
        self._gathered = Microbatches(dataset.train, order)
        if isinstance(dataset.train, Groups):
            # One thread reads groups ahead. It ends when the executor is collected, with this object, or with the process.
            self._reader = ThreadPoolExecutor(1, "thalweg-groups")
            dataset.train.read_with(self._reader.submit)
        self._slabs = Slabs(self.objective.dtype)
        self._points: dict[int, tuple[Point, int]] = {}
        self._at = (-1, -1)
        local = spec.training.synchrony.WhichOneof("policy") == "local"
        self._lanes = Lanes(spec, self.objective, self._gathered, order.steps_per_epoch) if local else None
        # The last task, and the task that followed each node before: after how many steps, and its node.
        self._last: tuple[int, Node] | None = None
        self._next: dict[Node, tuple[int, Node]] = {}

    @property
    def numerical(self) -> bool:
        """Whether gradients are computed by differences."""
        return self._numerical is not None

    def compile(self) -> None:
        """Computes a gradient for each size of a microbatch, with which all that a compiled model needs is compiled."""
        at: Slab = np.empty(self.objective.size, self.objective.dtype)
        self.objective.initialize(at)
        out = np.empty_like(at)
        for samples in self._sizes:
            self.objective.gradient(at, self.dataset.train.take(slice(samples)), samples, (0, 0), out)

    def gradient(
        self,
        parameters: Slab,
        version: int,
        step: int,
        node: Node,
        coordinates: slice,
        steps: int = 1,
        finished: Callable[[Slab, int], object] = lambda *_: None,
        out: Slab | None = None,
    ) -> tuple[Slab, Sums]:
        """The sum of the gradients of a node's microbatches in a step, at some coordinates, and their sums.

        `parameters` are those of `version`: what is computed for a (version, step) is used again for other coordinates. In local
        synchrony, the result is by how much the node's lanes move in `steps` steps from `step` on.

        The array is `out`, if that is given, with as many elements as there are coordinates. Otherwise it must be returned with
        `release`, and is used again. Meanwhile `finished` is called with it and the number of its first elements that are final,
        which grows until it is the array's size.
        """
        if self._last:
            last_step, last_node = self._last
            self._next[last_node] = (step - last_step, node)
        self._last = (step, node)
        size = coordinates.stop - coordinates.start if self.numerical else self.objective.size
        result = self._slabs.take(size) if out is None else out

        def leaf(microbatch: int, slab: Slab, done: Finished) -> Sums:
            if self._numerical:
                point, denominator = self._point(self._numerical, parameters, (version, step), microbatch)
                self._numerical.differentiate(point, denominator, coordinates, slab)
                sums = point.sums
            elif self._lanes:
                sums = self._lanes.train(parameters, range(step, step + steps), microbatch, slab)
            else:
                batch, denominator = self._gathered(step, microbatch)
                return self.objective.gradient(parameters, batch, denominator, (step, microbatch), slab, done)
            done(size)
            return sums

        return result, tree_sum(node, self._microbatches, leaf, result, partial(finished, result), self._slabs)

    def prefetch(self) -> None:
        """Gathers the samples of the task that is likely to be next. It should be called while there is nothing else to do.

        It is the task that followed the last task's node before.
        """
        if self._last is None or self._last[1] not in self._next or self._numerical or self._lanes:
            return
        step, node = self._last
        steps, following = self._next[node]
        self._gathered.gather(max(0, step + steps), following.leaves(self._microbatches))

    def _point(
        self, numerical: NumericalDifferentiator, parameters: Slab, at: tuple[int, int], microbatch: int
    ) -> tuple[Point, int]:
        """A microbatch of a step at the parameters of a version, and the number of samples in the whole minibatch.

        Kept for the (version, step), since a worker may compute many ranges of coordinates of it.
        """
        if at != self._at:
            self._at = at
            self._points.clear()
        if microbatch not in self._points:
            _, step = at
            batch, denominator = self._gathered.copy(step, microbatch)
            self._points[microbatch] = numerical.at(parameters, batch, (step, microbatch)), denominator
        return self._points[microbatch]

    def cost(self, parameters: Slab, seconds: float) -> float:
        """Seconds that one evaluation of a minibatch's loss takes as a part of numerical differentiation.

        Measured for about `seconds` on random coordinates. 0 if gradients are not computed by differences.
        """
        if self._numerical is None or not self._numerical.coordinates:
            return 0.0
        draws = [(0, microbatch) for microbatch in range(self._microbatches)]
        points = [self._numerical.at(parameters, self._gathered.copy(*draw).batch, draw) for draw in draws]
        one = np.empty(1)
        coordinates = 0
        start = time.perf_counter()
        for position in np.random.default_rng(0).integers(0, self._numerical.coordinates, 1000).tolist():
            for point in points:
                self._numerical.differentiate(point, 1, slice(position, position + 1), one)
            coordinates += 1
            if time.perf_counter() - start > seconds:
                break
        return (time.perf_counter() - start) / coordinates / self._numerical.evaluations

    def release(self, gradient: Slab) -> None:
        """Returns an array that `gradient` made, for later use."""
        self._slabs.release(gradient)

    def evaluate(self, parameters: Slab, samples: Samples, where: range) -> Sums:
        """The sums over a range of samples, without dropout."""
        total = Sums()
        for start in range(where.start, where.stop, EVALUATION_BATCH):
            part = samples.take(slice(start, min(start + EVALUATION_BATCH, where.stop)))
            total += self.objective.measure(parameters, part)
        return total


def _scheme(spec: job_pb2.JobSpec, objective: Objective) -> str | None:
    """How workers take differences for a job: a key of `NumericalDifferentiator`; None where they backpropagate.

    An objective that has no gradient of its own needs differences whatever the job says. Raises MistakeError if the job cannot do
    with them.
    """
    given = spec.training.gradient
    if given != "backpropagation" or not objective.numerical:
        return None if given == "backpropagation" else given
    lack = "is not possible without a gradient of the model's own; give it a method gradient(parameters, x, y)"
    if spec.training.synchrony.HasField("local"):
        raise MistakeError(f"training.synchrony: local {lack}")
    if not codecs.exact(spec):
        raise MistakeError(f"training.codec: {spec.training.codec.WhichOneof('kind')} {lack}, or use float32")
    return "numerical"
