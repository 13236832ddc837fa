"""A step over gRPC with TLS, and certificates of both ends, against one without. Both take turns in every repetition."""

import argparse
import statistics
import time

from benchmarks.cluster import training
from benchmarks.parts import Cell, Table, run
from benchmarks.workloads import DENSE, WORKERS

WORKLOADS = ("tiny", "small", "wide")
_STEPS = 20


def measure(options: argparse.Namespace) -> Table:
    """Medians, and that of the ratios of two steps that were measured one after the other; processor time of all processes."""
    rows: list[tuple[Cell, ...]] = []
    for name in WORKLOADS:
        pairs = [(_step(name, options.seconds, False), _step(name, options.seconds, True)) for _ in range(options.repeats)]
        times, spent = ([[step[which] for step in pair] for pair in pairs] for which in (0, 1))
        rows.append((name, *_compared(times), *_compared(spent)))
    columns = ("workload", "ms a step", "with TLS", "ratio", "CPU ms a step", "with TLS", "ratio")
    return Table(columns, rows)


def _compared(pairs: list[list[float]]) -> tuple[float, float, float]:
    clear, encrypted = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
    return clear, encrypted, statistics.median(after / before for before, after in pairs)


def _step(name: str, seconds: float, encrypted: bool) -> tuple[float, float]:
    """The seconds of a step, and the processor seconds of server and workers."""
    with training(DENSE[name], WORKERS, shared_memory=False, encrypted=encrypted) as cluster:
        cluster.rate(0)
        # The warm-up is over. A slow step must not be most of what is counted.
        began, spent, step = time.perf_counter(), sum(cluster.cpu()), cluster.job.progress.step
        steps = 0
        while steps < _STEPS:
            time.sleep(seconds)
            passed, used, steps = time.perf_counter() - began, sum(cluster.cpu()) - spent, cluster.job.progress.step - step
    return passed / steps, used / steps


if __name__ == "__main__":
    run(measure)
