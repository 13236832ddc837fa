"""Synthetic samples, the same for all systems: normal inputs and random labels, from a seed."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.workloads import SAMPLES, Workload

Samples = tuple[NDArray[Any], NDArray[np.int64]]


def samples(workload: Workload, worker: int | None = None, workers: int = 2) -> Samples:
    """Inputs of shape (samples, width), and labels: all of them, or one worker's share."""
    generator = np.random.default_rng(0)
    if workload.module:
        x, y = _MODULES[workload.module](generator)
    else:
        x, y = _numbers(generator, SAMPLES, workload.widths[:1], workload.widths[-1])
    return (x, y) if worker is None else (x[worker::workers].copy(), y[worker::workers].copy())


def _numbers(generator: np.random.Generator, samples: int, shape: tuple[int, ...], classes: int) -> Samples:
    return generator.standard_normal((samples, *shape), np.float32), generator.integers(0, classes, samples)


def _text(generator: np.random.Generator, samples: int, positions: int) -> Samples:
    text = generator.integers(0, 256, (samples, positions + 1))
    return text[:, :-1].copy(), text[:, 1:].copy()


# Of the modules of `modules.py`.
_MODULES: dict[str, Callable[[np.random.Generator], Samples]] = {
    "convolutional": lambda generator: _numbers(generator, 2048, (3, 32, 32), 10),
    "gpt": lambda generator: _text(generator, 2048, 128),
    "wide": lambda generator: _numbers(generator, SAMPLES, (784,), 10),
}


def batches(workload: Workload, worker: int, workers: int = 2) -> Iterator[Samples]:
    """One worker's batches, over and over: contiguous views, so that to take one costs nothing."""
    x, y = samples(workload, worker, workers)
    whole = len(x) - len(x) % workload.samples
    while True:
        for start in range(0, whole, workload.samples):
            yield x[start : start + workload.samples], y[start : start + workload.samples]
