"""The limit: two processes of one thread compute a module's gradients with PyTorch alone, and say nothing to each other."""

import argparse
from multiprocessing.synchronize import Barrier
from queue import Queue

from benchmarks.peers import torch_model
from benchmarks.program import Rate, run, timed
from benchmarks.systems.limit import slower
from benchmarks.workloads import Workload


def process(workload: Workload, seconds: float, worker: int, barrier: Barrier, told: "Queue[Rate]") -> None:
    """One of the two."""
    model = torch_model.model(workload)
    source = torch_model.tensors(workload, worker)

    def step() -> None:
        x, y = next(source)
        model.zero_grad()
        torch_model.loss(model(x), y).backward()

    barrier.wait()
    told.put(timed(step, seconds))


def measure(workload: Workload, options: argparse.Namespace) -> Rate:
    """The slower one's rate."""
    return slower(process, workload, options.seconds)


if __name__ == "__main__":
    run(measure)
