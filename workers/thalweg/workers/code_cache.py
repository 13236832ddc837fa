"""Where the code of jobs lies on a node: one folder for each archive, named by its SHA-256, for all workers of a user.

A folder appears whole or not at all, and is for reading only. A worker that uses one holds a shared lock on it; folders that
nobody uses are removed, the one that was used longest ago first, when there are too many or they take too much space.
"""

import fcntl
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from thalweg.contract import folders

_TEMPORARY = "thalweg-code-"
_FOLDER = re.compile(rf".*/(?:[0-9a-f]{{64}}|{_TEMPORARY}[^/]*)/")
# What is kept of folders that nobody uses.
MAX_KEPT_FOLDERS = 32
MAX_KEPT_BYTES = 4 << 30
# A folder that is being filled, or removed.
_ASIDE = ".aside-"
# Other workers may fill and remove folders at the same time.
_ATTEMPTS = 8


def cache_folder() -> Path | None:
    """This user's folder of code; None if the user has no home. THALWEG_CODE_CACHE, if set, is another one."""
    return folders.cache_folder("code", "THALWEG_CODE_CACHE")


def below_folder(file: str) -> str:
    """The path of a file as the code's author knows it, also after the folder, of any worker, is gone."""
    return _FOLDER.sub("", file, count=1)


@contextmanager
def kept(name: str, fill: Callable[[Path], None], is_whole: Callable[[Path], bool]) -> Iterator[Path]:
    """The folder of this name, which stays as it is within the context: the one that is there, if `is_whole`, or a new one.

    `fill` writes into an empty folder. Where the cache cannot be used, because there is no home or another user could change what
    lies there, the folder is a temporary one, which is removed at the end. Raises what `fill` raises, and OSError if there is no
    room at all.
    """
    with ExitStack() as stack:
        cache = cache_folder()
        try:
            if cache is None:
                raise OSError("no home")
            folders.make_private(cache)
            folder = _hold(cache, name, fill, is_whole, stack)
        except OSError:
            folder = _temporary(stack)
            fill(folder)
        else:
            _tidy(cache)
        yield folder


def _temporary(stack: ExitStack) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
    stack.callback(_remove, folder)
    return folder


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


def _tidy(cache: Path) -> None:
    """Removes what nobody uses and is too much, and what workers left that were killed."""
    kept_folders, kept_bytes = 0, 0
    with suppress(OSError):
        folders = [path for path in cache.iterdir() if path.is_dir() and not path.is_symlink()]
        for folder in sorted(folders, key=_last_use, reverse=True):
            with suppress(OSError), _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
                size = sum(path.lstat().st_size for path in folder.rglob("*"))
                if not folder.name.startswith(_ASIDE) and kept_folders < MAX_KEPT_FOLDERS and kept_bytes + size <= MAX_KEPT_BYTES:
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
