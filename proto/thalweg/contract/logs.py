"""Limits log lines that strangers cause."""

import logging
import time
from collections.abc import Callable

_MAX_LINES = 10
_SECONDS = 60.0


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
