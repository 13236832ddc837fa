"""Files that users name: checks before reading and writing, and complete writes."""

import errno
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from thalweg.client.errors import LocalError
from thalweg.contract.errors import Violation, invalid

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a loop of links"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_output(path: Path, field: str) -> None:
    """Raises ThalwegError, which names the field, if a path cannot be reached or is not that of a regular file."""
    try:
        kind = _kind(_target(path))
    except OSError as error:
        raise invalid(Violation(field, f"cannot write {path}: {_reason(path, error)}")) from error
    if kind:
        raise invalid(Violation(field, f"{path} is {kind}; give the path of a file"))


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary file, and renames it when it is complete. Raises ThalwegError if that fails.

    Links are followed: their target is replaced. Anything but a regular file is not changed.
    """
    target = _target(path)
    # The suffix stays last: some writers choose their format by it.
    aside = target.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        kind = _kind(target)
        if kind:
            raise OSError(errno.EINVAL, f"it is {kind}")
        aside.touch(exist_ok=False)
        write(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(target)
    except OSError as error:
        raise LocalError(f"cannot write {path}: {_reason(path, error)}") from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def check_input(path: Path, field: str) -> None:
    """Raises ThalwegError, which names the field, if a path is not that of a regular file that can be read."""
    with reading(path, field):
        try:
            kind = _kind_of(path.stat().st_mode)
        except (FileNotFoundError, ValueError):
            # A path with a NUL is ValueError.
            raise invalid(Violation(field, f"there is no file {path}")) from None
        if kind:
            raise invalid(Violation(field, f"{path} is {kind}; give the path of a file"))
        path.open("rb").close()


def check_folder(path: Path, field: str) -> None:
    """Raises ThalwegError, which names the field, if a path is not that of a folder that can be entered and listed."""
    with reading(path, field):
        try:
            if not stat.S_ISDIR(path.stat().st_mode):
                raise invalid(Violation(field, f"{path} is no folder"))
        except FileNotFoundError:
            raise invalid(Violation(field, f"there is no folder {path}")) from None
        os.scandir(path).close()
        # Entering is another permission.
        (path / os.pardir).stat()


@contextmanager
def reading(path: Path, field: str) -> Iterator[None]:
    """Turns the system's errors within the context into ThalwegError, which names the field and the path."""
    try:
        yield
    except OSError as error:
        raise invalid(Violation(field, f"cannot read {path}: {error.strerror or error}")) from error


def _target(path: Path) -> Path:
    """The path of the file that links lead to, whether it exists or not."""
    return Path(os.path.realpath(path))


def _kind(target: Path) -> str:
    """What is at a path, in words; empty for a regular file, or if there is nothing. Raises OSError if it cannot be reached."""
    try:
        return _kind_of(target.lstat().st_mode)
    except FileNotFoundError:
        return ""


def _kind_of(mode: int) -> str:
    return next((kind for holds, kind in _KINDS if holds(mode)), "")


def _reason(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    return error.strerror or str(error)
