"""What a step costs whose workers compute nothing, by the size of the model: exchange and update alone."""

import argparse

from benchmarks.cluster import idle_step, idle_workload
from benchmarks.parts import Cell, Table, run
from benchmarks.workloads import WORKERS

COUNTS = (10**3, 10**4, 10**5, 10**6, 10**7, 10**8)


def measure(options: argparse.Namespace) -> Table:
    """One measurement for each size."""
    rows: list[tuple[Cell, ...]] = []
    for count in COUNTS:
        workload = idle_workload(count)
        parameters, seconds = workload.parameters, idle_step(workload, WORKERS, WORKERS, 0.0, options.seconds)
        # Each worker sends a gradient and is sent parameters.
        rows.append((parameters, 1000 * seconds, 2 * WORKERS * 4 * parameters / seconds / 1e9))
    return Table(("parameters", "ms a step", "GB/s exchanged"), rows)


if __name__ == "__main__":
    run(measure)
