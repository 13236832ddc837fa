"""A server and workers, each in a process of its own, without Ray: to look at them one by one."""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import psutil

from benchmarks.program import Rate
from benchmarks.samples import samples
from benchmarks.systems.thalweg import document, rate_of
from benchmarks.workloads import Workload
from tests.end_to_end.command import service
from thalweg.client import Client, Job
from thalweg.client.certificates import LOOPBACK, Authority
from thalweg.contract.endpoint import Endpoint
from thalweg.contract.sums import Sums
from thalweg.contract.tls import Tls
from thalweg.learning.batch import size
from thalweg.learning.objective import ignore
from thalweg.learning.sequential.model import Sequential
from thalweg.workers.worker import work

# Workers that only sleep share a process, so that dozens of them start in reasonable time.
_THREADS = 8


@dataclass(frozen=True)
class Cluster:
    """A server, and the workers of one job."""

    server: psutil.Process
    workers: list[psutil.Process]
    job: Job
    wanted: int

    def rate(self, seconds: float) -> Rate:
        """Steps from when all workers are there on. Raises RuntimeError if the job ends before."""
        return rate_of(self.job, self.wanted, seconds)

    def cpu(self) -> tuple[float, float]:
        """Processor seconds so far: the server's, and those of all workers together."""
        spent = [sum(process.cpu_times()[:2]) for process in (self.server, *self.workers)]
        return spent[0], sum(spent[1:])


def _work(server: Endpoint, job: str, name: str, threads: int, sleep: float | None) -> None:
    """A process of workers. With `sleep`, they wait that number of seconds for each microbatch, and its gradient is zero."""
    if sleep is not None:

        def idle(self: Any, at: Any, batch: Any, denominator: Any, draw: Any, out: Any, done: Any = ignore) -> Sums:  # noqa: ARG001
            time.sleep(sleep)
            out[...] = 0
            done(out.size)
            return Sums(0.0, size(batch), (0.0,))

        Sequential.gradient = idle  # type: ignore[method-assign]
    workers = [Thread(target=work, args=(server, job, f"{name}-{i}"), kwargs={"allow_code": True}) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    # Not by the interpreter's end: there, what is left of a stream may wait for a lock that gRPC's thread held when it ended.
    os._exit(0)


@contextmanager
def cluster(
    job: dict[str, Any],
    workers: int,
    sleep: float | None = None,
    shared_memory: bool = True,
    threads: int = _THREADS,
    shards: int = 0,
    encrypted: bool = False,
) -> Iterator[Cluster]:
    """A job that is worked for as long as the context, or to its end. Workers that sleep are `threads` to a process.

    If it is `encrypted`, server and workers use TLS, and verify each other.
    """
    options = (*(() if shared_memory else ("--no-shared-memory",)), *(("--allow-code",) if "code" in job else ()))
    context = multiprocessing.get_context("spawn")
    job["training"]["workers"] = workers
    threads = 1 if sleep is None else threads
    counts = [min(threads, workers - first) for first in range(0, workers, threads)]
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        tls = _certificates(home / "tls") if encrypted else None
        if tls:
            options += ("--tls-cert", str(tls.cert), "--tls-key", str(tls.key), "--tls-client-ca", str(tls.ca))
        serve = "serve", "--address", "127.0.0.1:0", "--data", str(home / "server"), *options
        with (
            service(home, *serve) as (server, facts),
            _shards(home, facts["address"], shards),
            Client(facts["address"], tls=tls) as client,
        ):
            handle, endpoint = client.submit(job), Endpoint(client.address, tls=tls)
            processes = [
                context.Process(target=_work, args=(endpoint, handle.id, f"worker-{i}", count, sleep), daemon=True)
                for i, count in enumerate(counts)
            ]
            for process in processes:
                process.start()
            try:
                found = [psutil.Process(process.pid) for process in processes]
                yield Cluster(psutil.Process(server.process.pid), found, handle, workers)
            finally:
                handle.cancel()
                for process in processes:
                    process.join()


def _certificates(folder: Path) -> Tls:
    """A certificate for both ends, and its authority."""
    authority = Authority.new(folder)
    made = authority.add("server", LOOPBACK)
    return Tls(authority.cert, made.cert, made.key)


@contextmanager
def _shards(home: Path, server: str, count: int) -> Iterator[None]:
    """So many shards of a server."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(service(home, "shard", "--server", server, "--address", "127.0.0.1:0"))
        yield


@contextmanager
def training(workload: Workload, workers: int, shared_memory: bool = True, encrypted: bool = False) -> Iterator[Cluster]:
    """A workload in training."""
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "samples.npz"
        x, y = samples(workload)
        np.savez(data, x=x, y=y)
        with cluster(document(workload, data), workers, shared_memory=shared_memory, encrypted=encrypted) as running:
            yield running


def idle_workload(parameters: int) -> Workload:
    """A model 64-k-k-10 of about that number of parameters, for samples of the data set `digits`, one per microbatch."""
    width = max(1, round(((76**2 + 4 * parameters) ** 0.5 - 76) / 2))
    return Workload("idle", (64, width, width, 10), 1, "sgd", 1e-3)


def idle_job(workload: Workload, microbatches: int, **training: Any) -> dict[str, Any]:
    """The job of workers that only sleep. `training` is what else it says there."""
    job = document(workload, Path()) | {"data": {"builtin": "digits"}}
    job["training"] |= {"batch_size": microbatches, "microbatches": microbatches} | training
    return job


def idle_step(
    workload: Workload, microbatches: int, workers: int, sleep: float, seconds: float, shared_memory: bool = True
) -> float:
    """The seconds that a step takes whose workers only sleep, for `sleep` seconds at each microbatch."""
    with cluster(idle_job(workload, microbatches), workers, sleep, shared_memory) as running:
        rate = running.rate(seconds)
    return rate.seconds / rate.steps
