"""The machine's limit: two processes of one BLAS thread compute Thalweg's gradients with NumPy, and say nothing to each other.

With `--update yes` each of them also updates half of the parameters at each step: with the gradient computed, the least that a
step needs. No system whose workers compute with NumPy can take steps faster.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import Queue

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.program import Rate, run, timed
from benchmarks.samples import batches, samples
from benchmarks.systems.thalweg import MODULES, document
from benchmarks.workloads import WORKERS, Workload
from thalweg.client.jobfile import load_job
from thalweg.contract.layout import Slab
from thalweg.learning import optimizers, registry
from thalweg.learning.batch import INPUT, TARGET, Field
from thalweg.learning.objective import Objective
from thalweg.server import validation
from thalweg.v1 import job_pb2


def specification(workload: Workload) -> job_pb2.JobSpec:
    """A workload's job, with all defaults filled in."""
    values = document(workload, Path())
    values["data"] = {"builtin": "digits"}
    # The modules are imported from where they are.
    if values.pop("code", None) and str(MODULES.parent) not in sys.path:
        sys.path.append(str(MODULES.parent))
    return validation.complete(load_job(values).spec)


def objective(workload: Workload) -> Objective:
    """A workload's model with its loss."""
    x, y = (values[:1] for values in samples(workload))
    schema = {name: Field(values.dtype, values.shape[1:]) for name, values in ((INPUT, x), (TARGET, y))}
    return registry.objective(specification(workload), schema)


def gradients(workload: Workload, worker: int) -> tuple[Slab, Callable[[], Slab]]:
    """The parameters of one of the two, and what computes the gradient of its next batch; both of shape (elements)."""
    model = objective(workload)
    parameters, gradient = np.empty(model.size, np.float32), np.empty(model.size, np.float32)
    model.initialize(parameters)
    source = batches(workload, worker)

    def differentiate() -> Slab:
        x, y = next(source)
        model.gradient(parameters, {INPUT: x, TARGET: y}, WORKERS * workload.samples, (0, worker), gradient)
        return gradient

    return parameters, differentiate


def process(workload: Workload, seconds: float, update: bool, worker: int, barrier: Barrier, told: "Queue[Rate]") -> None:
    """One of the two."""
    parameters, differentiate = gradients(workload, worker)
    optimizer = optimizers.make(specification(workload).optimizer)
    half = slice(worker * parameters.size // WORKERS, (worker + 1) * parameters.size // WORKERS)
    state = optimizer.init(half.stop - half.start, parameters.dtype)

    def step() -> None:
        gradient = differentiate()
        if update:
            some = parameters[half]
            optimizers.apply(optimizer, some, gradient[half], state, some, optimizer.learning_rate, 0)

    with threadpool_limits(1, "blas"), registry.kind_of(specification(workload)).settings(1):
        barrier.wait()
        told.put(timed(step, seconds))


def slower(target: Callable[..., None], *given: object) -> Rate:
    """The lower rate of two processes: a synchronous step waits for it. They get their number, a barrier and a queue besides."""
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(WORKERS), context.Queue()
    processes = [context.Process(target=target, args=(*given, worker, barrier, told), daemon=True) for worker in range(WORKERS)]
    for one in processes:
        one.start()
    rates: list[Rate] = [told.get() for _ in processes]
    for one in processes:
        one.join()
    return min(rates, key=lambda rate: rate.steps / rate.seconds)


def measure(workload: Workload, options: argparse.Namespace) -> Rate:
    """The slower one's rate."""
    return slower(process, workload, options.seconds, options.update == "yes")


if __name__ == "__main__":
    run(measure, "--update")
