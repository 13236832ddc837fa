"""A step over gRPC with TLS, and certificates of both ends, against one without, side by side.

Two jobs train at the same time, on a server and two workers each, so that whatever else the machine does falls on both. A step
takes at least twice as long as it would alone; the ratio is that of the work.
"""

import argparse
import statistics
import time
from contextlib import ExitStack

from benchmarks.cluster import Cluster, training
from benchmarks.parts import Cell, Table, run
from benchmarks.workloads import DENSE, WORKERS

WORKLOADS = ("tiny", "small", "wide")
# A slow step must not be most of what is counted.
_STEPS = 20


def measure(options: argparse.Namespace) -> Table:
    """Medians of the windows of each workload, and of their ratios."""
    rows: list[tuple[Cell, ...]] = []
    for name in WORKLOADS:
        windows = _windows(name, options.seconds, options.repeats)
        clear, encrypted = (1000 * statistics.median(times) for times in zip(*windows, strict=True))
        ratios = [after / before for before, after in windows]
        rows.append((name, clear, encrypted, statistics.median(ratios), min(ratios), max(ratios)))
    return Table(("workload", "ms a step", "with TLS", "ratio", "minimum", "maximum"), rows)


def _windows(name: str, seconds: float, repeats: int) -> list[tuple[float, float]]:
    """The seconds of a step without TLS and with it, of windows one after the other."""
    with ExitStack() as stack:
        both = [
            stack.enter_context(training(DENSE[name], WORKERS, shared_memory=False, encrypted=encrypted))
            for encrypted in (False, True)
        ]
        for cluster in both:
            cluster.rate(0)
        return [_window(both, seconds) for _ in range(repeats)]


def _window(both: list[Cluster], seconds: float) -> tuple[float, float]:
    began, before = time.perf_counter(), [cluster.job.progress.step for cluster in both]
    while True:
        time.sleep(seconds)
        now = time.perf_counter()
        clear, encrypted = (cluster.job.progress.step - step for cluster, step in zip(both, before, strict=True))
        if min(clear, encrypted) >= _STEPS:
            return (now - began) / clear, (now - began) / encrypted


if __name__ == "__main__":
    run(measure)
