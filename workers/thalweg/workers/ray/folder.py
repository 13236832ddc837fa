"""The folder in which the fleet's own Ray keeps its logs and sockets."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from thalweg.contract.locks import FileLock, LockedError

# Short, since paths of sockets must be.
_PREFIX = "thalweg-"
# This file marks such a folder. Its lock is held as long as the folder is in use.
_LOCK = "thalweg-ray.lock"
# The places for the folder, in this order, after those in these variables.
_VARIABLES = ("RAY_TMPDIR", "TMPDIR")
_PLACES = ("/tmp", "/dev/shm", "/var/tmp")  # noqa: S108 - a new folder there, which this user alone can open
# Ray writes paths to command lines, which it splits at spaces and encodes as ASCII.
_PLAIN = re.compile(r"[A-Za-z0-9/._+-]+")
# The longest path of a socket in it: ray/session_DATE_TIME_MICROSECONDS_PID/sockets/plasma_store, and a number of two digits.
_SOCKET_CHARACTERS = 70
# The logs of a run take less than a tenth of it.
_ROOM = 16 << 20
# Processes that are being killed may still make files for a moment.
_LOOKS, _LOOK_SECONDS = 40, 0.05


class RayFolderError(Exception):
    """There is no suitable folder; the message says why, and how to name one."""


class RayFolder:
    """A new folder that this user alone can open. It is in use until it is removed, or this process has ended."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def make(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Makes a folder in which Ray can work. Removes those of runs that were killed. Raises RayFolderError."""
        problems = []
        for place in _places(environment):
            _sweep(place)
            try:
                return cls(*_make(place))
            except OSError as error:
                problems.append(f"{place} ({error.strerror or error})")
        raise RayFolderError(
            f"no folder is suitable for its logs and sockets: {', '.join(problems)}; "
            "set RAY_TMPDIR to a folder whose path is short and plain, and in which files can be made"
        )

    def remove(self) -> None:
        """Removes it with its contents. The processes that used it must have been killed."""
        remove(self.path)
        self._lock.release()


def remove(path: Path) -> None:
    """Removes a folder of processes that were killed."""
    for _ in range(_LOOKS):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(_LOOK_SECONDS)


def end_and_remove(path: Path) -> None:
    """Kills this process's group, and starts a process outside the group that removes the folder in which it worked."""
    program = f"from thalweg.workers.ray.folder import remove_after; remove_after({os.getpgrp()}, {str(path)!r})"
    null = subprocess.DEVNULL
    subprocess.Popen(  # noqa: S603 - nothing of it comes from outside
        [sys.executable, "-P", "-c", program], stdin=null, stdout=null, stderr=null, start_new_session=True
    )
    os.killpg(0, signal.SIGKILL)


def remove_after(group: int, path: str) -> None:
    """Removes a folder when a process group that was killed has ended."""
    for _ in range(_LOOKS):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            break
        # Processes that are not waited for remain in their group after they have ended.
        time.sleep(_LOOK_SECONDS)
    remove(Path(path))


def _places(environment: Mapping[str, str]) -> Iterator[Path]:
    given = [environment.get(name, "") for name in _VARIABLES]
    yield from (Path(place) for place in dict.fromkeys([*given, *_PLACES]) if place)


def _make(place: Path) -> tuple[Path, FileLock]:
    """A folder that others cannot see before it is locked. Raises OSError."""
    if not place.is_absolute():
        raise OSError("not an absolute path")
    if not _PLAIN.fullmatch(str(place)):
        raise OSError("not plain ASCII without spaces")
    aside = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=place))
    path = place / aside.name.removeprefix(".")
    try:
        if shutil.disk_usage(aside).free < _ROOM:
            raise OSError("no space left")
        _check_sockets(aside)
        lock = _locked(aside)
        aside.rename(path)
    except BaseException:
        remove(aside)
        raise
    return path, lock


def _check_sockets(folder: Path) -> None:
    """Raises OSError if Ray's sockets cannot be made in a folder."""
    path = folder / ("s" * _SOCKET_CHARACTERS)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.bind(str(path))
    path.unlink()


def _locked(folder: Path) -> FileLock:
    try:
        return FileLock.acquire(folder / _LOCK)
    except LockedError as error:
        raise OSError("locked by another process") from error


def _sweep(place: Path) -> None:
    """Removes this user's folders whose processes have ended without removing them, for example because they were killed."""
    with suppress(OSError):
        for entry in os.scandir(place):
            with suppress(OSError):
                if entry.name.startswith(_PREFIX) and _is_ours(entry) and not FileLock.is_held(Path(entry) / _LOCK):
                    remove(Path(entry))


def _is_ours(entry: "os.DirEntry[str]") -> bool:
    folder = entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
    return folder and (Path(entry) / _LOCK).is_file()
