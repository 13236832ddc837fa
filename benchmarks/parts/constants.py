"""The constants of the model in `benchmarks/scaling`, each measured for itself.

What server and workers do is measured in processor time, which depends less than time does on what else the machine does. The
cost of a byte is that of a stream with the contract's messages and nothing else; that of a message comes from real steps of
one and of eight workers that compute nothing, with a model that fits into one message: so all that the server does about it is
in it.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from itertools import repeat

import grpc
import numpy as np
import psutil
from threadpoolctl import threadpool_limits

from benchmarks.cluster import cluster, idle_job, idle_workload
from benchmarks.parts import Cell, Table, run
from benchmarks.parts.exchange import Stream, serve
from benchmarks.parts.scaling import SLEEP
from benchmarks.scaling.constants import CODECS
from benchmarks.systems.limit import gradients
from benchmarks.workloads import DENSE, Workload
from thalweg.client.jobfile import load_job
from thalweg.contract import codecs
from thalweg.contract.endpoint import CHUNK_BYTES, OPTIONS
from thalweg.learning import optimizers
from thalweg.server import validation

_FEW, _MANY = 1, 8
_SMALL = 2_000
_SMALL_MESSAGES, _CHUNKS = 4_000, 512
_ELEMENTS = 20_000_000
_MIN_STEPS = 500

Row = tuple[Cell, ...]


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _median(act: Callable[[], object], repeats: int, clock: Callable[[], float] = time.thread_time) -> float:
    """What something takes, of this thread's processor time if no other clock is given."""
    taken = []
    for _ in range(repeats + 1):
        began = clock()
        act()
        taken.append(clock() - began)
    return statistics.median(taken[1:])


def stream(repeats: int) -> dict[str, float]:
    """The cost of a byte on each end of a stream: medians."""
    context = multiprocessing.get_context("spawn")
    told, tells = context.Pipe()
    server = context.Process(target=serve, args=(tells,), daemon=True)
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{told.recv()}", options=list(OPTIONS)) as channel:
        worker, ends = Stream(channel), (psutil.Process(server.pid), psutil.Process())

        def spent(act: Callable[[], object], count: int) -> tuple[float, float]:
            """Seconds of processor time of server and worker, for each of `count`."""
            before = [_cpu(end) for end in ends]
            act()
            after = [_cpu(end) for end in ends]
            return (after[0] - before[0]) / count, (after[1] - before[1]) / count

        def small() -> None:
            for _ in range(_SMALL_MESSAGES):
                worker.small()

        small()
        worker.chunks(_CHUNKS, _CHUNKS)
        rounds = [spent(small, _SMALL_MESSAGES) for _ in repeat(None, repeats)]
        up = [spent(lambda: worker.chunks(_CHUNKS, 0), _CHUNKS) for _ in repeat(None, repeats)]
        down = [spent(lambda: worker.chunks(0, _CHUNKS), _CHUNKS) for _ in repeat(None, repeats)]
    (server_round, worker_round), (server_up, worker_up), (server_down, worker_down) = (
        (statistics.median(one[0] for one in each), statistics.median(one[1] for one in each)) for each in (rounds, up, down)
    )

    def byte(chunk: float, small_round: float) -> float:
        return max(0.0, chunk - small_round / 2) / CHUNK_BYTES

    return {
        "server_receive_byte": byte(server_up, server_round),
        "server_send_byte": byte(server_down, server_round),
        "worker_send_byte": byte(worker_up, worker_round),
        "worker_receive_byte": byte(worker_down, worker_round),
    }


def step(workers: int, seconds: float) -> tuple[float, float, float]:
    """A step of idle workers with a model of one message: processor seconds of the server and of one worker, and seconds."""
    with cluster(idle_job(idle_workload(_SMALL), workers), workers, 0.0, shared_memory=False, threads=1) as running:
        running.rate(0)
        before, first, steps, began = running.cpu(), running.job.progress.step, 0, time.perf_counter()
        while steps < _MIN_STEPS:
            time.sleep(seconds)
            after, steps, took = running.cpu(), running.job.progress.step - first, time.perf_counter() - began
    return (after[0] - before[0]) / steps, (after[1] - before[1]) / steps / workers, took / steps


