"""Samples per second of two processes that learn from one data set in several formats, without a server.

A set of 40 Parquet files with 99 features and a target, against the same numbers in memory, in two .npy files, and read by a
plain loop over PyTorch's DataLoader; and a tenth of them as CSV. Each system runs in turn, in processes of its own.
"""

import argparse
import hashlib
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.parts import Cell, Table, run
from benchmarks.workloads import WORKERS
from thalweg.contract import manifests
from thalweg.contract.tree import root
from thalweg.learning import data
from thalweg.learning.data import memory
from thalweg.server import validation
from thalweg.v1 import job_pb2
from thalweg.workers.data_access import OWN_POLICY, NodeAccess
from thalweg.workers.differentiator import Differentiator

FILES, COLUMNS, GROUP = 40, 100, 25_000
BATCH, MICROBATCHES = 2048, 4
PARQUET, NPY, CSV = "parquet.json", "npy.json", "data.csv"


class Found(NamedTuple):
    """What a process measured: samples in a number of seconds, processor seconds meanwhile, and its largest resident memory.

    `began` are the seconds until the first step had ended.
    """

    began: float
    samples: int
    seconds: float
    processor: float
    resident: int


Loop = Callable[[], int]
_SOURCES: dict[str, dict[str, Any]] = {
    PARQUET: {"parquet": PARQUET, "target": "y"},
    NPY: {"npy": {"x": "x.npy", "y": "y.npy"}},
    CSV: {"csv": CSV, "target": "y"},
}


def write(folder: Path, gigabytes: float) -> None:
    """Writes the data set, of about this number of gigabytes of float32, in both formats."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    each = max(1, round(gigabytes * 1e9 / 4 / COLUMNS / FILES))
    generator = np.random.default_rng(0)
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (each * FILES, COLUMNS - 1))
    y = np.lib.format.open_memmap(folder / "y.npy", "w+", np.float32, (each * FILES,))
    entries = []
    for number in range(FILES):
        rows = slice(number * each, (number + 1) * each)
        x[rows] = generator.standard_normal((each, COLUMNS - 1), np.float32)
        y[rows] = x[rows, :9].sum(axis=1)
        columns = {f"x{column}": np.ascontiguousarray(x[rows, column]) for column in range(COLUMNS - 1)} | {"y": y[rows]}
        path = folder / f"part-{number:02}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=GROUP)
        content = path.read_bytes()
        entries.append(manifests.Entry(path.name, len(content), hashlib.sha256(content).hexdigest()))
    (folder / PARQUET).write_bytes(manifests.written(entries))
    arrays = [manifests.Entry(name, (folder / f"{name}.npy").stat().st_size, _digest(name)) for name in ("x", "y")]
    (folder / NPY).write_bytes(manifests.written(arrays))
    some = slice(0, len(x) // 10)
    table = pa.table({f"x{column}": x[some, column] for column in range(COLUMNS - 1)} | {"y": y[some]})
    pa.csv.write_csv(table, folder / CSV)


def _digest(name: str) -> str:
    """What stands for a SHA-256: the files are made anew for each measurement."""
    return hashlib.sha256(name.encode()).hexdigest()


def _uploads(folder: Path) -> Callable[[str], Path]:
    """The files by their SHA-256."""
    files = {_digest(name): folder / name for name in (PARQUET, NPY, CSV)}
    files |= {entry.sha256: folder / entry.path for entry in manifests.read((folder / PARQUET).read_bytes())}
    files |= {_digest(name): folder / f"{name}.npy" for name in ("x", "y")}
    return files.__getitem__


def _thalweg(folder: Path, worker: int, units: int, source: str, kept: bool = False) -> Loop:
    """A worker's part of a job's steps. All samples are held in memory if `kept`."""
    if kept:
        memory.MAX_HELD = 1 << 40
    os.environ["THALWEG_DATA_CACHE"] = str(folder / "cache")
    spec = json_format.ParseDict(
        {
            "model": {
                "layers": [{"dense": {"units": units}}, {"relu": {}}, {"dense": {"units": 1}}],
                "loss": "mean_squared_error",
            },
            "data": _SOURCES[source],
            "training": {"batch_size": BATCH, "microbatches": MICROBATCHES},
            "optimizer": {"sgd": {}},
        },
        job_pb2.JobSpec(),
    )
    spec.data.sha256 = _digest(source)
    spec = validation.complete(spec)
    # Open as long as this process lives.
    access = NodeAccess(_uploads(folder), OWN_POLICY)
    computes = Differentiator(spec, data.load(spec, access))
    parameters: NDArray[Any] = np.empty(computes.objective.size, computes.objective.dtype)
    computes.objective.initialize(parameters)
    node = root(MICROBATCHES).children[worker]
    steps = iter(range(1 << 40))

    def step() -> int:
        number = next(steps)
        gradient, sums = computes.gradient(parameters, number, number, node, slice(0, parameters.size))
        computes.release(gradient)
        return int(sums.samples)

    return step


def _torch(folder: Path, worker: int, units: int) -> Loop:
    """A process's part of a plain loop over PyTorch's DataLoader, which reads whole files in a random order and mixes each."""
    import pyarrow.parquet as pq
    import torch
    from torch.utils.data import DataLoader, IterableDataset

    torch.set_num_threads(1)
    files = sorted(folder.glob("*.parquet"))[worker::WORKERS]
    size = BATCH // WORKERS

    class Batches(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
        """Endless batches of samples."""

        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            generator = np.random.default_rng(worker)
            while True:
                for number in generator.permutation(len(files)).tolist():
                    table = pq.read_table(files[number], use_threads=False)
                    rows = np.column_stack([column.to_numpy() for column in table.columns])
                    order = generator.permutation(len(rows))
                    for start in range(0, len(rows), size):
                        chosen = torch.from_numpy(rows[order[start : start + size]])
                        yield chosen[:, :-1], chosen[:, -1:]

    batches = iter(DataLoader(Batches(), batch_size=None))
    layers = torch.nn.Linear(COLUMNS - 1, units), torch.nn.ReLU(), torch.nn.Linear(units, 1)
    model = torch.nn.Sequential(*layers)

    def step() -> int:
        x, y = next(batches)
        model.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        return len(x)

    return step


_SYSTEMS: dict[str, Callable[[Path, int, int], Loop]] = {
    "Thalweg, in memory": partial(_thalweg, source=NPY, kept=True),
    "Thalweg, Parquet": partial(_thalweg, source=PARQUET),
    "Thalweg, .npy": partial(_thalweg, source=NPY),
    "Thalweg, CSV (a tenth)": partial(_thalweg, source=CSV),
    "PyTorch DataLoader, Parquet": _torch,
}


def _largest() -> int:
    """The largest resident memory of this process, in bytes: since its program began, unlike that of `resource`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _process(name: str, folder: Path, worker: int, units: int, seconds: float, answer: Connection) -> None:
    with threadpool_limits(1):
        start = time.monotonic()
        step = _SYSTEMS[name](folder, worker, units)
        step()
        ready = time.monotonic() - start
        # Both begin when both are ready.
        answer.send(None)
        answer.recv()
        began, processor, samples = time.monotonic(), time.process_time(), 0
        while time.monotonic() < began + seconds:
            samples += step()
        spent = time.monotonic() - began, time.process_time() - processor
        answer.send(Found(ready, samples, *spent, _largest()))


