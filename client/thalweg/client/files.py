"""Files that users name: checks before reading and writing, and complete writes."""

import errno
import os
import shutil
import stat
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from thalweg.client.errors import LocalError
from thalweg.contract.errors import Violation, invalid

STANDARD_INPUT = Path("-")
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
            kind = kind_of(path.stat().st_mode)
        except (FileNotFoundError, ValueError):
            # A path with a NUL is ValueError.
            raise invalid(Violation(field, f"there is no file {path}")) from None
        if kind:
            raise invalid(Violation(field, f"{path} is {kind}; give the path of a file"))
        path.open("rb").close()


def check_not_pipe(path: Path, field: str, *, named_only: bool = False) -> None:
    """Raises ThalwegError, which names the field, if a path is that of a pipe.

    With `named_only`, pipes without a name are allowed, such as those of a shell's `<(command)`, which can be read once. Reading
    a pipe with a name would wait for a writer, perhaps for ever.
    """
    with suppress(OSError, ValueError):
        if stat.S_ISFIFO(path.stat().st_mode) and not (named_only and is_stream(path)):
            raise invalid(Violation(field, f"{path} is a pipe; give the path of a file"))


def is_stream(path: Path) -> bool:
    """Whether a path is that of standard input, which is `-`, or of a pipe without a name, which has a writer."""
    try:
        return path == STANDARD_INPUT or (stat.S_ISFIFO(path.stat().st_mode) and not _target(path).exists())
    except (OSError, ValueError):
        return False


@contextmanager
def copied(path: Path, field: str) -> Iterator[Path]:
    """A temporary file with the content of a stream. Raises ThalwegError, which names the field, if it cannot be read."""
    name = "standard input" if path == STANDARD_INPUT else path.name
    if path == STANDARD_INPUT and sys.stdin is None:
        raise invalid(Violation(field, "standard input is closed; give the path of a file"))
    with reading(Path(name), field), tempfile.TemporaryDirectory(prefix="thalweg-") as folder:
        copy = Path(folder) / name
        source = sys.stdin.fileno() if path == STANDARD_INPUT else path
        with open(source, "rb", closefd=path != STANDARD_INPUT) as stream, copy.open("wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
        yield copy


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
        return kind_of(target.lstat().st_mode)
    except FileNotFoundError:
        return ""


def kind_of(mode: int) -> str:
    """What has a mode, in words: nothing for a regular file."""
    return next((kind for holds, kind in _KINDS if holds(mode)), "")


def _reason(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    return error.strerror or str(error)
