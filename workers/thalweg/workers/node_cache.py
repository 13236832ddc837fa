"""Folders on a node that all workers of a user share: one for each name, filled once.

A folder appears whole or not at all. A worker that uses one holds a shared lock on it; folders that nobody uses are removed, the
one that was used longest ago first, when there are too many or they take too much space.
"""

import errno
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path

from thalweg.contract import folders

# A folder that is being filled, or removed.
_ASIDE = ".aside-"
# An empty folder whose lock the worker holds that fills the one of that name.
_FILLING = ".filling-"
# Other workers may fill and remove folders at the same time.
_ATTEMPTS = 8
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What a worker does while it waits, for people: a context.
Waiting = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class NodeCache:
    """The cache in a folder, None if the user has none. Of folders that nobody uses, the last `max_bytes` and `max_folders` stay.

    Names of temporary folders, which replace those of a cache that cannot be used, begin with `temporary`.
    """

    folder: Path | None
    temporary: str
    max_bytes: int
    max_folders: float = inf

    @contextmanager
    def kept(
        self,
        name: str,
        fill: Callable[[Path], None],
        is_whole: Callable[[Path], bool],
        waiting: Waiting | None = None,
        *,
        temporary: bool = True,
    ) -> Iterator[Path]:
        """The folder of this name, which stays as it is within the context: the one that is there, if `is_whole`, or a new one.

        `fill` writes into an empty folder. With `waiting`, one worker fills it while others wait, each within that context;
        without, several may fill it at once, and the first wins. Where the cache cannot be used, because there is no home, or
        another user could change what lies there, or the disk is full though nothing is left that nobody uses, the folder is a
        temporary one, which is removed at the end; but not if `temporary` is false. Raises what `fill` raises, and OSError if
        there is no room at all.
        """
        with ExitStack() as stack:
            try:
                if self.folder is None:
                    raise OSError("no home")
                folders.make_private(self.folder)
                folder = self._with_room(self.folder, name, fill, is_whole, waiting, stack)
            except OSError:
                if not temporary:
                    raise
                folder = _temporary(self.temporary, stack)
                fill(folder)
            else:
                _tidy(self.folder, self.max_folders, self.max_bytes)
            yield folder

    def _with_room(
        self,
        cache: Path,
        name: str,
        fill: Callable[[Path], None],
        is_whole: Callable[[Path], bool],
        waiting: Waiting | None,
        stack: ExitStack,
    ) -> Path:
        """A folder of the cache, locked until the stack is closed. If the disk is full, what nobody uses is removed first."""
        alone = nullcontext() if waiting is None else _alone(cache, name, is_whole, waiting)
        with alone:
            try:
                return _hold(cache, name, fill, is_whole, stack)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
            _tidy(cache, 0, 0)
            return _hold(cache, name, fill, is_whole, stack)


def _temporary(prefix: str, stack: ExitStack) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    stack.callback(_remove, folder)
    return folder


@contextmanager
def _alone(cache: Path, name: str, is_whole: Callable[[Path], bool], waiting: Waiting) -> Iterator[None]:
    """Within the context, this worker alone fills the folder of a name. One that is there needs no filling, and no waiting."""
    with ExitStack() as stack:
        gate = cache / f"{_FILLING}{name}"
        while not is_whole(cache / name):
            gate.mkdir(mode=0o700, exist_ok=True)
            with suppress(FileNotFoundError), ExitStack() as attempt:
                try:
                    attempt.enter_context(_lock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB))
                except BlockingIOError:
                    with waiting():
                        attempt.enter_context(_lock(gate, fcntl.LOCK_EX))
                # Removed while it is locked: those that wait for it find that, and look again.
                attempt.callback(gate.rmdir)
                stack.push(attempt.pop_all())
                break
        yield


def _hold(cache: Path, name: str, fill: Callable[[Path], None], is_whole: Callable[[Path], bool], stack: ExitStack) -> Path:
    """A folder of the cache, locked until the stack is closed."""
    folder = cache / name
    for _ in range(_ATTEMPTS):
        with suppress(FileNotFoundError), ExitStack() as attempt:
            attempt.enter_context(_lock(folder, fcntl.LOCK_SH))
            if is_whole(folder):
                # Its last use, by which folders are removed.
                os.utime(folder)
                stack.push(attempt.pop_all())
                return folder
            # Somebody has changed it. Those that have it open keep what they have.
            with suppress(OSError):
                folder.rename(cache / f"{_ASIDE}{uuid.uuid4().hex}")
        aside = cache / f"{_ASIDE}{uuid.uuid4().hex}"
        aside.mkdir(mode=0o700)
        # Locked, so that nobody takes it for one that was left by a worker that was killed.
        with _lock(aside, fcntl.LOCK_EX):
            try:
                fill(aside)
                aside.rename(folder)
            except BaseException as error:
                _remove(aside)
                # Another worker was first.
                if not (isinstance(error, OSError) and folder.is_dir()):
                    raise
    raise OSError(f"{folder} is changed all the time")


@contextmanager
def _lock(folder: Path, kind: int) -> Iterator[None]:
    """Holds the lock of a folder that is there. Raises FileNotFoundError if it is not, BlockingIOError if others hold it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, kind)
        # It may have been moved away meanwhile, and another put in its place.
        if not os.path.samestat(os.fstat(descriptor), folder.lstat()):
            raise FileNotFoundError(folder)
        yield
    finally:
        os.close(descriptor)


def _tidy(cache: Path, max_folders: float, max_bytes: int) -> None:
    """Removes what nobody uses and is too much, and what workers left that were killed."""
    kept_folders, kept_bytes = 0, 0
    with suppress(OSError):
        found = [path for path in cache.iterdir() if path.is_dir() and not path.is_symlink()]
        for folder in sorted(found, key=_last_use, reverse=True):
            with suppress(OSError), _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
                size = sum(path.lstat().st_size for path in folder.rglob("*"))
                left = folder.name.startswith((_ASIDE, _FILLING))
                if not left and kept_folders < max_folders and kept_bytes + size <= max_bytes:
                    kept_folders, kept_bytes = kept_folders + 1, kept_bytes + size
                    continue
                aside = cache / f"{_ASIDE}{uuid.uuid4().hex}"
                folder.rename(aside)
                _remove(aside)


def _last_use(folder: Path) -> float:
    try:
        return folder.lstat().st_mtime
    except OSError:
        return 0.0


def _remove(folder: Path) -> None:
    """Removes a folder whose folders are for reading only. What cannot be removed stays."""
    for path in [folder, *folder.rglob("*")]:
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
