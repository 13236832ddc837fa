"""The output of commands: JSON for machines on stdout, words for people, problems on stderr."""

import io
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from thalweg.client import records
from thalweg.client.records import Metrics, Result
from thalweg.contract.errors import ThalwegError
from thalweg.contract.states import state_name, waiting_name
from thalweg.contract.text import is_visible, visible, visible_lines
from thalweg.v1 import job_pb2

# A file or a pipe has no width: lines should not be cut there.
_ENDLESS = 4096
_BARS = "▁▂▃▄▅▆▇█"


class StreamError(OSError):
    """stdout or stderr cannot be written, for another reason than that its reader is gone."""


class _Stream(io.TextIOWrapper):
    """A standard stream, whose failures can be distinguished from those of files."""

    def write(self, text: str) -> int:
        with _known():
            return super().write(text)

    def flush(self) -> None:
        with _known():
            super().flush()


@contextmanager
def _known() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StreamError(error.errno, error.strerror) from error


def make_streams_tolerant() -> None:
    """Makes stdout and stderr accept any text: characters that their encoding lacks are replaced, closed streams discard it.

    Must be called once, before anything is printed or opened: the next file would get the descriptor of a closed stream.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            sink = os.open(os.devnull, os.O_RDWR)
            if sink != number:
                os.dup2(sink, number)
                os.close(sink)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="replace", closefd=False))
        elif type(stream) is io.TextIOWrapper:
            # Read before the stream is detached.
            errors = "replace" if stream.errors in {"strict", "surrogateescape"} else stream.errors
            encoding, by_lines, at_once = stream.encoding, stream.line_buffering, stream.write_through
            tolerant = _Stream(stream.detach(), encoding, errors, line_buffering=by_lines, write_through=at_once)
            setattr(sys, name, tolerant)
            setattr(sys, f"__{name}__", tolerant)
        elif isinstance(stream, io.TextIOWrapper) and stream.errors in {"strict", "surrogateescape"}:
            stream.reconfigure(errors="replace")


def forget_empty_size() -> None:
    """Ignores a terminal's size of zero, which some editors' shells report: nothing would be printed on it."""
    for name in ("COLUMNS", "LINES"):
        if os.environ.get(name, "").strip() == "0":
            del os.environ[name]


class _VisibleConsole(Console):
    """A console that prints no control characters but its own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible_lines(segment.text), segment.style)


def console(stderr: bool = False) -> Console:
    """The console for people: stdout, or stderr for what is not the command's answer."""
    stream = sys.stderr if stderr else sys.stdout
    return _VisibleConsole(stderr=stderr, highlight=False, width=None if stream.isatty() else _ENDLESS)


def print_json(value: Any) -> None:
    """Prints one JSON value as one line. Numbers that JSON cannot hold become null."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    # Control characters can only be within strings, where JSON can write any character as an escape.
    sys.stdout.write("".join(c if is_visible(c) else json.dumps(c)[1:-1] for c in text) + "\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value


def complain(problem: object) -> None:
    """Prints a problem on stderr, each of its lines with the name of the program."""
    for line in str(problem).splitlines() or [""]:
        sys.stderr.write(f"thalweg: {visible(line)}\n")
    sys.stderr.flush()


def exit_code(error: ThalwegError) -> int:
    """2 for wrong input, 1 for other errors."""
    return 2 if error.reason == "INVALID_ARGUMENT" else 1


def metrics_json(metrics: Metrics) -> dict[str, float]:
    """Metrics, without an accuracy if there is none."""
    accuracy = {} if metrics.accuracy is None else {"accuracy": metrics.accuracy}
    return {"loss": metrics.loss} | accuracy | dict(metrics.values)


def result_json(result: Result) -> dict[str, Any]:
    """The result of a job, without the values that it does not have."""
    answer: dict[str, Any] = {"job": result.job, "state": result.state, "steps": result.steps, "epochs": result.epochs}
    if result.train:
        answer["train_loss"] = result.train.loss
        if result.train.accuracy is not None:
            answer["train_accuracy"] = result.train.accuracy
    if result.validation:
        answer["validation"] = metrics_json(result.validation)
    if result.test:
        answer["test"] = metrics_json(result.test)
    if result.weights_sha256:
        answer["weights_sha256"] = result.weights_sha256
    if result.machine_kinds > 1:
        answer["machine_kinds"] = result.machine_kinds
    return answer | {"samples_per_second": result.samples_per_second, "seconds": result.seconds}


def job_json(job: job_pb2.Job) -> dict[str, Any]:
    """A job's current state."""
    progress, result = records.progress(job.progress), records.result(job)
    answer: dict[str, Any] = {
        "job": job.id,
        "state": state_name(job.state),
        "status": job.status,
        "owner": job.owner,
        "shared": job.shared,
        "kept": job.kept,
        "create_time": job.create_time.ToJsonString(),
    }
    for name in ("start_time", "end_time", "result_removed_time"):
        if job.HasField(name):
            answer[name] = getattr(job, name).ToJsonString()
    if job.waiting_for:
        answer["waiting_for"] = waiting_name(job.waiting_for)
    if job.error:
        answer["error"] = job.error
    answer |= {
        "steps": result.steps,
        "total_steps": progress.total_steps,
        "epochs": result.epochs,
        "total_epochs": progress.total_epochs or job.spec.training.epochs,
        "workers": progress.workers,
        "wanted_workers": job.spec.training.workers,
        "priority": job.spec.priority,
        "contributions": asdict(progress.contributions),
        "checkpoints": asdict(progress.checkpoints),
        "exchange": asdict(progress.exchange),
    }
    if job.HasField("result"):
        answer |= result_json(result)
    return answer


def percent(share: float) -> str:
    """A fraction as a percentage, for people."""
    return f"{share * 100:.1f} %"


def accuracy_of(metrics: Metrics | None) -> str:
    """The accuracy, for people, or the loss of a model that is no classifier; empty if nothing was measured."""
    if metrics is None:
        return ""
    return f"loss {metrics.loss:.4g}" if metrics.accuracy is None else percent(metrics.accuracy)


def seconds_of(seconds: float) -> str:
    """A time span for people."""
    if seconds < 120:
        return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def ago(then: datetime, now: datetime) -> str:
    """The time since an event, for people."""
    seconds = max(0, int((now - then).total_seconds()))
    for name, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {name} ago"
    return f"{seconds} s ago"


def sparkline(values: Iterable[float], width: int = 40) -> str:
    """A curve of one line, at most `width` characters wide."""
    known = [value for value in values if math.isfinite(value)]
    if len(known) > width:
        known = [known[index * (len(known) - 1) // (width - 1)] for index in range(width)]
    if not known:
        return ""
    low, high = min(known), max(known)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in known)
