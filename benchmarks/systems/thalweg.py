"""Thalweg: a real job on a server, a fleet and two workers of its own, as `thalweg train` runs one."""

import argparse
import inspect
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.program import Rate, Unavailable, Window, run
from benchmarks.samples import samples
from benchmarks.workloads import WORKERS, Workload
from thalweg.client import Job, StepsTaken, WorkersChanged, local
from thalweg.v1 import job_pb2

# More than any measurement takes; the job is cancelled when the window is over.
_EPOCHS = 1_000_000
# The code of workloads that are PyTorch modules.
MODULES = Path(__file__).parents[1] / "modules.py"


def document(workload: Workload, data: Path, codec: str | None = None) -> dict[str, Any]:
    """The job of a workload."""
    layers: list[dict[str, Any]] = []
    for width in workload.widths[1:]:
        layers += [{"dense": {"units": width}}, {"relu": {}}]
    training: dict[str, Any] = {
        "epochs": _EPOCHS,
        "batch_size": WORKERS * workload.samples,
        "microbatches": WORKERS,
        "workers": WORKERS,
    }
    if codec:
        training["codec"] = {codec: {}}
    model: dict[str, Any] = {"layers": layers[:-1], "loss": "softmax_cross_entropy"}
    if workload.module:
        model = {"torch": {"entrypoint": f"modules:{workload.module}"}, "loss": "modules:loss"}
    return {
        "name": "benchmark",
        "model": model,
        **({"code": {"path": str(MODULES)}} if workload.module else {}),
        "data": {"npz": str(data)},
        "training": training,
        "optimizer": {workload.optimizer: {"learning_rate": workload.learning_rate}},
    }


def options_of(shared_memory: bool, codec: str | None) -> dict[str, Any]:
    """What `local` is to be called with. Raises Unavailable if this version lacks what is to be measured."""
    if codec and "codec" not in job_pb2.Training.DESCRIPTOR.fields_by_name:
        raise Unavailable("this version of Thalweg has no codecs")
    if "shared_memory" in inspect.signature(local).parameters:
        return {"shared_memory": shared_memory}
    if shared_memory:
        raise Unavailable("this version of Thalweg does not use shared memory")
    return {}


def rate_of(job: Job, workers: int, seconds: float) -> Rate:
    """Steps from the arrival of the last worker, counted and timed by the server's own events. Raises RuntimeError if the job
    ends before.
    """
    window, there = Window(seconds), 0
    for event in job.watch():
        if isinstance(event, WorkersChanged):
            there = event.workers
        elif isinstance(event, StepsTaken) and there == workers:
            rate = window.at(event.time.timestamp(), event.first_step + len(event.losses))
            if rate:
                return rate
    raise RuntimeError(f"the job ended too early: {job.refresh().error}")


def measure(workload: Workload, options: argparse.Namespace) -> Rate:
    """Steps of a job of its own."""
    extra = options_of(options.exchange == "memory", options.codec)
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "samples.npz"
        x, y = samples(workload)
        np.savez(data, x=x, y=y)
        with local(workers=WORKERS, data=Path(name) / "jobs", **extra) as client:
            job = client.submit(document(workload, data, options.codec))
            rate = rate_of(job, WORKERS, options.seconds)
            job.cancel()
            return rate


if __name__ == "__main__":
    run(measure, "--exchange", "--codec")
