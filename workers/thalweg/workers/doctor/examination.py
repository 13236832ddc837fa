"""Computes tasks, and takes the digest of everything that is computed on the way."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import Slab
from thalweg.contract.segments import Kind, Segment
from thalweg.learning.data import Dataset
from thalweg.learning.data.microbatches import Microbatches
from thalweg.learning.data.order import Order
from thalweg.learning.objective import Objective, Traced
from thalweg.learning.randomness import Draw
from thalweg.v1 import job_pb2


class Found(NamedTuple):
    """Something that a task computes: what kind of thing it is, its name, and the SHA-256 of its bytes."""

    what: str
    name: str
    digest: str


# What a task computes, in the order in which it does.
INITIAL, SAMPLES, OUTPUT, LOSS, GRADIENT, STATISTIC = "initial value", "samples", "output", "loss", "gradient", "statistic"
_OF_SEGMENT = {Kind.PARAMETER: GRADIENT, Kind.STATISTIC: STATISTIC}


def tasks_of(spec: job_pb2.JobSpec, train_samples: int, count: int) -> list[Draw]:
    """A job's first tasks, as (step, microbatch), of steps as different as possible."""
    order = Order(spec, train_samples)
    steps = max(1, order.steps_per_epoch * spec.training.epochs)
    microbatches = spec.training.microbatches
    candidates = [(task % steps, task % microbatches) for task in range(count)]
    return list(dict.fromkeys(candidates))


def examine(objective: Objective, spec: job_pb2.JobSpec, dataset: Dataset, tasks: Iterable[Draw]) -> list[list[Found]]:
    """What each of some tasks of a job computes, one after the other, at the initial parameters."""
    at: Slab = np.empty(objective.size, objective.dtype)
    objective.initialize(at)
    gathered = Microbatches(dataset.train, Order(spec, len(dataset.train), dataset.train.groups))
    out: Slab = np.empty_like(at)
    results = []
    for step, microbatch in tasks:
        found: list[Found] = []
        found += _of_slab(objective.segments, at, dict.fromkeys(Kind, INITIAL))
        batch, denominator = gathered.copy(step, microbatch)
        found += [Found(SAMPLES, name, digest(values)) for name, values in sorted(batch.items())]

        def record(name: str, value: NDArray[Any], into: list[Found] = found) -> None:
            into.append(Found(OUTPUT, name, digest(value)))

        with objective.traced(record) if isinstance(objective, Traced) else nullcontext():
            sums = objective.gradient(at, batch, denominator, (step, microbatch), out)
        found.append(Found(LOSS, "", digest(np.array([sums.loss, sums.samples, *sums.metrics]))))
        found += _of_slab(objective.segments, out, _OF_SEGMENT)
        results.append(found)
    return results


def _of_slab(segments: Iterable[Segment], slab: Slab, words: Mapping[Kind, str]) -> Iterator[Found]:
    start = 0
    for segment in segments:
        values = slab[start : start + segment.size]
        start += segment.size
        if segment.kind in words:
            yield Found(words[segment.kind], segment.name, digest(values))


def digest(values: NDArray[Any]) -> str:
    """The SHA-256, in hexadecimal, of an array's shape, type and bytes."""
    array = np.ascontiguousarray(values)
    return hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode() + array.tobytes()).hexdigest()
