"""Manifests: data of several files as one upload, which names the others.

A manifest is a JSON file: `{"thalweg_manifest": 1, "files": [{"path": …, "size": …, "sha256": …}, …]}`, sorted by path. Paths are
relative, with slashes. The number is that of the format.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

# A pattern: the name of an upload, which is the SHA-256 of its content.
SHA256 = "[0-9a-f]{64}"
# The most files of a manifest: others are a sign that files are too small to be read well.
MAX_FILES = 100_000
# The most bytes of a manifest.
MAX_BYTES = 64 << 20
_FORMAT = 1
# Names in a message.
_MAX_LISTED = 3
_START = b'{"thalweg_manifest":'


class Entry(NamedTuple):
    """A file of a manifest: its path relative to the folder, its size in bytes, and the SHA-256 of its content in hexadecimal."""

    path: str
    size: int
    sha256: str


def written(entries: Iterable[Entry]) -> bytes:
    """The manifest of some files. Raises ValueError if it would not be read."""
    files = [entry._asdict() for entry in sorted(entries)]
    content = json.dumps({"thalweg_manifest": _FORMAT, "files": files}, separators=(",", ":")).encode()
    read(content)
    return content


def is_manifest(start: bytes) -> bool:
    """Whether a file that begins with these bytes, 32 or more of them, is a manifest."""
    return start.startswith(_START)


def read(content: bytes) -> list[Entry]:
    """The files of a manifest. Raises ValueError if it is none, or of a format that this release does not know."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"the manifest has {len(content):,} bytes; at most {MAX_BYTES:,} are read")
    try:
        document = json.loads(content)
        found = document["thalweg_manifest"]
        if found != _FORMAT:
            raise ValueError(f"the manifest has the format {found!r}; this release reads format {_FORMAT}")
        entries = [Entry(each["path"], each["size"], each["sha256"]) for each in document["files"]]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"the manifest is damaged: {error!r}") from error
    if len(entries) > MAX_FILES:
        raise ValueError(f"the manifest has {len(entries):,} files; at most {MAX_FILES:,} are read")
    for entry in entries:
        if not _is_right(entry):
            raise ValueError(f"the manifest is damaged: {str(entry)[:200]}")
    if len({entry.path for entry in entries}) < len(entries):
        raise ValueError("the manifest is damaged: it names a path twice")
    return entries


def empty_classes(folder: Path, names: Iterable[str]) -> str:
    """What is wrong with the folders right below one, each of which is to hold images of a class; empty if nothing is.

    `names` are the relative paths of all images. Folders whose names begin with a dot or an underscore may hold none. Raises
    OSError.
    """
    full = {name.partition("/")[0] for name in names}
    below = (path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))
    if not (empty := sorted({*below} - full)):
        return ""
    listed = ", ".join(map(repr, empty[:_MAX_LISTED])) + (", …" if len(empty) > _MAX_LISTED else "")
    folders, have, them = ("folder", "has", "it") if len(empty) == 1 else ("folders", "have", "them")
    return (
        f"the {folders} {listed} below {str(folder)!r} {have} no images, and each folder is a class; add images, or remove {them}"
    )


def _is_right(entry: Entry) -> bool:
    path, size, sha256 = entry
    if not isinstance(path, str) or not isinstance(sha256, str) or type(size) is not int or size < 0:
        return False
    plain = path and not path.startswith("/") and "\0" not in path and ".." not in PurePosixPath(path).parts
    return bool(plain) and re.fullmatch(SHA256, sha256) is not None
