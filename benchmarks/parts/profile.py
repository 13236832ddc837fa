"""Where the processor time of a step of a PyTorch module goes: in PyTorch, in Thalweg's objective, and in all else.

Steps per second on busy cores follow from it: what is not PyTorch's is what a job loses against processes that do not
communicate.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from queue import Queue

from threadpoolctl import threadpool_limits

from benchmarks.cluster import training
from benchmarks.parts import Cell, Table, run
from benchmarks.peers import torch_model
from benchmarks.systems.limit import gradients, specification
from benchmarks.workloads import GROUPS, WORKERS, WORKLOADS, Workload
from thalweg.learning import registry
from thalweg.workers.ray.environment import MALLOC

_MIN_STEPS = 5
_COLUMNS = (
    "workload",
    "PyTorch, ms a step",
    "objective",
    "workers",
    "server",
    "workers, gRPC",
    "server, gRPC",
    "÷ PyTorch",
    "÷ PyTorch, gRPC",
)


def _alone(step: Callable[[], object], seconds: float, barrier: Barrier, told: "Queue[float]") -> None:
    """Says the processor milliseconds of a step, of steps that this process takes beside others."""
    for _ in range(_MIN_STEPS):
        step()
    barrier.wait()
    steps, until, before = 0, time.monotonic() + seconds, time.process_time()
    while time.monotonic() < until or steps < _MIN_STEPS:
        step()
        steps += 1
    told.put(1000 * (time.process_time() - before) / steps)


def _pytorch(workload: Workload, seconds: float, worker: int, barrier: Barrier, told: "Queue[float]") -> None:
    model = torch_model.model(workload)
    source = torch_model.tensors(workload, worker)

    def step() -> None:
        x, y = next(source)
        model.zero_grad()
        torch_model.loss(model(x), y).backward()

    _alone(step, seconds, barrier, told)


def _objective(workload: Workload, seconds: float, worker: int, barrier: Barrier, told: "Queue[float]") -> None:
    _, differentiate = gradients(workload, worker)
    with threadpool_limits(1, "blas"), registry.kind_of(specification(workload)).settings(1):
        _alone(differentiate, seconds, barrier, told)


def _of_processes(target: Callable[..., None], workload: Workload, seconds: float) -> float:
    """The milliseconds of a step of both processes together, which do not communicate."""
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(WORKERS), context.Queue()
    processes = [
        context.Process(target=target, args=(workload, seconds, worker, barrier, told), daemon=True) for worker in range(WORKERS)
    ]
    for process in processes:
        process.start()
    total: float = sum(told.get() for _ in processes)
    for process in processes:
        process.join()
    return total


def _of_job(workload: Workload, seconds: float, shared_memory: bool) -> tuple[float, float]:
    """The milliseconds of a step of both workers together, and of the server."""
    with training(workload, WORKERS, shared_memory) as running:
        running.rate(0)
        before, first, steps, until = running.cpu(), running.job.progress.step, 0, time.monotonic() + seconds
        while steps < _MIN_STEPS or time.monotonic() < until:
            time.sleep(min(seconds, 0.5))
            steps = running.job.progress.step - first
        server, workers = (1000 * (now - then) / steps for then, now in zip(before, running.cpu(), strict=True))
    return workers, server


def _once(workload: Workload, seconds: float) -> list[float]:
    alone = [_of_processes(target, workload, seconds) for target in (_pytorch, _objective)]
    return [*alone, *_of_job(workload, seconds, True), *_of_job(workload, seconds, False)]


def measure(options: argparse.Namespace) -> Table:
    """The medians for each module."""
    # As workers of a Ray that Thalweg starts, on both sides.
    os.environ.update(MALLOC)
    rows: list[tuple[Cell, ...]] = []
    for name in GROUPS["torch"]:
        found = zip(*(_once(WORKLOADS[name], options.seconds) for _ in range(options.repeats)), strict=True)
        pytorch, objective, workers, server, over_grpc, its_server = map(statistics.median, found)
        ratios = (workers + server) / pytorch, (over_grpc + its_server) / pytorch
        rows.append((name, pytorch, objective, workers, server, over_grpc, its_server, *ratios))
    return Table(_COLUMNS, rows)


if __name__ == "__main__":
    run(measure)
