"""Steps whose workers sleep in place of computing, over gRPC: what the model is held against.

Each worker is a process of its own. With shards too, where `thalweg shard` exists.
"""

import argparse
from importlib.util import find_spec
from typing import Any, NamedTuple

from benchmarks.cluster import cluster, idle_job, idle_workload
from benchmarks.parts import Cell, Table, run

SLEEP = 0.02


class Case(NamedTuple):
    """What is measured: about that number of parameters, workers, servers; steps of a local round, or 1."""

    parameters: int
    workers: int
    servers: int = 1
    codec: str = "float32"
    steps: int = 1


CASES = (
    *(Case(parameters, workers) for parameters in (2_000, 200_000, 4_000_000) for workers in (1, 2, 4, 8)),
    *(Case(4_000_000, workers, codec="bfloat16") for workers in (2, 8)),
    *(Case(4_000_000, workers, steps=16) for workers in (2, 8)),
    *(Case(4_000_000, workers, servers) for servers in (2, 3, 4) for workers in (2, 8)),
)


def measure(options: argparse.Namespace) -> Table:
    """One measurement for each case."""
    rows: list[tuple[Cell, ...]] = []
    sharded = find_spec("thalweg.server.sharding.process") is not None
    for case in CASES:
        if case.servers == 1 or sharded:
            workload, milliseconds = idle_workload(case.parameters), 1000 * _step(case, options.seconds)
            rows.append((workload.parameters, *case[1:], milliseconds))
    if not sharded:
        rows.append(("several servers: not measured, for this version of Thalweg has no shards", *[""] * 5))
    return Table(("parameters", "workers", "servers", "codec", "local steps", "ms a step, or a round"), rows)


def _step(case: Case, seconds: float) -> float:
    training: dict[str, Any] = {"codec": {case.codec: {}}}
    if case.steps > 1:
        training["synchrony"] = {"local": {"steps": case.steps}}
    job = idle_job(idle_workload(case.parameters), case.workers, **training)
    with cluster(job, case.workers, SLEEP, shared_memory=False, threads=1, shards=case.servers - 1) as running:
        rate = running.rate(seconds)
    return rate.seconds / rate.steps


if __name__ == "__main__":
    run(measure)
