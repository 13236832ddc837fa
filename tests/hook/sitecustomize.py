"""Has the workers of a process wait at a barrier. Python imports this at each start if its folder is on PYTHONPATH.

`tests/end_to_end/barrier.py` is the other end. Imports nothing but the standard library, for it runs before all else.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_WORKER = "thalweg.workers.worker"
_LOOK_SECONDS = 0.005


def is_held(barrier: Path, job: str, step: int) -> bool:
    """Whether a file holds a job at a step. It has the first step that waits, or null, for each job, or "*" for others."""
    with suppress(FileNotFoundError):
        steps = json.loads(barrier.read_text())
        first = steps.get(job, steps.get("*"))
        return first is not None and step >= first
    return False


def hold(worker: Any, barrier: Path) -> Callable[[], None]:
    """Changes the module of workers: none begins a gradient that the file holds. Gives what changes it back."""
    hello, differentiate = worker.hello, worker._Worker._differentiate
    thread = threading.local()

    def hello_of_job(*, job_id: str, **others: Any) -> Any:
        thread.job = job_id
        return hello(job_id=job_id, **others)

    def differentiate_when_let(self: Any, task: Any) -> None:
        while is_held(barrier, thread.job, task.step):
            time.sleep(_LOOK_SECONDS)
        differentiate(self, task)

    def undo() -> None:
        worker.hello, worker._Worker._differentiate = hello, differentiate

    worker.hello, worker._Worker._differentiate = hello_of_job, differentiate_when_let
    return undo


class _Finder(MetaPathFinder):
    """Changes the module of workers as soon as it is imported."""

    def __init__(self, barrier: Path) -> None:
        self._barrier = barrier

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == _WORKER else None
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def execute_and_hold(module: ModuleType) -> None:
                execute(module)
                hold(module, self._barrier)

            spec.loader.exec_module = execute_and_hold  # type: ignore[method-assign]
        return spec


if file := os.environ.get("THALWEG_TEST_BARRIER"):
    sys.meta_path.insert(0, _Finder(Path(file)))
