"""Room in reserve: a full disk takes the deletions that make room."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from thalweg.server.storage.room import lacks_room

T = TypeVar("T")

_log = logging.getLogger(__name__)
# As large as SQLite's log grows before its pages go to the database.
RESERVE_BYTES = 4 << 20
_PROBE_BYTES = 64 << 10


class Reserve:
    """A file in a data folder that only takes room, from the first `fill` on."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "reserve"
        self._probe = folder / "probe"
        self._used = False

    def fill_unless_used(self) -> None:
        """Takes the room, unless it was needed already: what was opened with it needs it further."""
        if not self._used:
            self.fill()

    def fill(self) -> None:
        """Takes the room, if it is there."""
        self._used = False
        try:
            with self._path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
        except OSError as error:
            _log.warning("cannot reserve %d MiB of disk space for deletions: %s", RESERVE_BYTES >> 20, error)

    def use(self, action: Callable[[], T]) -> T:
        """Does something, with the room in reserve if there is no other."""
        try:
            return action()
        except Exception as error:
            if not lacks_room(error):
                raise
            self._path.unlink(missing_ok=True)
            self._used = True
            return action()

    def probe(self) -> None:
        """Raises OSError if files cannot be written now."""
        try:
            with self._probe.open("wb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            self._probe.unlink(missing_ok=True)
