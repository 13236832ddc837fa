"""What a step costs in processor time: the server's, and that of both workers together, gradients included."""

import argparse
import time

from benchmarks.cluster import training
from benchmarks.parts import Cell, Table, run
from benchmarks.workloads import WORKERS, WORKLOADS

_STEPS = 10


def measure(options: argparse.Namespace) -> Table:
    """One measurement of each workload."""
    rows: list[tuple[Cell, ...]] = []
    for workload in WORKLOADS.values():
        with training(workload, WORKERS) as cluster:
            cluster.rate(0)
            # The warm-up is over. A slow step must not be most of what is counted.
            before, step = cluster.cpu(), cluster.job.progress.step
            steps = 0
            while steps < _STEPS:
                time.sleep(options.seconds)
                after, steps = cluster.cpu(), cluster.job.progress.step - step
        server, workers = (1000 * (now - then) / steps for then, now in zip(before, after, strict=True))
        rows.append((workload.name, steps, server, workers, server / workers))
    return Table(("workload", "steps", "server, ms a step", "both workers, ms a step", "server ÷ workers"), rows)


if __name__ == "__main__":
    run(measure)
