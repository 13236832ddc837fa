"""A task's answer: gradients and metrics, as pure functions of the parameters and the task."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import Slab
from thalweg.contract.sums import Sums
from thalweg.contract.tree import Node
from thalweg.learning.data import Dataset
from thalweg.learning.data.gathering import Gatherer
from thalweg.learning.data.sampling import Sampler
from thalweg.learning.numerical import Batch, NumericalDifferentiator
from thalweg.learning.sequential.model import Model
from thalweg.v1 import job_pb2
from thalweg.workers.adding import Finished, Slabs, add_up
from thalweg.workers.local import Lanes

# Samples that are evaluated at once: few enough to stay in the cache, more would not be faster.
EVALUATION_BATCH = 256


class Differentiator:
    """Differentiates one job's loss. Belongs to one thread."""

    def __init__(self, spec: job_pb2.JobSpec, dataset: Dataset) -> None:
        self.dataset = dataset
        self.model = Model(spec.model, dataset.input_shape, spec.seed, one_hot=spec.data.one_hot)
        for targets in (dataset.train_y, dataset.validation_y):
            self.model.check_targets(targets)
        scheme = spec.training.gradient
        self._numerical = None if scheme == "backpropagation" else NumericalDifferentiator(self.model, scheme)
        self._microbatches = spec.training.microbatches
        sampler = Sampler(len(dataset.train_x), spec.training.batch_size, self._microbatches, spec.seed)
        self._gatherer = Gatherer(dataset, sampler)
        self._slabs = Slabs(self.model.dtype)
        self._batches: dict[int, tuple[Batch, int]] = {}
        self._at = (-1, -1)
        local = spec.training.synchrony.WhichOneof("policy") == "local"
        self._lanes = Lanes(spec, self.model, self._gatherer, sampler.steps_per_epoch) if local else None
        # The task that was done last, and what came behind each node when it was done before: a node, so many steps later.
        self._last: tuple[int, Node] | None = None
        self._behind: dict[Node, tuple[int, Node]] = {}

    @property
    def numerical(self) -> bool:
        """Whether gradients are computed by differences."""
        return self._numerical is not None

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
        """What a node's microbatches add to a step's gradient, at some coordinates, and their sums.

        `parameters` are those of `version`: by (version, step) it is known what can be used again for other coordinates. Where
        synchrony is local, it is what the node's lanes moved in `steps` steps from `step` on that is given.

        The array is `out`, if that is given, with as many elements as there are coordinates. Otherwise it is one that is used
        again once it is given back with `release`. While it is filled, `finished` is given it and told how many of its first
        elements are final: ever more, and at last all of them.
        """
        if self._last:
            last_step, last_node = self._last
            self._behind[last_node] = (step - last_step, node)
        self._last = (step, node)
        size = coordinates.stop - coordinates.start if self.numerical else self.model.size
        result = self._slabs.take(size) if out is None else out

        def leaf(microbatch: int, slab: Slab, done: Finished) -> Sums:
            if self._numerical:
                batch, denominator = self._batch(self._numerical, parameters, (version, step), microbatch)
                self._numerical.differentiate(batch, denominator, coordinates, slab)
                sums = batch.sums
            elif self._lanes:
                sums = self._lanes.train(parameters, range(step, step + steps), microbatch, slab)
            else:
                x, y, denominator = self._gatherer(step, microbatch)
                self.model.bind(parameters)
                return self.model.loss_and_gradient(x, y, denominator, (step, microbatch), slab, done)
            done(size)
            return sums

        return result, add_up(node, self._microbatches, leaf, result, partial(finished, result), self._slabs)

    def prefetch(self) -> None:
        """Gathers the samples of the task that is likely to be next: to be called while there is nothing else to do.

        It is the one that came behind the last task's node when that was done before.
        """
        if self._last is None or self._last[1] not in self._behind or self._numerical or self._lanes:
            return
        step, node = self._last
        steps, following = self._behind[node]
        self._gatherer.gather(max(0, step + steps), following.leaves(self._microbatches))

    def _batch(
        self, numerical: NumericalDifferentiator, parameters: Slab, at: tuple[int, int], microbatch: int
    ) -> tuple[Batch, int]:
        """A microbatch of a step at the parameters of a version, and the number of samples in the whole minibatch.

        Kept for the (version, step), of which a worker may do many ranges of coordinates.
        """
        if at != self._at:
            self._at = at
            self._batches.clear()
        if microbatch not in self._batches:
            _, step = at
            x, y, denominator = self._gatherer.copy(step, microbatch)
            self._batches[microbatch] = numerical.at(parameters, x, y, (step, microbatch)), denominator
        return self._batches[microbatch]

    def cost(self, parameters: Slab, seconds: float) -> float:
        """Seconds that one evaluation of a minibatch's loss takes as a part of numerical differentiation.

        Measured for about `seconds` on coordinates here and there. 0 where gradients are not computed by differences.
        """
        if self._numerical is None or not self.model.size:
            return 0.0
        task = [(0, microbatch) for microbatch in range(self._microbatches)]
        samples = [self._gatherer.copy(*each) for each in task]
        batches = [self._numerical.at(parameters, x, y, each) for (x, y, _), each in zip(samples, task, strict=True)]
        one = np.empty(1)
        coordinates = 0
        start = time.perf_counter()
        for position in np.random.default_rng(0).integers(0, self.model.size, 1000).tolist():
            for batch in batches:
                self._numerical.differentiate(batch, 1, slice(position, position + 1), one)
            coordinates += 1
            if time.perf_counter() - start > seconds:
                break
        return (time.perf_counter() - start) / coordinates / self._numerical.evaluations

    def release(self, gradient: Slab) -> None:
        """Gives back an array that `gradient` made."""
        self._slabs.release(gradient)

    def evaluate(self, parameters: Slab, x: NDArray[Any], y: NDArray[Any]) -> Sums:
        """The sums over samples, without dropout."""
        self.model.bind(parameters)
        total = Sums()
        for start in range(0, len(x), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            total += self.model.sums(x[part], y[part])
        return total
