"""How fast training is, side by side with the same arithmetic in a plain loop, without server, workers or gRPC.

    python benchmarks/training.py [--repeats N] [CASE ...]

For each case and each number of workers: samples per second, the median over the repeats, and that as a share of the plain
loop's, which runs in one process with one BLAS thread, as a worker does. The contenders take turns, so that what else the machine
does falls on all of them. Absolute numbers are those of this machine at this moment; the shares are what counts.
"""

import argparse
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.end_to_end.reference import reference
from thalweg.client import Client, StepsTaken, load_job, local
from thalweg.client.jobfile import JobFile
from thalweg.server import validation

WORKERS = (1, 2)
DENSE = {"model.layers": [{"dense": {"units": 10}}]}
# For each case, what is laid over the job `digits`.
CASES: dict[str, dict[str, Any]] = {
    "digits": {"training.epochs": 20},
    "large batches": {"training.epochs": 4, "training.batch_size": 1024, "training.microbatches": 8},
    "numerical": {**DENSE, "training.epochs": 1, "training.gradient": "numerical"},
}


def job_of(case: str, folder: Path) -> JobFile:
    """The job of a case."""
    settings = {"data.validation_fraction": 0.0, "seed": 1} | CASES[case]
    if case == "large batches":
        path = folder / "large.npz"
        if not path.exists():
            generator = np.random.default_rng(0)
            np.savez(path, x=generator.normal(size=(8192, 784)).astype(np.float32), y=generator.integers(0, 10, 8192))
        layers = [{"dense": {"units": 1024}}, {"relu": {}}, {"dense": {"units": 10}}]
        settings |= {"data.npz": str(path), "model.layers": layers}
    return load_job("digits", settings)


def plain_loop(job: JobFile) -> float:
    """Samples per second of the plain loop."""
    job.spec.data.sha256 = "0" * 64 if job.data else ""
    spec = validation.complete(job.spec)
    with threadpool_limits(1, "blas"):
        began = time.perf_counter()
        _, losses = reference(spec, job.data)
        elapsed = time.perf_counter() - began
    return len(losses) * spec.training.batch_size / elapsed


def trained(client: Client, job: JobFile, workers: int) -> float:
    """Samples per second of a job, between its first word of steps and its last."""
    job.spec.training.workers = workers
    handle = client.submit(job)
    told = [event for event in handle.watch() if isinstance(event, StepsTaken)]
    handle.wait()
    seconds = (told[-1].time - told[0].time).total_seconds()
    return sum(len(event.losses) for event in told[1:]) * job.spec.training.batch_size / seconds


def main() -> None:
    """Runs the cases and prints a table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all, if none is given")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, local(workers=max(WORKERS), data=Path(name) / "jobs") as client:
        for case in options.cases or CASES:
            contenders: dict[str, partial[float]] = {"plain loop": partial(plain_loop, job_of(case, Path(name)))}
            for workers in WORKERS:
                title = f"{workers} worker{'s' if workers > 1 else ''}"
                contenders[title] = partial(trained, client, job_of(case, Path(name)), workers)
            measured: dict[str, list[float]] = {title: [] for title in contenders}
            for _ in range(options.repeats):
                for title, run in contenders.items():
                    measured[title].append(run())
            base = statistics.median(measured["plain loop"])
            print(case)
            for title, rates in measured.items():
                median = statistics.median(rates)
                spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
                print(f"  {title:<12} {median:>10,.0f} samples/s  {median / base:>6.0%} of the plain loop   ({spread})")


if __name__ == "__main__":
    main()
