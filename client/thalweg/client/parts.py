"""Data of several files: those below a folder, or one for each array. Each is uploaded, and a manifest that names them."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from thalweg.client.files import check_folder, check_input, reading
from thalweg.contract import manifests
from thalweg.contract.errors import Violation, invalid

# Files by their paths in the manifest.
Parts = Mapping[str, Path]


def placeholder(number: int) -> str:
    """Stands for the SHA-256 of a file, or of a manifest, that is at hand: one of several, by a number."""
    return f"{number:064x}"


# Stands for that of the job's data.
UNHASHED = placeholder(0)


def parts_of(folder: Path, endings: Sequence[str], field: str) -> Parts:
    """The files below a folder whose names end in one of `endings`, by their relative paths, sorted.

    Names that begin with a dot or an underscore are left out, and so is what is below such folders: programs put there what is
    not data. Raises ThalwegError, which names the field, if there are none, or one cannot be read.
    """
    check_folder(folder, field)
    parts: dict[str, Path] = {}
    with reading(folder, field):
        for place, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith((".", "_"))]
            for name in names:
                if name.lower().endswith(tuple(endings)) and not name.startswith((".", "_")):
                    path = Path(place) / name
                    parts[path.relative_to(folder).as_posix()] = path
                    if len(parts) > manifests.MAX_FILES:
                        problem = f"there are more than {manifests.MAX_FILES:,} files below {folder}; write fewer, larger ones"
                        raise invalid(Violation(field, problem))
    if not parts:
        raise invalid(Violation(field, f"there is no file below {folder} whose name ends in {' or '.join(endings)}"))
    for path in parts.values():
        check_input(path, field)
    return {name: parts[name] for name in sorted(parts)}


def write_manifest(entries: Iterable[manifests.Entry], path: Path) -> Path:
    """Writes the manifest of files to a file, and returns its path."""
    path.write_bytes(manifests.written(entries))
    return path


def entries_of(parts: Parts, sha256s: Mapping[str, str]) -> list[manifests.Entry]:
    """The entries of files in a manifest, with their SHA-256s by their paths in it. Raises OSError."""
    return [manifests.Entry(name, part.stat().st_size, sha256s[name]) for name, part in parts.items()]


def numbered(given: Path | Parts, folder: Path, first: int = 0) -> dict[str, Path]:
    """A file by a number, `first`, in place of its SHA-256, or several by the next ones, and their manifest, which is written to
    `folder`. UNHASHED is the number 0."""
    if isinstance(given, Path):
        return {placeholder(first): given}
    numbers = {name: placeholder(number) for number, name in enumerate(given, first + 1)}
    manifest = write_manifest(entries_of(given, numbers), folder / f"manifest-{first}.json")
    return {placeholder(first): manifest} | {numbers[name]: path for name, path in given.items()}


def total_bytes(files: Path | Parts) -> int:
    """The bytes of a file, or of several. Raises OSError."""
    return sum(path.stat().st_size for path in ([files] if isinstance(files, Path) else files.values()))


def _raise(error: OSError) -> None:
    raise error
