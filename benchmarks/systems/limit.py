"""The machine's limit: two processes of one BLAS thread compute Thalweg's gradients with NumPy, and say nothing to each other.

With `--update yes` each of them also updates half of the parameters at each step: with the gradient computed, the least that a
step needs. No system whose workers compute with NumPy can take steps faster.
"""

import argparse
import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import Queue

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.program import Rate, run, timed
from benchmarks.samples import batches
from benchmarks.systems.thalweg import document
from benchmarks.workloads import WORKERS, Workload
from thalweg.client.jobfile import load_job
from thalweg.server import optimizers, validation
from thalweg.v1 import job_pb2
from thalweg.workers.model import Model


def specification(workload: Workload) -> job_pb2.JobSpec:
    """A workload's job, with all defaults filled in."""
    values = document(workload, Path())
    values["data"] = {"builtin": "digits"}
    return validation.complete(load_job(values).spec)


def process(workload: Workload, seconds: float, update: bool, worker: int, barrier: Barrier, told: "Queue[Rate]") -> None:
    """One of the two."""
    spec = specification(workload)
    model = Model(spec.model, workload.widths[:1], 0)
    parameters, gradient = np.empty(model.size, np.float32), np.empty(model.size, np.float32)
    model.initial(parameters)
    model.bind(parameters)
    optimizer = optimizers.make(spec.optimizer)
    half = slice(worker * model.size // WORKERS, (worker + 1) * model.size // WORKERS)
    state = optimizer.init(half.stop - half.start, model.dtype)
    source = batches(workload, worker)

    def step() -> None:
        x, y = next(source)
        model.loss_and_gradient(x, y, WORKERS * workload.samples, None, gradient)
        if update:
            some = parameters[half]
            optimizers.apply(optimizer, some, gradient[half], state, some, optimizer.learning_rate, 0)

    with threadpool_limits(1, "blas"):
        barrier.wait()
        told.put(timed(step, seconds))


def measure(workload: Workload, options: argparse.Namespace) -> Rate:
    """The slower one's rate: a synchronous step waits for it."""
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(WORKERS), context.Queue()
    given = workload, options.seconds, options.update == "yes"
    processes = [context.Process(target=process, args=(*given, worker, barrier, told), daemon=True) for worker in range(WORKERS)]
    for one in processes:
        one.start()
    rates: list[Rate] = [told.get() for _ in processes]
    for one in processes:
        one.join()
    return min(rates, key=lambda rate: rate.steps / rate.seconds)


if __name__ == "__main__":
    run(measure, "--update")
