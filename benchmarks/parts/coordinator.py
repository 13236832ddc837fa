"""Processor time of the coordinator alone for a contribution, with more and more workers. No streams, no arrays, no waiting."""

import argparse
import statistics
import time
from typing import Any

from google.protobuf import json_format

from benchmarks.parts import Cell, Table, run
from thalweg.contract.sums import Sums
from thalweg.server import validation
from thalweg.server.deciding.coordinator import Coordinator
from thalweg.server.deciding.decisions import AssignDifferentiate, Decision
from thalweg.server.deciding.events import ContributionReceived, InitialReceived, WorkerJoined, WorkerPrepared
from thalweg.server.deciding.values import Facts
from thalweg.server.settings import RunSettings
from thalweg.v1 import job_pb2

WORKERS = (8, 100, 1_000, 10_000)
_POLICIES: dict[str, dict[str, Any]] = {
    "bulk": {"bulk": {}},
    "stale": {"stale": {"bound": 3}},
    "asynchronous": {"asynchronous": {}},
}
# As many microbatches as a job may have. Where there are more workers, the others have nothing to do.
_MAX_MICROBATCHES = 4_096
# Contributions that are measured at least, and steps before them that do not count.
_MIN_MESSAGES, _WARM_STEPS = 4_000, 2


class _Numbers:
    """Stands for the numbers of a contribution, which a coordinator never looks at."""

    residual_since = 0


def measure(workers: int, synchrony: dict[str, Any]) -> float:
    """Seconds of processor time for each contribution."""
    microbatches = 1 if "asynchronous" in synchrony else min(workers, _MAX_MICROBATCHES)
    training = {"epochs": 1_000, "batch_size": workers, "microbatches": microbatches, "synchrony": synchrony}
    document = {
        "model": {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"},
        "data": {"builtin": "xor"},
        "training": training,
        "optimizer": {"sgd": {}},
    }
    coordinator = Coordinator(validation.complete(json_format.ParseDict(document, job_pb2.JobSpec())), RunSettings())
    numbers: Any = _Numbers()
    for worker in range(workers):
        coordinator.handle(WorkerJoined(worker), 0.0)
    decisions: list[Decision] = []
    for worker in range(workers):
        decisions += coordinator.handle(WorkerPrepared(worker, Facts(10, 1_000 * workers, 0, metrics=("accuracy",))), 0.0)
    decisions += coordinator.handle(InitialReceived(0, 0, numbers), 0.0)
    tasks = [each for each in decisions if isinstance(each, AssignDifferentiate)]
    now, count, spent, step = 0.0, 0, 0.0, 0
    while count < _MIN_MESSAGES or step <= _WARM_STEPS:
        now, step, following = now + 1.0, step + 1, list[AssignDifferentiate]()
        sums = Sums(1.0, 1, (0,))
        answers = [
            ContributionReceived(each.worker, each.version, each.task.step, each.task.node, range(1), sums, numbers)
            for each in tasks
        ]
        began = time.process_time()
        for answer in answers:
            following += [each for each in coordinator.handle(answer, now) if isinstance(each, AssignDifferentiate)]
        if step > _WARM_STEPS:
            spent, count = spent + time.process_time() - began, count + len(answers)
        tasks = following
    return spent / count


def table(given: argparse.Namespace) -> Table:
    """A row for each number of workers."""
    rows: list[tuple[Cell, ...]] = []
    for workers in WORKERS:
        medians = [statistics.median(measure(workers, each) for _ in range(given.repeats)) for each in _POLICIES.values()]
        rows.append((workers, *(1e6 * median for median in medians)))
    return Table(("workers", *(f"{name}, µs" for name in _POLICIES)), rows)


if __name__ == "__main__":
    run(table)
