"""What the code of a job's author prints, which must not fill a disk."""

import io
import sys
import threading
import time
from typing import TextIO

# What code may print, in characters, in as many seconds.
_MAX_PRINTED = 1 << 16
_SECONDS = 60.0


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


output = _Output()
