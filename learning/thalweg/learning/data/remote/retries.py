"""Downloading in parts, which goes on where a connection broke off, and ends."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from thalweg.learning.errors import NodeError

# So many attempts in a row that bring less than MIN_PROGRESS bytes are enough. The pauses between them double.
ATTEMPTS = 6
MIN_PROGRESS = 1 << 20
_FIRST_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 15.0


class BrokenOffError(Exception):
    """An attempt failed for a reason that may pass, which the message says."""


def download(subject: str, path: Path, size: int, attempt: Callable[[IO[bytes]], None]) -> None:
    """Has `attempt` write a file of `size` bytes from where it ends, again after each BrokenOffError, until it has them all.

    Raises NodeError, which begins with `subject`, if attempts bring nothing more.
    """
    best, pauses = 0, 0
    with path.open("w+b") as file:
        while True:
            reason = "the connection was closed early"
            try:
                attempt(file)
            except BrokenOffError as error:
                reason = str(error)
            if (have := file.seek(0, 2)) == size:
                return
            if have - best >= MIN_PROGRESS:
                best, pauses = have, 0
            pauses += 1
            pause_or_raise(subject, pauses, f"{reason}, after {have:,} of {size:,} bytes")


def pause_or_raise(subject: str, failed: int, reason: str) -> None:
    """Pauses before the next attempt. Raises NodeError after the last one."""
    if failed >= ATTEMPTS:
        problem = f"cannot be read from this node, after {failed} attempts: {reason}"
        raise NodeError(f"{subject} {problem}")
    time.sleep(min(_FIRST_PAUSE_SECONDS * 2 ** (failed - 1), _MAX_PAUSE_SECONDS))
