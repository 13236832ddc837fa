"""Workers' processes that died: how, by what Ray says, and their last words, which are read on the nodes where they ran."""

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

from thalweg.v1 import fleet_service_pb2 as pb
from thalweg.workers.crashes import LastWords, last_words

# Ray's messages about the end of an actor's process. It names no other signal.
_WITHOUT_A_WORD = "Worker unexpectedly exits with a connection error"
_EXIT_CODE = re.compile(r"Worker exits with an exit code (\d+)")
_SIGTERM = "The process receives a SIGTERM"
# For the start of a process that reads the log of a worker that died.
_READ_SECONDS = 15.0
_DIED = "its process died: "


def death(text: str) -> pb.WorkerExited:
    """The death of a process, by Ray's message about it."""
    signaled = signal.SIGTERM if _SIGTERM in text else 0
    exited = pb.WorkerExited(cause=pb.WorkerExited.CAUSE_KILLED, signal=signaled, died=not signaled)
    exited.problem = f"{_DIED}{_how(text)}"
    return exited


def _how(text: str) -> str:
    if _SIGTERM in text:
        return "it was ended by SIGTERM"
    if _WITHOUT_A_WORD in text:
        return "it was killed, perhaps for lack of memory, or crashed without a message"
    code = _EXIT_CODE.search(text)
    return f"it ended with exit code {code[1]}" if code else text.partition("\n")[0]


@dataclass(frozen=True)
class _Death:
    exited: pb.WorkerExited
    last_words: Any
    until: float


class Deaths:
    """Deaths that are reported when the last words of the processes are known.

    `now` gives the value of a reference of Ray's, None if it has none yet, or none at all.
    """

    def __init__(self, ray: Any, now: Callable[[Any], Any], send: Callable[[pb.WorkerExited], object]) -> None:
        self._ray = ray
        self._now = now
        self._send = send
        self._last_words = ray.remote(last_words)
        self._deaths: list[_Death] = []

    def add(self, exited: pb.WorkerExited, log: str) -> None:
        """A process died whose log lies at a path, on the node that `exited` names."""
        there = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(exited.place.node, soft=False)
        read = self._last_words.options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        self._deaths.append(_Death(exited, read.remote(log), monotonic() + _READ_SECONDS))

    def tell(self) -> None:
        """Reports the deaths whose last words are known, or cannot be read."""
        for each in list(self._deaths):
            words: LastWords | None = self._now(each.last_words)
            if words is None and monotonic() < each.until:
                continue
            if words and words.problem:
                each.exited.problem, each.exited.line = f"{_DIED}{words}", words.line
            self._deaths.remove(each)
            self._send(each.exited)
