"""How much memory each process has while it trains: proportional set sizes, in which shared memory counts once in all.

A worker holds the samples as well, which are counted separately.
"""

import argparse

from benchmarks.cluster import training
from benchmarks.parts import Cell, Table, run
from benchmarks.workloads import DENSE, SAMPLES, WORKERS


def measure(options: argparse.Namespace) -> Table:
    """One measurement of each workload, at the end of the window."""
    rows: list[tuple[Cell, ...]] = []
    for workload in DENSE.values():
        with training(workload, WORKERS) as cluster:
            cluster.rate(options.seconds)
            server, *workers = (process.memory_full_info().pss / 1e6 for process in (cluster.server, *cluster.workers))
        model, data = workload.parameters * 4 / 1e6, SAMPLES * workload.widths[0] * 4 / 1e6
        worker = sum(workers) / len(workers)
        rows.append((workload.name, model, data, server, worker, server / model, worker / model))
    columns = ("workload", "model, MB", "samples, MB", "server, MB", "a worker, MB", "server ÷ model", "worker ÷ model")
    return Table(columns, rows)


if __name__ == "__main__":
    run(measure)
