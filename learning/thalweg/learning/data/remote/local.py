"""`file://`: files on the node, read where they are."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from thalweg.contract.manifests import empty_classes
from thalweg.learning.data.errors import AbsentError, DataError
from thalweg.learning.data.remote.found import Found, check_folder, is_wanted, no_files
from thalweg.learning.data.remote.limits import Limits
from thalweg.learning.errors import NodeError

# What the system says of a path that the job may have got wrong.
_ABSENT = (FileNotFoundError, NotADirectoryError, PermissionError)


def find(field: str, url: str, endings: Sequence[str], limits: Limits) -> list[Found]:
    """The file, the files of a folder or those of a pattern, with their sizes and times of modification.

    Raises NodeError if a file is not in a folder that is allowed, also by a link, and AbsentError if this node does not have it.
    """
    given = Path(unquote(urlsplit(url).path))
    pattern = glob.has_magic(str(given)) and not given.exists()
    # What is outside is not looked at, so that a message says nothing of it.
    limits.check_path(field, _resolved(_fixed(given) if pattern else given), url)
    try:
        if pattern:
            below = _fixed(given)
            names = [path for path in glob.iglob(str(given), recursive=True) if Path(path).is_file()]  # noqa: PTH207
            found = [os.path.relpath(name, below) for name in names]
        elif given.is_dir():
            check_folder(field, url, endings)
            below, found = given, [name for name in _names(given) if is_wanted(name, endings)]
        else:
            return [_file(field, given, given.name, url, limits)]
        if not found:
            problem = f"{no_files(url, () if pattern else endings)} on this node"
            raise AbsentError(f"{field}: {problem}; workers read it at that path on each node")
        return [_file(field, below / name, name, url, limits)._replace(name_in_folder=True) for name in sorted(found)]
    except OSError as error:
        problem = f"cannot be read on this node: {error.strerror or error}"
        kind = AbsentError if isinstance(error, _ABSENT) else NodeError
        raise kind(f"{field}: {url} {problem}; workers read it at that path on each node") from error


def check_classes(field: str, url: str, files: Sequence[Found]) -> None:
    """Raises DataError if a folder has folders without any of its files, where each is to hold the images of a class."""
    given = Path(unquote(urlsplit(url).path))
    if given.is_dir() and (wrong := empty_classes(given, [file.name for file in files])):
        raise DataError(f"{field}: {wrong}")


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _fixed(pattern: Path) -> Path:
    """The folder before the first part with a wildcard."""
    for folder in reversed(pattern.parents):
        if glob.has_magic(str(folder)):
            return folder.parent
    return pattern.parent


def _names(folder: Path) -> Iterator[str]:
    for place, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        yield from (os.path.relpath(Path(place) / name, folder) for name in names)


def _file(field: str, path: Path, name: str, url: str, limits: Limits) -> Found:
    real = _resolved(path)
    limits.check_path(field, real, f"{url}: {name}" if name != path.name else url)
    state = real.stat()
    if not real.is_file():
        raise DataError(f"{field}: {path} is not a file")
    with real.open("rb"):
        return Found(name, f"file://{path}", state.st_size, str(state.st_mtime_ns), path=real)


def _raise(error: OSError) -> None:
    raise error
