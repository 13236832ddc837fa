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
        shared, sent = (idle_step(workload, WORKERS, WORKERS, 0.0, options.seconds, way) for way in (True, False))
        # Each worker gives a gradient and takes parameters.
        exchanged = 2 * WORKERS * 4 * workload.parameters / 1e9
        rows.append((workload.parameters, 1000 * shared, exchanged / shared, 1000 * sent, exchanged / sent))
    return Table(("parameters", "ms a step", "GB/s exchanged", "over gRPC: ms a step", "GB/s exchanged"), rows)


if __name__ == "__main__":
    run(measure)
