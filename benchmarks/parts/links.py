"""A step of `wide` between hosts with addresses of their own, over links of 1 Gbit/s each, with one server and with two.

The hosts are network namespaces, the links are held to their rate by `tc`: that needs root on Linux. Server, shard and both
workers have a host each. Cases take turns in every repetition.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.parts import Cell, Table, run
from benchmarks.samples import samples
from benchmarks.workloads import WORKERS, WORKLOADS
from tests.end_to_end import hosts
from tests.end_to_end.command import service
from tests.end_to_end.hosts import Host, Network

MEGABITS = 1000
SERVERS = (1, 2)
_ROOT = Path(__file__).parents[2]
_WORKLOAD = WORKLOADS["wide"]
_TOKEN = {"THALWEG_TOKEN": "between-these-hosts"}
# Small steps are many; these are few.
_MIN_SECONDS = 15.0


def measure(options: argparse.Namespace) -> Table:
    """Medians, and the ratio of a step with two servers to one with one."""
    problem = hosts.problem() or (None if shutil.which("tc") else "needs tc (Debian: iproute2)")
    if problem:
        return Table((f"not measured: {problem}",), [])
    taken: dict[int, list[float]] = {servers: [] for servers in SERVERS}
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "samples.npz"
        x, y = samples(_WORKLOAD)
        np.savez(data, x=x, y=y)
        for turn in range(options.repeats):
            for servers, times in taken.items():
                times.append(_step(Path(name) / f"{turn}-{servers}", data, servers, max(options.seconds, _MIN_SECONDS)))
    one = statistics.median(taken[1])
    rows: list[tuple[Cell, ...]] = [
        (servers, 1000 * statistics.median(times), 1000 * min(times), 1000 * max(times), statistics.median(times) / one)
        for servers, times in taken.items()
    ]
    return Table(("servers", "ms a step", "minimum", "maximum", "of one server's"), rows)


def _step(folder: Path, data: Path, servers: int, seconds: float) -> float:
    """Seconds of a step."""
    with ExitStack() as stack:
        network = stack.enter_context(Network(folder))
        server, shard, *workers = [network.host(name) for name in ("server", "shard", *(f"worker{i}" for i in range(WORKERS)))]
        for host in (server, shard, *workers):
            stack.enter_context(network.limited(host, MEGABITS))
        address = f"{server.address}:7070"
        serve = ("serve", "--address", address, "--data", str(server.home / "data"), "--trust-network")
        stack.enter_context(service(server.home, *serve, program=server.thalweg, **_TOKEN))
        if servers > 1:
            attend = ("shard", "--server", address, "--address", f"{shard.address}:7070", "--trust-network")
            stack.enter_context(service(shard.home, *attend, program=shard.thalweg, **_TOKEN))
        timing = _start(stack, server, "rate", address, _WORKLOAD.name, str(data), str(seconds))
        job = _line(timing)
        for number, worker in enumerate(workers):
            _start(stack, worker, "work", address, job, f"worker-{number}")
        steps, passed = map(float, _line(timing).split())
    return passed / steps


def _start(stack: ExitStack, host: Host, *arguments: str) -> subprocess.Popen[str]:
    """A program of benchmarks.on_host on a host; it is killed with the host."""
    command = [*host.enter, sys.executable, "-m", "benchmarks.on_host", *arguments]
    # To enter a host is to leave the working folder.
    environment = os.environ | _TOKEN | {"PYTHONPATH": str(_ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    stack.callback(process.communicate)
    stack.callback(host.kill)
    return process


def _line(process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise RuntimeError("the measurement ended too early")
    return line.strip()


if __name__ == "__main__":
    run(measure)
