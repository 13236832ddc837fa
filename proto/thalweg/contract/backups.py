"""Backups of data folders: what tells one from a data folder, and the manifest that names its files.

A backup is a folder with the files of a data folder and a manifest, `backup.json`, which is written last. A folder that is being
written, by a backup or by a restoration, has a file `incomplete` until it is whole.
"""

import json
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from thalweg.contract.manifests import SHA256, Entry

MANIFEST = "backup.json"
INCOMPLETE = "incomplete"
FORMAT = 1


class Manifest(NamedTuple):
    """What a backup is of: the release that made it, the format of its data, its number of jobs, when it began and ended (in ISO
    8601), and its files.
    """

    release: str
    data_format: int
    jobs: int
    began: str
    ended: str
    files: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(entry.size for entry in self.files)


def is_backup(folder: Path) -> bool:
    """Whether a folder is a whole backup."""
    return (folder / MANIFEST).is_file()


def is_incomplete(folder: Path) -> bool:
    """Whether the writing of a folder has not ended."""
    return (folder / INCOMPLETE).is_file()


def written(manifest: Manifest) -> bytes:
    """The content of `backup.json`."""
    document = {"thalweg_backup": FORMAT} | manifest._asdict() | {"files": [entry._asdict() for entry in manifest.files]}
    return json.dumps(document, indent=1).encode()


def read(content: bytes) -> Manifest:
    """The manifest in a file. Raises ValueError if it is none, or of a format that this release does not know."""
    try:
        document = json.loads(content)
        found = document.pop("thalweg_backup")
        if not isinstance(found, int) or found > FORMAT:
            problem = f"it has the format {found!r}, and this release reads formats up to {FORMAT}; use a newer release"
            raise ValueError(problem)
        files = tuple(Entry(each["path"], each["size"], each["sha256"]) for each in document.pop("files"))
        manifest = Manifest(**document, files=files)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is damaged: {error!r}") from error
    for path, _, sha256 in files:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or not re.fullmatch(SHA256, sha256):
            raise ValueError(f"it is damaged: {path[:200]!r} is not the path of a file of a backup")
    return manifest
