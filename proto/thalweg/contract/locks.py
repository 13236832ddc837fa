"""Locks between processes. The system releases a lock when the process that holds it ends, in any way."""

import errno
import fcntl
import os
from pathlib import Path
from typing import Self
from weakref import WeakSet

_HELD = (errno.EWOULDBLOCK, errno.EACCES)


class LockedError(Exception):
    """The lock is held already, in this process or in another one."""


class FileLock:
    """A file that has one holder at a time."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor
        _locks.add(self)

    @classmethod
    def acquire(cls, path: Path) -> Self:
        """Creates the file, if it does not exist, and takes its lock, without waiting.

        Raises LockedError if it is held, and OSError if the file cannot be opened or its file system has no locks.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _HELD:
                raise LockedError(path) from None
            raise OSError(error.errno, f"its file system does not support file locks ({error.strerror})", str(path)) from error
        return cls(path, descriptor)

    @staticmethod
    def is_held(path: Path) -> bool:
        """Whether the lock of a file, which need not exist, is held. Raises OSError if the file cannot be read."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                return True
            raise
        finally:
            os.close(descriptor)
        return False

    def release(self) -> None:
        """Releases the lock, also if a forked process has inherited it."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self._drop()

    def _drop(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


# Those of this process.
_locks: "WeakSet[FileLock]" = WeakSet()


def _forked() -> None:
    for lock in list(_locks):
        lock._drop()


# A lock stays held as long as any process has its file open. A forked process is not the holder, and may live longer.
os.register_at_fork(after_in_child=_forked)
