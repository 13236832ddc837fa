"""Code of a job's author: finds what an entry point names, and makes of what goes wrong in it a mistake that its author can read.

Only workers run such code, and only where the operator allowed it; nothing here decides that.
"""

import importlib
import inspect
import json
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from itertools import takewhile
from pathlib import Path
from platform import node
from traceback import FrameSummary
from types import FrameType, ModuleType, TracebackType
from typing import NamedTuple

from thalweg.contract.code import BY_VALUE, BY_VALUE_FILE
from thalweg.contract.text import closest
from thalweg.learning import forks
from thalweg.learning.errors import MistakeError, NodeError
from thalweg.learning.printing import output
from thalweg.v1 import job_pb2

# Of a traceback, the last calls are shown; of a text of the author's, its beginning. All of it has to fit into one report.
_MAX_CALLS = 3
_MAX_TEXT = 300
_MAX_LINE = 100
# A text of this length is not even looked at as a whole.
_MAX_LOOKED_AT = 1 << 16

# Frames of this package, and of the modules in which it puts models by value.
_OWN = ("thalweg.", BY_VALUE)
_OURS = (*_OWN, "importlib.", "_frozen_importlib", "contextlib", "threadpoolctl", "ray.")
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
                raise MistakeError(f"{field}: {_named(above)} has no {part}{_shadowed(above) or _meant(above, part)}")
        if not callable(found):
            raise MistakeError(f"{field}: {entrypoint} is of type {type(found).__name__}, which cannot be called")
        return found


def arguments(entry: job_pb2.EntryPoint) -> dict[str, object]:
    """The keyword arguments that an entry point is called with, as JSON has them: whole numbers are int, lists are list."""
    given: dict[str, object] = json.loads(entry.arguments or "{}")
    return given


def call(made: Callable[..., object], entry: job_pb2.EntryPoint, field: str) -> object:
    """What an entry point's callable gives for its arguments. Raises MistakeError if it takes others, and what it raises itself.

    `field` is the path of the job's field that the entry point is in.
    """
    try:
        return made(**arguments(entry))
    except TypeError as error:
        # Without a call below this one, it is the call itself that is wrong.
        if error.__traceback__ and error.__traceback__.tb_next:
            raise
        raise MistakeError(f"{field}.arguments: {_text(error)}{_taken(made)}") from error


def _taken(made: Callable[..., object]) -> str:
    """Says which arguments a callable takes. Empty if that is unknown."""
    try:
        taken = str(inspect.signature(made))
    except (TypeError, ValueError):
        return ""
    return f"; it takes {cut(taken, _MAX_LINE)}"


@contextmanager
def running(field: str, advice: Callable[[BaseException], str] | None = None) -> Iterator[None]:
    """Around every call of an author's code.

    What it raises, an exit of the process included, becomes MistakeError, with the path of the job's field first, and where in
    the author's code it was raised. `advice` gives what is added to the text of an exception, empty for nothing. A fork whose
    new process comes back from the code becomes MistakeError, too; that process ends here. What the code prints goes where it
    would go, at most so much a minute. Contexts may be nested, and threads may have theirs at once.
    """
    try:
        with output, _within(field), forks.caught(_here):
            yield
    except (MistakeError, NodeError, MemoryError, KeyboardInterrupt, GeneratorExit):
        # Those of this package are right as they are; memory is the node's problem.
        raise
    except BaseException as error:
        raise MistakeError(f"{field}: {_told(error)}{advice(error) if advice else ''}") from error


class Whereabouts(NamedTuple):
    """Where a thread is in an author's code: the path of the job's field, and the last calls: ` (at file:line in function)`."""

    field: str
    where: str


# By thread, the fields of the contexts that it is in.
_fields: dict[int, list[str]] = {}


@contextmanager
def _within(field: str) -> Iterator[None]:
    fields = _fields.setdefault(threading.get_ident(), [])
    fields.append(field)
    try:
        yield
    finally:
        fields.pop()
        if not fields:
            del _fields[threading.get_ident()]


def whereabouts(thread: int) -> Whereabouts | None:
    """Where a thread, by its identifier, is in an author's code; None if it runs none."""
    return _whereabouts(thread, sys._current_frames().get(thread))


def caller(worker: int) -> Whereabouts | None:
    """Where the calling thread is in an author's code; None if it runs none. In a thread that the code has started, the field is
    that of the thread `worker`.
    """
    frame = _theirs()
    this = threading.get_ident()
    return _whereabouts(this if this in _fields else worker, frame) if frame and not _is(frame, _OURS) else None


def line_in(threads: Sequence[Sequence[FrameSummary]], relative: Callable[[str], str]) -> str:
    """Where a process was in an author's code, by what `faulthandler` says of its threads, each with the innermost call first.

    Earlier threads are preferred to later ones, and the author's calls to those of packages, below which this package's are.
    `relative` gives a file's path as its author knows it. Empty if no thread was in such code.
    """
    told = []
    for calls in threads:
        theirs = list(takewhile(lambda call: not _is_ours(call.filename), calls))
        trace = traceback.StackSummary.from_list(reversed(theirs))
        own = any(not _installed(call.filename) and not call.filename.startswith("<") for call in theirs)
        if own or len(theirs) < len(calls):
            told.append((not own, _then(_called(trace, relative))))
    return min(told, key=lambda each: each[0], default=(True, ""))[1]


