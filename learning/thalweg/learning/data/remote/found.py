"""A file that was found at a URL."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from thalweg.learning.data.errors import DataError


def nothing(_: Path) -> None:
    """Fills nothing: the file is on this machine."""


class Found(NamedTuple):
    """A file: its path relative to the folder that the job names, or its name; its URL, its bytes, and what changes with it.

    It is at `path` on this machine, or `fill` downloads it. `name_in_folder` says that the job names a folder or a pattern.
    """

    name: str
    url: str
    size: int
    tag: str
    path: Path | None = None
    fill: Callable[[Path], None] = nothing
    name_in_folder: bool = False

    @property
    def identity(self) -> tuple[str, str, int, str]:
        """What its content depends on."""
        return self.name, self.url, self.size, self.tag


def is_wanted(name: str, endings: Sequence[str]) -> bool:
    """Whether a file below a folder is data, by its relative path: as for a folder that a client uploads."""
    hidden = any(part.startswith((".", "_")) for part in name.split("/"))
    return not hidden and name.lower().endswith(tuple(endings))


def check_folder(field: str, shown: str, endings: Sequence[str]) -> None:
    """Raises DataError if a source does not read folders."""
    if not endings:
        raise DataError(f"{field}: {shown} is a folder; name a file")


def no_files(shown: str, endings: Sequence[str]) -> str:
    """What is wrong with a folder or a pattern without files."""
    ending = f" whose name ends in {' or '.join(endings)}" if endings else ""
    return f"there is no file at {shown}{ending}"
