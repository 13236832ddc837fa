"""Synthetic samples, the same for all systems: normal inputs and random labels, from a seed."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.workloads import SAMPLES, Workload

Samples = tuple[NDArray[np.float32], NDArray[np.int64]]


def samples(workload: Workload, worker: int | None = None, workers: int = 2) -> Samples:
    """Inputs of shape (samples, width), and labels: all of them, or one worker's share."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((SAMPLES, workload.widths[0]), np.float32)
    y = generator.integers(0, workload.widths[-1], SAMPLES)
    return (x, y) if worker is None else (x[worker::workers].copy(), y[worker::workers].copy())


def batches(workload: Workload, worker: int, workers: int = 2) -> Iterator[Samples]:
    """One worker's batches, over and over: contiguous views, so that to take one costs nothing."""
    x, y = samples(workload, worker, workers)
    whole = len(x) - len(x) % workload.samples
    while True:
        for start in range(0, whole, workload.samples):
            yield x[start : start + workload.samples], y[start : start + workload.samples]
