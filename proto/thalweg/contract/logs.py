"""Log lines as JSON, a log file that can be opened again, and a limit for lines that strangers cause."""

import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from thalweg.contract.text import visible

_MAX_LINES = 10
_SECONDS = 60.0
# What a line is about: these words, each before the value that it stands for, as in "job %s: worker %s joined". A line says "by"
# before the caller who asked for something.
_SUBJECTS = ("job", "worker", "fleet", "shard", "by")
_VALUES = re.compile(rf"(?:\b({'|'.join(_SUBJECTS)}) )?%(?:(%)|[-#0 +]*\d*(?:\.\d+)?[a-zA-Z])")
_REQUEST: ContextVar[str] = ContextVar("request", default="")
_MAX_REQUEST = 64
# A log has names and addresses of users.
_MODE = 0o640


def begin_request(given: str = "") -> None:
    """What the present task logs from now on belongs to a request, with the id that its caller gave it, or a new one."""
    _REQUEST.set(visible(given, _MAX_REQUEST) or secrets.token_hex(8))


def subjects(record: logging.LogRecord) -> dict[str, str]:
    """What a line is about, by kind: the id of a job, the names of a worker, a fleet, a shard, and of who asked for something."""
    found: dict[str, str] = {}
    if not isinstance(record.args, tuple):
        return found
    values = [match for match in _VALUES.finditer(str(record.msg)) if not match[2]]
    for match, value in zip(values, record.args, strict=False):
        if match[1]:
            found.setdefault(match[1], str(value))
    return found


class JsonFormatter(logging.Formatter):
    """Formats each record as one line of JSON, in ASCII: `time` (RFC 3339, UTC), `level`, `logger`, `message`.

    Beside them are, where a line is about any, its `job`, `worker`, `fleet` and `shard`, who asked for it (`by`), the `request`
    in which it was written, and an exception's traceback (`exception`).
    """

    def format(self, record: logging.LogRecord) -> str:
        time_ = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": time_, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        line |= subjects(record)
        if request := _REQUEST.get():
            line["request"] = request
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class LogFile(logging.StreamHandler[TextIO]):
    """Appends to a file, which may be moved away: `reopen` opens one of the same name. Raises OSError if it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(self._open())

    def _open(self) -> TextIO:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        # Names in it may be of any script.
        return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")

    def reopen(self) -> None:
        """Goes on in a file of the same name. Raises OSError if it cannot be opened; then the one before is kept."""
        before = self.setStream(self._open())
        if before:
            before.close()


class Sparingly(logging.Filter):
    """Lets a few lines of a library pass each minute, without tracebacks: strangers can cause any number of them.

    `library` is the name of its loggers. Lines of others pass unchanged.
    """

    def __init__(self, library: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(library)
        self._clock = clock
        self._since = clock()
        self._lines = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written. The last one before lines are left out says so."""
        if not super().filter(record):
            return True
        now = self._clock()
        if now - self._since >= _SECONDS:
            self._since, self._lines = now, 0
        self._lines += 1
        record.exc_info = record.exc_text = None
        if self._lines == _MAX_LINES:
            record.msg, record.args = f"{record.getMessage()} (further lines of {self.name} are suppressed for a minute)", None
        return self._lines <= _MAX_LINES
