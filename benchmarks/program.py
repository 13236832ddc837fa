"""A system's program: measures how fast a workload trains, in a process of its own, and says so in one line of JSON.

    python -m benchmarks.systems.limit WORKLOAD --seconds 4

Imports the standard library only, for peers run in an environment of their own.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.workloads import WORKLOADS, Workload

# Steps are not counted before this number of seconds and this number of steps have passed.
WARM_UP_SECONDS = 1.5
WARM_UP_STEPS = 10


class Unavailable(Exception):  # noqa: N818 - no error: a system is not there
    """The system cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Rate:
    """A number of steps, and the seconds that they took."""

    steps: int
    seconds: float


class Window:
    """The span in which steps are counted, by any clock, in seconds: from the end of the warm-up on, `seconds` long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._first: tuple[float, int] | None = None
        self._began: tuple[float, int] | None = None

    def at(self, now: float, steps: int) -> Rate | None:
        """Takes note that `steps` steps have been taken by `now`. The rate, once the window is over."""
        self._first = self._first or (now, steps)
        if self._began is None:
            if now - self._first[0] >= WARM_UP_SECONDS and steps - self._first[1] >= WARM_UP_STEPS:
                self._began = now, steps
            return None
        began, before = self._began
        return Rate(steps - before, now - began) if now - began >= self._seconds and steps > before else None


def timed(step: Callable[[], object], seconds: float, at_once: int = 1) -> Rate:
    """The rate of a function that takes a number of steps at once."""
    window, steps = Window(seconds), 0
    while True:
        rate = window.at(time.perf_counter(), steps)
        if rate:
            return rate
        step()
        steps += at_once


def run(measure: Callable[[Workload, argparse.Namespace], Rate], *options: str, argv: Sequence[str] | None = None) -> None:
    """Reads the command line, measures and prints. `options` are flags that the program has besides."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--seconds", type=float, required=True)
    for option in options:
        parser.add_argument(option)
    given = parser.parse_args(argv)
    try:
        rate = measure(WORKLOADS[given.workload], given)
        answer: dict[str, Any] = {"steps": rate.steps, "seconds": rate.seconds}
    except Unavailable as why:
        answer = {"unavailable": str(why)}
    print(json.dumps(answer), flush=True)
