"""Whether a server's memory grows with the steps and the jobs that it has seen.

    python benchmarks/memory.py

A server in a process of its own, and workers of tiny jobs in this one. After a warm-up: one job of 20,000 steps, then 200 jobs
one after another. Prints by how many MB the server's resident memory grew, and ends with exit code 1 if that is more than 50 MB.
"""

import sys
import tempfile
import threading
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.end_to_end.command import service
from thalweg.client import Client
from thalweg.contract.endpoint import Endpoint
from thalweg.workers.worker import work

WORKERS = 2
WARM_UP_STEPS, WARM_UP_JOBS = 2_000, 20
STEPS, JOBS = 20_000, 200
JOB_STEPS = 20
LIMIT_MB = 50.0


def train(client: Client, steps: int) -> None:
    """A job of a number of steps, worked for to its end."""
    job = client.submit("and", {"training.epochs": steps, "training.workers": WORKERS})
    threads = [threading.Thread(target=work, args=(Endpoint(client.address), job.id, f"worker-{i}")) for i in range(WORKERS)]
    for thread in threads:
        thread.start()
    result = job.wait()
    for thread in threads:
        thread.join()
    if result.steps != steps:
        raise RuntimeError(f"job {job.id} took {result.steps} steps, not {steps}")


def main() -> int:
    """Measures and prints. Gives the exit code."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        with service(home, "serve", "--address", "127.0.0.1:0", "--data", str(home / "server")) as (server, facts):
            return measure(psutil.Process(server.process.pid), facts["address"])


def measure(process: psutil.Process, address: str) -> int:
    """Measures a server's memory and prints it. Gives the exit code."""

    def megabytes() -> float:
        return float(process.memory_info().rss) / 1e6

    with Client(address) as client:
        for steps in (WARM_UP_STEPS, *[JOB_STEPS] * WARM_UP_JOBS):
            train(client, steps)
        before = megabytes()
        print(f"after the warm-up     {before:8.1f} MB")
        train(client, STEPS)
        print(f"{STEPS:>9,} steps    {megabytes() - before:+10.1f} MB")
        for _ in range(JOBS):
            train(client, JOB_STEPS)
        grown = megabytes() - before
        print(f"{JOBS:>9,} jobs more {grown:+10.1f} MB in all")
    return int(grown > LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
