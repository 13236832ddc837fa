"""Where the time goes from nothing to the first step, of a job that runs embedded, as under `thalweg train`."""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.parts import Table, run
from thalweg.client import StepsTaken, WorkersChanged
from thalweg.client.embedded import Embedded
from thalweg.learning.data import load

WORKERS = 2


def imported(module: str) -> float:
    """Seconds that a new Python process takes to import a module and end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - began


def once() -> dict[str, float]:
    """Seconds of each part, the clock going on from one to the next."""
    spans: dict[str, float] = {}
    now = time.time()

    def lap(what: str, at: float | None = None) -> None:
        nonlocal now
        at = at or time.time()
        spans[what] = at - now
        now = at

    with tempfile.TemporaryDirectory() as name:
        embedded = Embedded(Path(name) / "jobs")
        try:
            lap("server")
            embedded.start_fleet(WORKERS)
            lap("Ray and the fleet")
            job = embedded.client.submit("digits", {"training.workers": WORKERS, "training.epochs": 1_000_000})
            lap("job accepted")
            connected = False
            for event in job.watch():
                if isinstance(event, WorkersChanged) and event.workers and not connected:
                    connected = True
                    lap("first worker: process, imports, connection", event.time.timestamp())
                elif isinstance(event, StepsTaken):
                    lap("data, model, initial parameters, first step", event.time.timestamp())
                    break
            job.cancel()
        finally:
            embedded.close()
    lap("stopping everything")
    return spans


def data() -> float:
    """Seconds that a worker takes to load the data."""
    from thalweg.client.jobfile import load_job
    from thalweg.server import validation

    spec = validation.complete(load_job("digits").spec)
    began = time.perf_counter()
    load(spec, lambda *_: b"")  # type: ignore[arg-type]
    return time.perf_counter() - began


def measure(options: argparse.Namespace) -> Table:
    """Medians."""
    found = [
        {"import thalweg.client": imported("thalweg.client"), "import thalweg.workers.worker": imported("thalweg.workers.worker")}
        | {"loading the data": data()}
        | once()
        for _ in range(options.repeats)
    ]
    return Table(("what", "seconds"), [(what, statistics.median(one[what] for one in found)) for what in found[0]])


if __name__ == "__main__":
    run(measure)
