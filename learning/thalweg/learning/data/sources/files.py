"""The files of a source: one, or those that a manifest names."""

from pathlib import Path
from typing import NamedTuple

from thalweg.contract import manifests
from thalweg.learning.data.access import Access
from thalweg.learning.data.errors import DataError


class SourceFile(NamedTuple):
    """A file: its path relative to the folder that the job names, or its name; and where it is on this machine."""

    name: str
    path: Path


def source_files(access: Access, field: str, given: str, sha256: str) -> list[SourceFile]:
    """The files of an upload, sorted by name. `given` is the path that the job's `field` has. Raises DataError."""
    path = access.upload(sha256)
    with path.open("rb") as file:
        if not manifests.is_manifest(file.read(32)):
            return [SourceFile(Path(given).name, path)]
        file.seek(0)
        content = file.read(manifests.MAX_BYTES + 1)
    try:
        entries = manifests.read(content)
    except ValueError as error:
        raise DataError(f"{field}: {error}") from error
    return [SourceFile(entry.path, access.upload(entry.sha256)) for entry in entries]