def gradient(workload: Workload, repeats: int) -> float:
    """Seconds of a microbatch, on one thread."""
    _, differentiate = gradients(workload, 0)

    def some() -> None:
        for _ in range(1 if workload.parameters > 1_000_000 else 200):
            differentiate()

    with threadpool_limits(1, "blas"):
        return _median(some, repeats) / (1 if workload.parameters > 1_000_000 else 200)


def arithmetic(repeats: int) -> dict[str, float]:
    """Updates, additions and codecs, for each byte of float32."""
    generator = np.random.default_rng(0)
    parameters, slab = generator.standard_normal((2, _ELEMENTS), np.float32)
    out = np.zeros_like(parameters)
    size = parameters.nbytes
    found = {
        "add_byte": _median(lambda: np.add(parameters, slab, out=out), repeats) / size,
        "copy_byte": _median(lambda: np.copyto(out, slab), repeats) / size,
        "fill_byte": _median(lambda: out.fill(0), repeats) / size,
    }
    for kind in ("sgd", "adam", "momentum"):
        optimizer = optimizers.make(validation.complete(load_job("digits", {"optimizer": {kind: {}}}).spec).optimizer)
        state = optimizer.init(_ELEMENTS, parameters.dtype)
        for held in state.values():
            held.fill(0.5)

        def update(optimizer: optimizers.AnyOptimizer = optimizer, state: optimizers.OptimizerState = state) -> None:
            optimizers.apply(optimizer, parameters, slab, state, out, 1e-3, 1)

        found[f"update_byte.{kind}"] = _median(update, repeats) / size
    elements = CHUNK_BYTES // 4
    values, back = slab[:elements], np.empty(elements, np.float32)
    for kind in CODECS:
        spec = validation.complete(load_job("digits", {"training.codec": {kind: {}}}).spec)
        codec = codecs.of_gradients(spec, elements)
        data = codec.encode(values)
        found[f"size.{kind}"] = data.nbytes / CHUNK_BYTES
        free = kind == "float32"
        found[f"encode_byte.{kind}"] = 0.0 if free else _median(lambda c=codec: c.encode(values), 50) / CHUNK_BYTES  # type: ignore[misc]
        found[f"decode_byte.{kind}"] = 0.0 if free else _median(lambda c=codec, d=data: c.decode(d, back), 50) / CHUNK_BYTES  # type: ignore[misc]
    return found


def measure(options: argparse.Namespace) -> Table:
    """All of them."""
    found = stream(options.repeats)
    few, many = step(_FEW, options.seconds), step(_MANY, options.seconds)
    # A worker and step are two messages: parameters with a task, and a gradient.
    message = max(0.0, (many[0] - few[0]) / (_MANY - _FEW)) / 2
    found |= {
        "server_message": message,
        "server_step": max(0.0, few[0] - 2 * message),
        "worker_message": many[1] / 2,
        "latency": max(0.0, few[2] - few[0] - few[1]) / 2,
        "sleep": _median(lambda: time.sleep(SLEEP), 20 * options.repeats, time.perf_counter),
    }
    found |= {f"gradient.{name}": gradient(workload, options.repeats) for name, workload in DENSE.items()}
    found |= arithmetic(options.repeats)
    rows: list[Row] = [(name, value, _unit(name)) for name, value in found.items()]
    return Table(("constant", "value", "unit"), rows)


def _unit(name: str) -> str:
    if name.startswith("size."):
        return "of float32"
    return "s/byte" if "byte" in name else "s"


if __name__ == "__main__":
    run(measure)
