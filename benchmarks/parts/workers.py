"""What a step costs beside its computation, with ever more workers on one server: as many microbatches, one each, of 20 ms."""

import argparse

from benchmarks.cluster import idle_step, idle_workload
from benchmarks.parts import Cell, Table, run

COUNTS = (1, 2, 4, 8, 16, 32)
SLEEP = 0.02
PARAMETERS = 100_000


def measure(options: argparse.Namespace) -> Table:
    """One measurement for each number of workers."""
    rows: list[tuple[Cell, ...]] = []
    for count in COUNTS:
        seconds = idle_step(idle_workload(PARAMETERS), count, count, SLEEP, options.seconds)
        rows.append((count, 1000 * seconds, 1000 * (seconds - SLEEP), SLEEP / seconds))
    return Table(("workers", "ms a step", "ms beside the sleep", "share of the sleep"), rows)


if __name__ == "__main__":
    run(measure)
