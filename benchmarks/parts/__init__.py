"""Measurements of single parts of Thalweg: each is one small program beside this file, and one line here."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks import systems

_PATIENCE_SECONDS = 1800.0

Cell = str | int | float


class Table(NamedTuple):
    """What was measured: the first column says of what."""

    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]


@dataclass(frozen=True)
class Part:
    """A measurement."""

    name: str
    title: str

    def measure(self, seconds: float, repeats: int) -> dict[str, Any]:
        """What its program says. Raises ProgramError if it fails."""
        command = [sys.executable, "-m", f"benchmarks.parts.{self.name}", "--seconds", str(seconds), "--repeats", str(repeats)]
        said: dict[str, Any] = json.loads(
            systems.output(command, systems.variables(own=True), _PATIENCE_SECONDS).splitlines()[-1]
        )
        return {"title": self.title} | said


_ALL = (
    Part("exchange", "one gRPC stream, as a worker's, and nothing after it"),
    Part("encryption", "a step over gRPC with TLS and certificates of both ends, against one without, side by side"),
    Part("optimizers", "updates of 20 million parameters, against the memory's bandwidth"),
    Part("cpu", "processor time of a step"),
    Part(
        "profile",
        "processor time of a step of PyTorch modules: PyTorch's, the objective's, workers' and server's, of two workers",
    ),
    Part("resident", "memory of each process (proportional set size), against the model's"),
    Part("startup", "from nothing to the first step"),
    Part("workers", "a step against the number of workers, each of which sleeps 20 ms instead of computing its microbatch"),
    Part("parameters", "a step against the number of parameters, with two workers that compute nothing"),
    Part("microbatches", "a step against the number of microbatches, with two workers that compute nothing"),
    Part("coordinator", "processor time of the coordinator alone for a contribution, against the number of workers"),
    Part("constants", "what the model of a step's time in benchmarks/scaling is made of"),
    Part("order", "taking a step's samples against their number, 10⁴ to 10⁹, which are computed: processor time"),
    Part("data", "samples per second of two processes that learn from one data set in several formats, without a server"),
    Part("links", "a step of `wide` between hosts, over links of 1 Gbit/s each, with one server and with two"),
    Part("scaling", "a step over gRPC with 1 to 8 workers that sleep 20 ms, and over shards, for that model to be held against"),
)
PARTS = {part.name: part for part in _ALL}


def run(measure: Callable[[argparse.Namespace], Table], **options: float) -> None:
    """A part's program: reads its command line, measures, and prints a line of JSON.

    `options` are further ones, with their defaults.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each value is measured")
    parser.add_argument("--repeats", type=int, default=3, help="the number of repetitions, of which the median is reported")
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    print(json.dumps(measure(parser.parse_args())._asdict()), flush=True)
