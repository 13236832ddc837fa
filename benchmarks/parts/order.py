"""What taking a step's samples costs in processor time, against the number of samples, whose rows are computed and not stored."""

import argparse
import statistics
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.parts import Cell, Table, run
from thalweg.learning.batch import INPUT, Field
from thalweg.learning.data.groups import Groups
from thalweg.learning.data.microbatches import Microbatches
from thalweg.learning.data.order import Order
from thalweg.learning.data.preparation.features import EachRow
from thalweg.learning.data.rows import Mapped
from thalweg.learning.data.samples import Arrays, Out, Samples
from thalweg.v1 import job_pb2

FEATURES, BATCH, MICROBATCHES, GROUP = 100, 256, 4, 10_000
SIZES = tuple(10**power for power in range(4, 10))


class _Numbers:
    """The numbers up to a count, as rows."""

    def __init__(self, count: int) -> None:
        self._each = EachRow(count)
        self.dtype, self.shape = np.dtype(np.intp), (count,)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: NDArray[np.intp] | slice) -> NDArray[np.intp]:
        return self._each[indices]


def _rows(numbers: NDArray[np.intp]) -> NDArray[np.float32]:
    return np.multiply.outer(numbers.astype(np.float32), np.ones(FEATURES, np.float32))


def _orders(count: int) -> Iterator[tuple[str, Samples, Order]]:
    """Each order that `auto` may have of this number of samples, and samples to be taken in it."""
    spec = job_pb2.JobSpec(data=job_pb2.Data(order="auto", window=4))
    spec.training.batch_size, spec.training.microbatches = BATCH, MICROBATCHES
    samples = Arrays({INPUT: Mapped(_Numbers(count), _rows, (FEATURES,), np.dtype(np.float32))})
    yield "any", samples, Order(spec, count)

    def load(where: slice, out: Out) -> None:
        out[INPUT][:] = _rows(np.arange(where.start, where.stop, dtype=np.intp))

    ends = range(GROUP, count + 1, GROUP)
    schema = {INPUT: Field(np.dtype(np.float32), (FEATURES,))}
    yield "by groups", Groups(schema, ends, load), Order(spec, count, ends)


def measure(options: argparse.Namespace) -> Table:
    """Medians over the repetitions. The first step, in which the epoch's order is made, counts separately."""
    rows: list[tuple[Cell, ...]] = []
    for count in SIZES:
        for name, samples, order in _orders(count):
            gathered = Microbatches(samples, order)
            began = time.process_time()
            gathered.gather(0, range(MICROBATCHES))
            first, step, found = time.process_time() - began, 1, []
            for _ in range(options.repeats):
                began, steps, until = time.process_time(), step, time.monotonic() + options.seconds / options.repeats
                while time.monotonic() < until:
                    gathered.gather(step, range(MICROBATCHES))
                    step += 1
                found.append((time.process_time() - began) / (step - steps))
            rows.append((f"{count:,}", name, 1000 * first, 1e6 * statistics.median(found)))
    return Table(("samples", "order", "first step, ms", "a step, µs"), rows)


if __name__ == "__main__":
    run(measure)
