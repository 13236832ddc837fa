"""Whether a job's tasks have the same bits however they are computed. User code runs in processes of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from google.protobuf import json_format

from thalweg.client.composition import completed
from thalweg.client.errors import LocalError
from thalweg.client.jobfile import JobFile
from thalweg.client.local_files import local_files
from thalweg.contract.errors import Violation, invalid
from thalweg.v1 import job_pb2

# Different tasks. Each is computed twice in each process, the second time in another order.
TASKS = 4
_ORDER = [*range(TASKS), *reversed(range(TASKS))]
_OTHER_ORDER = [2, 0, 3, 1, 1, 3, 0, 2]
_PROGRAM = "thalweg.workers.doctor"
# The folder of compiled modules: each process has its own, so that each compiles the module.
_COMPILED = "TORCHINDUCTOR_CACHE_DIR"
_BUSY = "while True: pass"

# What is wrong, by what differs first, and what to do.
_ADVICE = {
    "initial value": "draw initial values from the generators of PyTorch, NumPy or Python alone, which the job's seed sets",
    "samples": "let the data follow from its index alone: no random numbers, no clock, no order of a set",
    "output": "look in it for a random generator of its own, a clock, the order of a set, threads, or values kept between calls",
    "loss": "look in the loss for random numbers, a clock, or values kept between calls",
    "gradient": "look for threads in a backward function of your own, or an operation without a deterministic form",
    "statistic": "change buffers by what the samples are alone",
}


class Difference(NamedTuple):
    """The first thing in a task that is not the same each time: `what` kind of thing it is, and its name.

    `when` says between which computations it differs.
    """

    step: int
    microbatch: int
    what: str
    name: str
    when: str

    @property
    def advice(self) -> str:
        """What to do about it."""
        return _ADVICE[self.what]

    def __str__(self) -> str:
        thing = f"{self.what} of {self.name}" if self.name else f"the {self.what}"
        return f"step {self.step}, microbatch {self.microbatch}: {thing} differs {self.when}; {self.advice}"


class Diagnosis(NamedTuple):
    """How many tasks were computed, how often each, and the first difference, None if there is none.

    `notice` is what the author of the job's code should know besides; empty if nothing.
    """

    tasks: int
    times: int
    difference: Difference | None
    notice: str


class _Run(NamedTuple):
    """What one process found: the tasks in its order, and, of each, what it computed, in order; and a notice."""

    tasks: list[tuple[int, int]]
    found: list[list[tuple[str, str, str]]]
    notice: str


def examine(job: JobFile, tell: Callable[[str], object] = lambda _: None) -> Diagnosis:
    """Computes a job's first tasks in two processes, several times each, and compares all that they compute.

    The second process runs beside a load, on one processor, with another seed of Python's hashes, and in another order; it is
    not needed if tasks differ in the first one already. `tell` is called with what is being done. Raises
    ThalwegError if the job is not right.
    """
    with TemporaryDirectory(prefix="thalweg-code-") as folder:
        files = local_files(job, Path(folder))
        spec = completed(job.spec)
        tell("computing tasks")
        one = _run(spec, files, _ORDER, {"PYTHONHASHSEED": "1"}, [])
        tasks = list(dict.fromkeys(one.tasks))
        if difference := _first_difference(tasks, one, one):
            return Diagnosis(len(tasks), len(one.tasks) // len(tasks), difference, one.notice)
        tell("computing them again, beside a load")
        with _load():
            other = _run(spec, files, _OTHER_ORDER, {"PYTHONHASHSEED": "2"}, sorted(os.sched_getaffinity(0))[:1])
    times = len(one.tasks + other.tasks) // len(tasks)
    return Diagnosis(len(tasks), times, _first_difference(tasks, one, other), one.notice)


def _first_difference(tasks: list[tuple[int, int]], one: _Run, other: _Run) -> Difference | None:
    for task in tasks:
        ours, theirs = ([found for each, found in zip(run.tasks, run.found, strict=True) if each == task] for run in (one, other))
        for again in ours[1:]:
            if difference := _compared(task, ours[0], again, "when it is computed again in the same process, after other tasks"):
                return difference
        for elsewhere in theirs:
            if difference := _compared(task, ours[0], elsewhere, "in another process, beside a load and after other tasks"):
                return difference
    return None


def _compared(
    task: tuple[int, int], ours: list[tuple[str, str, str]], theirs: list[tuple[str, str, str]], when: str
) -> Difference | None:
    for (what, name, digest), (other_what, other_name, other_digest) in zip(ours, theirs, strict=False):
        if (what, name) != (other_what, other_name):
            return Difference(*task, what, f"{name} (there it is {other_what} of {other_name})", when)
        if digest != other_digest:
            return Difference(*task, what, name, when)
    return None


def _run(
    spec: job_pb2.JobSpec, files: Mapping[str, Path], order: list[int], environment: Mapping[str, str], processors: list[int]
) -> _Run:
    """What a process finds. Raises ThalwegError if it finds a mistake in the job, or does not end well."""
    with TemporaryDirectory(prefix="thalweg-doctor-") as folder:
        out = Path(folder) / "answer.json"
        asked = {
            "spec": json_format.MessageToDict(spec, preserving_proto_field_name=True),
            "files": {sha256: str(path) for sha256, path in files.items()},
            "tasks": TASKS,
            "order": order,
            "processors": processors,
            "out": str(out),
        }
        ended = subprocess.run(  # noqa: S603 - this Python's own module
            [sys.executable, "-m", _PROGRAM],
            input=json.dumps(asked),
            env=os.environ | environment | {_COMPILED: folder},
            # What the code prints goes to stderr, which sys.stderr need not be.
            stdout=2,
            text=True,
            check=False,
        )
        if ended.returncode or not out.exists():
            raise LocalError(f"the process that computes the job's tasks ended with exit code {ended.returncode}")
        answer: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    if "mistake" in answer:
        field, _, problem = answer["mistake"].partition(": ")
        raise invalid(Violation(field, problem))
    found = [[(what, name, digest) for what, name, digest in each] for each in answer["found"]]
    return _Run([(step, microbatch) for step, microbatch in answer["tasks"]], found, answer["notice"])


@contextmanager
def _load() -> Iterator[None]:
    """Other processes keep all processors busy as long as the context."""
    count = len(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]  # noqa: S603 - nothing of the user's
    try:
        yield
    finally:
        for process in busy:
            process.kill()
        for process in busy:
            process.wait()
