"""What a step costs whose workers compute nothing, by the number of microbatches that its minibatch is cut into."""

import argparse

from benchmarks.cluster import idle_step, idle_workload
from benchmarks.parts import Cell, Table, run
from benchmarks.workloads import WORKERS

COUNTS = (2, 4, 8, 16, 32, 64, 128, 256)
PARAMETERS = 100_000


def measure(options: argparse.Namespace) -> Table:
    """One measurement for each number."""
    rows: list[tuple[Cell, ...]] = []
    for count in COUNTS:
        seconds = idle_step(idle_workload(PARAMETERS), count, WORKERS, 0.0, options.seconds)
        rows.append((count, 1000 * seconds, 1e6 * seconds / count))
    return Table(("microbatches", "ms a step", "µs a microbatch"), rows)


if __name__ == "__main__":
    run(measure)