def _whereabouts(thread: int, frame: FrameType | None) -> Whereabouts | None:
    fields = _fields.get(thread)
    if not fields or frame is None:
        return None
    field, stack = fields[-1], list(traceback.walk_stack(frame))
    ours = next((index for index, (each, _) in enumerate(stack) if _is(each, _OWN)), len(stack))
    trace = traceback.StackSummary.extract(reversed(stack[:ours]))
    return Whereabouts(field, _where(_called(trace)))


def _here() -> str:
    """Where this thread is in an author's code, after the path of the job's field."""
    place = _whereabouts(threading.get_ident(), _theirs())
    return f"{place.field}: the code{place.where}" if place else ""


def _theirs() -> FrameType | None:
    """The innermost call of this thread's that is not this package's."""
    frame: FrameType | None = sys._getframe()
    while frame and _is(frame, _OWN):
        frame = frame.f_back
    return frame


def _told(error: BaseException) -> str:
    """An exception of the author's code, in one line."""
    where = _where(_calls(error))
    hint = _hint(error)
    if isinstance(error, ModuleNotFoundError) and error.name and not hint:
        package = error.name.partition(".")[0]
        # Workers run it, and their user's own process, which does not get the packages of code.requirements.
        problem = f"ModuleNotFoundError: the code needs the package {package}, which is not installed where it runs, on {node()}"
        return f"{problem}{where}; install it there, or add it to code.requirements for workers, or to code.path if it is yours"
    text = _text(error)
    return f"{type(error).__name__}{f': {text}' if text else ''}{where}{hint}"


def _hint(error: BaseException) -> str:
    """What to do about an error of modules that are not found where the author means them to be."""
    if isinstance(error, AttributeError):
        return _shadowed(error.obj)
    if not isinstance(error, ImportError):
        return ""
    if not error.name and "no known parent package" in str(error):
        return (
            "; give the folder that the package is in as code.path, and name the package in the entry point: PACKAGE.MODULE:NAME"
        )
    return _shadowed(sys.modules.get((error.name or "").partition(".")[0]))


def _shadowed(found: object) -> str:
    """A hint for where another module of the same name was imported in place of the author's; empty if that is not so."""
    if not isinstance(found, ModuleType):
        return ""
    theirs = PathFinder.find_spec(found.__name__.partition(".")[0])
    if theirs is None or not theirs.origin or theirs.origin == getattr(found, "__file__", None) or _installed(theirs.origin):
        return ""
    return f"; that is not your {_relative(theirs.origin)}: a module of Python's or of a package has the same name; rename yours"


def _text(error: BaseException) -> str:
    try:
        # The message alone: where it is follows.
        text = (error.msg or "") if isinstance(error, SyntaxError) else str(error)
    except Exception:  # noqa: BLE001 - it is the author's, too
        return "(its text cannot be shown)"
    return cut(" ".join(text.split()) if len(text) < _MAX_LOOKED_AT else text, _MAX_TEXT)


def _calls(error: BaseException) -> list[str]:
    """The last calls in the author's own code, as `file:line in function: source`; else those in packages that it uses."""
    told = _called(traceback.extract_tb(_beyond_ours(error.__traceback__)))
    if isinstance(error, SyntaxError) and error.filename:
        told.append(_call(_relative(error.filename), error.lineno, "<module>", error.text))
    return told[-_MAX_CALLS:]


def _called(trace: traceback.StackSummary, relative: Callable[[str], str] | None = None) -> list[str]:
    frames = [frame for frame in trace if not frame.filename.startswith("<frozen ")]
    own = [frame for frame in frames if not _installed(frame.filename)] or frames
    return [_call((relative or _relative)(frame.filename), frame.lineno, frame.name, frame.line) for frame in own[-_MAX_CALLS:]]


def _where(calls: list[str]) -> str:
    return f" (at {_then(calls)})" if calls else ""


def _then(calls: list[str]) -> str:
    return ", then ".join(calls)


def _is_ours(file: str) -> bool:
    path = Path(file)
    return path.name.startswith(BY_VALUE) or any(path.is_relative_to(folder) for folder in sys.modules["thalweg"].__path__)


def _is(frame: FrameType, ours: str | tuple[str, ...]) -> bool:
    return f"{frame.f_globals.get('__name__', '')}.".startswith(ours)


def _beyond_ours(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback after the calls of this package's, and of those that import modules."""
    while trace and _is(trace.tb_frame, _OURS):
        trace = trace.tb_next
    return trace


def _call(file: str, line: int | None, function: str, source: str | None) -> str:
    where = f"{file.removeprefix(BY_VALUE_FILE)}:{line}" + ("" if function == "<module>" else f" in {function}")
    return f"{where}: {cut(source.strip(), _MAX_LINE)}" if source and source.strip() else where


def _relative(file: str) -> str:
    """The path of a file as its author knows it: below the folder that modules are imported from."""
    path = Path(file)
    for folder in sys.path:
        if folder and path.is_relative_to(folder):
            return str(path.relative_to(folder))
    return str(path)


def _installed(file: str) -> bool:
    # Packages that a job requires are installed in a folder of their own.
    return any(Path(file).is_relative_to(folder) for folder in _INSTALLED) or "site-packages" in Path(file).parts


def _named(found: object) -> str:
    """What a missing name was looked for in."""
    if isinstance(found, ModuleType):
        file = getattr(found, "__file__", None)
        return f"the module {found.__name__}{f' ({_relative(file)})' if file else ''}"
    return str(getattr(found, "__qualname__", type(found).__name__))


def _meant(found: object, name: str) -> str:
    close = closest(name, [known for known in dir(found) if not known.startswith("_")])
    return f"; did you mean {close}?" if close else ""


def cut(text: str, limit: int = _MAX_TEXT) -> str:
    """A text of an author's, or its beginning if it is long."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
