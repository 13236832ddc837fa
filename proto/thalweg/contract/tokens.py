"""Tokens that servers on loopback make for themselves, as all users of a machine reach them, and how their own user finds them.

Servers also issue tokens to others; these begin with `ISSUED`.

Each running server has a file in a folder of its user, readable by that user alone and locked as long as the server runs.
"""

import errno
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from thalweg.contract.locks import FileLock

# Tokens that a server issued begin with it, so that people, and programs that look for secrets in files, know them.
ISSUED = "thalweg-"
_LOCALHOST = ("127.0.0.1", "::1")


def state_home() -> Path:
    """This user's folder for the state of programs. Raises OSError if there is none."""
    given = os.environ.get("XDG_STATE_HOME")
    if given:
        return Path(given)
    try:
        return Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise OSError(errno.ENOENT, "there is no home folder") from error


def _path(host: str, port: int) -> Path:
    # Machines may share a home folder.
    return state_home() / "thalweg" / "servers" / f"{platform.node()}-{host}-{port}"


@contextmanager
def published(addresses: Iterable[tuple[str, int]], token: str) -> Iterator[None]:
    """Lets this user's processes on this machine find the token of a server at some addresses, as long as the context lasts.

    Raises OSError if the user has no folder for it.
    """
    locks: list[FileLock] = []
    try:
        for host, port in addresses:
            path = _path(host, port)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Under another name until it is locked and written.
            aside = path.with_name(f"{path.name}-{os.getpid()}")
            lock = FileLock.acquire(aside)
            aside.write_text(token)
            lock.path = aside.rename(path)
            locks.append(lock)
        yield
    finally:
        for lock in locks:
            with suppress(OSError):
                lock.path.unlink()
            lock.release()


def find(host: str, port: int) -> str | None:
    """The token of this user's server at an address of this machine. None if no such server runs, or it has none."""
    for name in _LOCALHOST if host == "localhost" else (host,):
        with suppress(OSError):
            path = _path(name, port)
            token = path.read_text()
            try:
                if not FileLock.is_held(path):
                    # The file of a server that was killed.
                    continue
            except OSError:
                # Without locks, it is not known whether the server runs.
                pass
            return token
    return None
