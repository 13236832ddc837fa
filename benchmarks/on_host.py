"""What runs on a host of its own: a worker, or who submits a workload and times its steps.

    python -m benchmarks.on_host work ADDRESS JOB NAME
    python -m benchmarks.on_host rate ADDRESS WORKLOAD DATA SECONDS

`rate` prints the job's id as soon as it is submitted, and at last the steps and the seconds that they took.
"""

import os
import sys
from pathlib import Path

from benchmarks.systems.thalweg import document, rate_of
from benchmarks.workloads import WORKERS, WORKLOADS
from thalweg.client import Client
from thalweg.contract.endpoint import Endpoint, parse_address
from thalweg.workers.worker import work


def _rate(address: str, workload: str, data: str, seconds: str) -> None:
    with Client(address, token=os.environ["THALWEG_TOKEN"]) as client:
        job = client.submit(document(WORKLOADS[workload], Path(data)))
        print(job.id, flush=True)
        rate = rate_of(job, WORKERS, float(seconds))
        job.cancel()
        print(rate.steps, rate.seconds, flush=True)


def _work(address: str, job: str, name: str) -> None:
    work(Endpoint(parse_address(address), os.environ["THALWEG_TOKEN"]), job, name)
    # Not by the interpreter's end: see benchmarks.cluster.
    os._exit(0)


if __name__ == "__main__":
    (_rate if sys.argv[1] == "rate" else _work)(*sys.argv[2:])
