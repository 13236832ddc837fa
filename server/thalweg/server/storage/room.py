"""Room on the disk of the data folder: what cannot be written now is kept, tried again, and reported until it is written."""

import asyncio
import errno
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

from thalweg.contract.errors import ThalwegError

T = TypeVar("T")

_log = logging.getLogger(__name__)
# How often a write that found no room is tried again.
RETRY_SECONDS = 1.0
# SQLite's primary result codes for a disk that takes nothing now, and may later.
_WAIT_CODES = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PROTOCOL,
    }
)


def lacks_room(error: BaseException) -> bool:
    """Whether a write failed for a reason outside the server, such as a full disk, and may succeed later."""
    if isinstance(error, sqlite3.OperationalError):
        return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_FULL) & 0xFF in _WAIT_CODES
    return isinstance(error, OSError)


def is_full(error: BaseException) -> bool:
    """Whether a write failed because the disk is full, or the user's share of it."""
    if isinstance(error, sqlite3.OperationalError):
        return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_FULL) & 0xFF == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class Shortage(NamedTuple):
    """Why writes wait, and since when (UTC)."""

    folder: Path
    problem: str
    since: datetime

    def __str__(self) -> str:
        return f"{self.folder} has not been writable since {self.since:%Y-%m-%d %H:%M:%S} UTC ({self.problem})"

    def error(self, consequence: str) -> ThalwegError:
        """The error of a call that needs room. `consequence` says what becomes of what the call asked for."""
        since = f"{self.since:%Y-%m-%d %H:%M:%S} UTC"
        metadata = {"folder": str(self.folder), "problem": self.problem, "since": since, "consequence": consequence}
        return ThalwegError("STORAGE_FULL", metadata)


class Room:
    """Who waits for room in a data folder. Belongs to the server's event loop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._waiting: dict[object, Shortage] = {}
        # Set when a write begins or ceases to wait; another one takes its place then.
        self.change = asyncio.Event()

    @property
    def shortage(self) -> Shortage | None:
        """The longest wait for room; None while nothing waits."""
        return next(iter(self._waiting.values()), None)

    def refusal(self, error: Exception, consequence: str) -> ThalwegError:
        """The error of a call whose write failed. `consequence` says what becomes of what the call asked for."""
        if is_full(error):
            return Shortage(self.folder, str(error), datetime.now(UTC)).error(consequence)
        return ThalwegError("STORAGE_FAILED", {"problem": str(error)})

    async def write(
        self,
        attempt: Callable[[], Awaitable[T]],
        tell: Callable[[Shortage | None], object] = lambda _: None,
        also: tuple[type[Exception], ...] = (),
    ) -> T:
        """Calls `attempt` until it finds room, or until the caller's task is cancelled. `also` are further errors to wait for.

        `tell` gets the shortage when the write begins to wait, and None when it ceases. Raises what `attempt` raises for other
        reasons.
        """
        me = object()
        try:
            while True:
                try:
                    return await attempt()
                except Exception as error:
                    if not (lacks_room(error) or isinstance(error, also)):
                        raise
                    self._wait(me, str(error) or type(error).__name__, tell)
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            if self._waiting.pop(me, None):
                tell(None)
                self._notify()

    def _wait(self, me: object, problem: str, tell: Callable[[Shortage | None], object]) -> None:
        before = self._waiting.get(me)
        if before and before.problem == problem:
            return
        shortage = Shortage(self.folder, problem, before.since if before else datetime.now(UTC))
        _log.error("%s; trying again every %g s", shortage, RETRY_SECONDS)
        self._waiting[me] = shortage
        tell(shortage)
        self._notify()

    def _notify(self) -> None:
        change, self.change = self.change, asyncio.Event()
        change.set()
