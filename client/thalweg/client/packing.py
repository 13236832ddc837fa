"""The code of a job as an archive: a zip file that depends on names and contents alone, so that equal code has equal bytes.

Files are stored as they are: compressed bytes would differ between releases of the library that compresses.
"""

import os
import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pathspec import GitIgnoreSpec

from thalweg.client.files import check_folder, check_input, kind_of, reading
from thalweg.contract.code import MAX_ARCHIVE_BYTES, MAX_FILES, is_file_name
from thalweg.contract.errors import Violation, invalid
from thalweg.contract.resources import size_text

_FIELD = "code.path"
_PYTHON, _WHEEL = ".py", ".whl"
_IGNORE = ".gitignore"
_REPOSITORY = ".git"
# Left out, whatever .gitignore says; and any virtual environment, which has a file of the last name.
_NEVER = {"__pycache__", _REPOSITORY, ".hg", ".svn"}
_NEVER_ENDINGS = (".pyc", ".pyo")
_ENVIRONMENT = "pyvenv.cfg"
# The earliest date that a zip file can have, and the mode of a file that all may read.
_DATE = (1980, 1, 1, 0, 0, 0)
_MODE = (stat.S_IFREG | 0o644) << 16
_UNIX = 3


class _Ignore(NamedTuple):
    """A .gitignore file: what it says, and the folder that it is in."""

    folder: Path
    patterns: GitIgnoreSpec


def check_code(path: Path, field: str) -> None:
    """Raises ThalwegError, which names the field, if a path is not that of code: a Python file, a wheel or a folder."""
    if path.is_dir():
        check_folder(path, field)
        return
    check_input(path, field)
    if path.suffix == _PYTHON:
        if not path.stem.isidentifier():
            raise invalid(
                Violation(field, f"{path.name} cannot be imported: {path.stem!r} is not a name in Python; rename the file")
            )
    elif path.suffix != _WHEEL:
        raise invalid(Violation(field, f"{path} is neither a Python file (.py), a folder nor a wheel (.whl)"))


def pack(path: Path, folder: Path) -> Path:
    """The archive of a file of Python code or of a folder, written into `folder`. A wheel is an archive, and is used as it is.

    A folder is packed without what its .gitignore files, and those of the repository that it is in, leave out. Raises
    ThalwegError if something in it cannot be packed, or if it is too large.
    """
    with reading(path, _FIELD):
        if path.is_dir():
            root = path.resolve()
            files = dict(sorted(_limited(_files(root, root, _ignores_above(root)))))
        elif path.suffix == _WHEEL:
            if not zipfile.is_zipfile(path):
                raise _wrong(f"{path} is not a wheel: it is not a zip file")
            _check_size(path, path.stat().st_size)
            return path
        else:
            files = {path.name: path}
        if not any(name.endswith(_PYTHON) for name in files):
            raise _wrong(f"there is no file of Python code (.py) in {path}, or .gitignore leaves all of them out")
        _check_size(path, sum(file.stat().st_size for file in files.values()))
        archive = folder / "code.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
            for name, file in files.items():
                with file.open("rb") as source, packed.open(_entry(name), "w") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    _check_size(path, archive.stat().st_size)
    return archive


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.create_system, entry.external_attr = _UNIX, _MODE
    return entry


def _limited(files: Iterator[tuple[str, Path]]) -> Iterator[tuple[str, Path]]:
    for number, file in enumerate(files):
        if number == MAX_FILES:
            raise _wrong(f"has more than {MAX_FILES:,} files; exclude what the job does not need by {_IGNORE}")
        yield file


def _files(folder: Path, root: Path, ignores: tuple[_Ignore, ...]) -> Iterator[tuple[str, Path]]:
    """The files in a folder below `root` and in its folders, each after its name in the archive. No link leads to the folder."""
    if (folder / _IGNORE).is_file():
        ignores += (_read_ignore(folder),)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = folder / entry.name
        is_folder = entry.is_dir(follow_symlinks=False)
        if entry.name in _NEVER or entry.name.endswith(_NEVER_ENDINGS) or _is_ignored(path, is_folder, ignores):
            continue
        if is_folder:
            if not (path / _ENVIRONMENT).exists():
                yield from _files(path, root, ignores)
            continue
        yield _checked(path, root), path


def _checked(path: Path, root: Path) -> str:
    """The name in the archive of a file. Raises ThalwegError if it cannot be packed."""
    hint = f"; exclude it by {_IGNORE}"
    nowhere = f"{path} is a link to a file that does not exist{hint}"
    try:
        real = path.resolve()
    except RuntimeError:
        # Links that lead to each other, before Python 3.13.
        raise _wrong(nowhere) from None
    if path.is_symlink():
        if not real.is_relative_to(root):
            raise _wrong(f"{path} is a link that leads out of the folder{hint}, or put a copy in its place")
        if real.is_dir():
            raise _wrong(f"{path} is a link to a folder{hint}, or put a copy in its place")
        if not real.exists():
            raise _wrong(nowhere)
    if kind := kind_of(real.lstat().st_mode):
        raise _wrong(f"{path} is {kind}{hint}")
    name = path.relative_to(root).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise _wrong(f"{os.fsencode(path)!r} has a name that is not UTF-8{hint}, or rename it") from None
    if not is_file_name(name):
        raise _wrong(f"{name!r} has a name that archives cannot have{hint}, or rename it")
    return name


def _ignores_above(folder: Path) -> tuple[_Ignore, ...]:
    """The .gitignore files above a folder, as far as the root of the repository that it is in, the uppermost first."""
    above = []
    if (folder / _REPOSITORY).exists():
        return ()
    for parent in folder.parents:
        above.append(parent)
        if (parent / _REPOSITORY).exists():
            return tuple(_read_ignore(each) for each in reversed(above) if (each / _IGNORE).is_file())
    return ()


def _read_ignore(folder: Path) -> _Ignore:
    file = folder / _IGNORE
    with reading(file, _FIELD):
        lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    try:
        return _Ignore(folder, GitIgnoreSpec.from_lines(lines))
    except ValueError as error:
        raise _wrong(f"{file} cannot be read: {error}") from error


def _is_ignored(path: Path, is_folder: bool, ignores: tuple[_Ignore, ...]) -> bool:
    """Whether a file or a folder is left out: the last pattern that fits it decides, of the .gitignore file next to it first."""
    for folder, patterns in reversed(ignores):
        decision = patterns.check_file(path.relative_to(folder).as_posix() + ("/" if is_folder else "")).include
        if decision is not None:
            return decision
    return False


def _check_size(path: Path, size: int) -> None:
    if size > MAX_ARCHIVE_BYTES:
        limit = f"at most {size_text(MAX_ARCHIVE_BYTES)} are allowed"
        raise _wrong(
            f"{path} has {size_text(size)}; {limit}: exclude what the job does not need by {_IGNORE}; data belongs in [data]"
        )


def _wrong(problem: str) -> Exception:
    return invalid(Violation(_FIELD, problem))