def _measured(name: str, folder: Path, units: int, seconds: float) -> list[Found]:
    """What the processes of one system measured at the same time."""
    context = multiprocessing.get_context("spawn")
    processes, ends = [], []
    for worker in range(WORKERS):
        here, there = context.Pipe()
        processes.append(context.Process(target=_process, args=(name, folder, worker, units, seconds, there)))
        processes[-1].start()
        there.close()
        ends.append(here)
    try:
        for end in ends:
            end.recv()
        for end in ends:
            end.send(None)
        return [end.recv() for end in ends]
    finally:
        for process in processes:
            process.join()


def measure(options: argparse.Namespace) -> Table:
    """Medians over the repetitions, in each of which all systems have their turn."""
    found: dict[str, list[list[Found]]] = {name: [] for name in _SYSTEMS}
    with tempfile.TemporaryDirectory(prefix="thalweg-data-") as home:
        folder = Path(home)
        write(folder, options.gigabytes)
        for _ in range(options.repeats):
            for name, measured in found.items():
                measured.append(_measured(name, folder, int(options.units), options.seconds))
    rates = {
        name: statistics.median(sum(each.samples / each.seconds for each in turn) for turn in turns)
        for name, turns in found.items()
    }
    rows: list[tuple[Cell, ...]] = []
    for name, turns in found.items():
        every = [each for turn in turns for each in turn]
        processor = 1e6 * sum(each.processor for each in every) / sum(each.samples for each in every)
        resident = max(each.resident for each in every) / 1e6
        first, last = (max(each.began for each in turn) for turn in (turns[0], turns[-1]))
        rows.append((name, rates[name], rates[name] / rates["Thalweg, in memory"], processor, resident, first, last))
    columns = (
        "data",
        "samples/s of two",
        "÷ in memory",
        "processor time, µs a sample",
        "largest resident memory, MB",
        "s to the first step",
        "s to it the last time",
    )
    return Table(columns, rows)


if __name__ == "__main__":
    run(measure, gigabytes=0.4, units=128)
