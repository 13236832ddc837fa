"""Code of a job's author: finds what an entry point names, and makes of what goes wrong in it a mistake that its author can read.

Only workers run such code, and only where the operator allowed it; nothing here decides that.
"""

import importlib
import io
import json
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TextIO

from thalweg.learning.errors import MistakeError, NodeError
from thalweg.v1 import job_pb2

# Of a traceback, the last calls are shown; of a text of the author's, its beginning. All of it has to fit into one report.
_MAX_CALLS = 3
_MAX_TEXT = 300
_MAX_LINE = 100
# What code may print, in characters, in as many seconds.
_MAX_PRINTED = 1 << 16
_SECONDS = 60.0

_OURS = ("thalweg.", "importlib.", "_frozen_importlib", "contextlib", "threadpoolctl", "ray.")
_INSTALLED = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}


def load(entrypoint: str, field: str) -> Callable[..., object]:
    """What `module:name` names. Imports the module, which runs its code.

    Raises MistakeError, with the path of the job's field first, if the module cannot be imported or has no such callable.
    """
    module_name, _, name = entrypoint.partition(":")
    with running(field):
        try:
            found: object = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and f"{module_name}.".startswith(f"{error.name}."):
                problem = f"there is no module {error.name}; it must be in code.path, or installed where the workers run"
                raise MistakeError(f"{field}: {problem}") from error
            raise
        for part in name.split("."):
            above, missing = found, object()
            found = getattr(above, part, missing)
            if found is missing:
                raise MistakeError(f"{field}: {_named(above)} has no {part}{_meant(above, part)}")
        if not callable(found):
            raise MistakeError(f"{field}: {entrypoint} is of type {type(found).__name__}, which cannot be called")
        return found


def arguments(entry: job_pb2.EntryPoint) -> dict[str, object]:
    """The keyword arguments that an entry point is called with, as JSON has them: whole numbers are int, lists are list."""
    given: dict[str, object] = json.loads(entry.arguments or "{}")
    return given


@contextmanager
def running(field: str) -> Iterator[None]:
    """Around every call of an author's code.

    What it raises, an exit of the process included, becomes MistakeError, with the path of the job's field first, and where in
    the author's code it was raised. What it prints goes where it would go, at most so much a minute. Contexts may be nested, and
    threads may have theirs at once.
    """
    try:
        with _output:
            yield
    except (MistakeError, NodeError, MemoryError, KeyboardInterrupt, GeneratorExit):
        # Those of this package are right as they are; memory is the node's problem.
        raise
    except BaseException as error:
        raise MistakeError(f"{field}: {_told(error)}") from error


def _told(error: BaseException) -> str:
    """An exception of the author's code, in one line."""
    calls = _calls(error)
    where = f" (at {', then '.join(calls)})" if calls else ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        problem = f"ModuleNotFoundError: the code needs the package {package}, which is not installed where the workers run"
        return f"{problem}{where}; add it to code.requirements, or to code.path if it is yours"
    text = _text(error)
    return f"{type(error).__name__}{f': {text}' if text else ''}{where}"


def _text(error: BaseException) -> str:
    try:
        # The message alone: where it is follows.
        text = (error.msg or "") if isinstance(error, SyntaxError) else str(error)
    except Exception:  # noqa: BLE001 - it is the author's, too
        return "(its text cannot be shown)"
    return _cut(" ".join(text.split()) if len(text) < _MAX_PRINTED else text, _MAX_TEXT)


def _calls(error: BaseException) -> list[str]:
    """The last calls in the author's own code, as `file:line in function: source`; else those in packages that it uses."""
    trace = traceback.extract_tb(_beyond_ours(error.__traceback__))
    frames = [frame for frame in trace if not frame.filename.startswith("<frozen ")]
    own = [frame for frame in frames if not _installed(frame.filename)] or frames
    told = [_call(frame.filename, frame.lineno, frame.name, frame.line) for frame in own[-_MAX_CALLS:]]
    if isinstance(error, SyntaxError) and error.filename:
        told.append(_call(error.filename, error.lineno, "<module>", error.text))
    return told[-_MAX_CALLS:]


def _beyond_ours(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback after the calls of this package's, and of those that import modules."""
    while trace and f"{trace.tb_frame.f_globals.get('__name__', '')}.".startswith(_OURS):
        trace = trace.tb_next
    return trace


def _call(file: str, line: int | None, function: str, source: str | None) -> str:
    where = f"{_relative(file)}:{line}" + ("" if function == "<module>" else f" in {function}")
    return f"{where}: {_cut(source.strip(), _MAX_LINE)}" if source and source.strip() else where


def _relative(file: str) -> str:
    """The path of a file as its author knows it: below the folder that modules are imported from."""
    path = Path(file)
    for folder in sys.path:
        if folder and path.is_relative_to(folder):
            return str(path.relative_to(folder))
    return str(path)


def _installed(file: str) -> bool:
    return any(Path(file).is_relative_to(folder) for folder in _INSTALLED)


def _named(found: object) -> str:
    """What a missing name was looked for in."""
    if isinstance(found, ModuleType):
        file = getattr(found, "__file__", None)
        return f"the module {found.__name__}{f' ({_relative(file)})' if file else ''}"
    return str(getattr(found, "__qualname__", type(found).__name__))


def _meant(found: object, name: str) -> str:
    close = get_close_matches(name, [known for known in dir(found) if not known.startswith("_")], 1)
    return f"; did you mean {close[0]}?" if close else ""


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


class _Sparing(io.TextIOBase):
    """A text stream that passes on so many characters a minute, and says what it leaves out."""

    def __init__(self, to: TextIO) -> None:
        self._to = to
        self._lock = threading.Lock()
        self._since = time.monotonic()
        self._left = _MAX_PRINTED

    def write(self, text: str, /) -> int:
        with self._lock:
            now = time.monotonic()
            if now - self._since >= _SECONDS:
                self._since, self._left = now, _MAX_PRINTED
            if self._left > 0:
                self._to.write(text[: self._left])
                self._left -= len(text)
                if self._left <= 0:
                    self._to.write("\n(further output of the job's code is left out for a minute)\n")
        return len(text)

    def flush(self) -> None:
        self._to.flush()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._to.fileno()


class _Output:
    """Bounds what is printed while at least one thread is in this context."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entered = 0
        self._before: tuple[TextIO, TextIO] | None = None
        self._sparing: tuple[_Sparing, _Sparing] | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._entered += 1
            if self._entered == 1:
                before = (sys.stdout, sys.stderr)
                if self._sparing is None or before != self._before:
                    self._before, self._sparing = before, (_Sparing(before[0]), _Sparing(before[1]))
                sys.stdout, sys.stderr = self._sparing

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._entered -= 1
            if self._entered == 0 and self._before:
                # What the code put there instead stays until then, and no longer.
                sys.stdout, sys.stderr = self._before


_output = _Output()
