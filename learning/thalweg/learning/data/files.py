"""Files that are kept open, so that they may be removed, and that are checked when they are read."""

import os
import weakref
from pathlib import Path

from thalweg.learning.data.errors import DataError


class OpenFile:
    """An open file. Two threads may read it at once.

    `descriptor` is duplicated, and may be closed afterwards. Messages begin with `subject`.
    """

    def __init__(self, descriptor: int, subject: str) -> None:
        self.descriptor = os.dup(descriptor)
        weakref.finalize(self, os.close, self.descriptor)
        self.subject = subject
        self._state = self._now()

    @classmethod
    def at(cls, path: Path, subject: str) -> "OpenFile":
        """The file at a path. Raises OSError."""
        with path.open("rb") as file:
            return cls(file.fileno(), subject)

    @property
    def size(self) -> int:
        """Its bytes."""
        return self._state[0]

    def read(self, at: int, room: memoryview) -> None:
        """Fills `room` with the bytes from a position on. Raises DataError if the file has become shorter, and OSError."""
        while len(room):
            done = os.preadv(self.descriptor, [room], at)
            if not done:
                raise self._changed()
            room, at = room[done:], at + done

    def check(self) -> None:
        """Raises DataError if the file has changed since it was opened."""
        if self._now() != self._state:
            raise self._changed()

    def _now(self) -> tuple[int, int]:
        found = os.fstat(self.descriptor)
        return found.st_size, found.st_mtime_ns

    def _changed(self) -> DataError:
        return DataError(f"{self.subject} has changed while it was used; restore the file, or submit the job again")
