"""What sources may use of the machine on which they are read: uploads, and room for files that are made once."""

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from thalweg.learning.data.remote.limits import ALL_ALLOWED, Limits

# Gives the file that was uploaded under a SHA-256.
Fetch = Callable[[str], Path]
# Fills a path, which does not exist yet, with a file or a folder.
Fill = Callable[[Path], None]
# Says what is done and how far it is, for people. Threads may ask.
Progress = Callable[[], str]


class Access(Protocol):
    """The uploads of a job, and a place for what is made from them."""

    @property
    def limits(self) -> Limits:
        """What a job may name of this machine, and of others."""

    def doing(self, what: str, progress: Progress | None = None) -> AbstractContextManager[object]:
        """Around something that may take long, which `what` says for people, and `progress` with how far it is."""

    def upload(self, sha256: str) -> Path:
        """The file that was uploaded under a SHA-256. It may be removed when the data is loaded."""

    def made(self, key: str, fill: Fill) -> Path:
        """The file or folder that `fill` makes, which depends on `key` alone: made once, and kept as long as this object."""

    def faster(self, key: str, size: int, fill: Fill) -> Path | None:
        """The same, of about `size` bytes, from which data is read faster than as it is; None if there is no room for it."""


class Temporary:
    """Keeps nothing for others: what is made lies in a temporary folder, and is removed with this object."""

    # It is in a process of the user's own.
    limits = ALL_ALLOWED

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._made: dict[str, Path] = {}

    def doing(self, _: str, __: Progress | None = None) -> AbstractContextManager[object]:
        """Nobody watches."""
        return nullcontext()

    def upload(self, sha256: str) -> Path:
        """The file that was uploaded under a SHA-256."""
        return self._fetch(sha256)

    def made(self, key: str, fill: Fill) -> Path:
        """The file or folder that `fill` makes."""
        if key not in self._made:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="thalweg-data-")
            path = Path(self._folder.name) / str(len(self._made))
            fill(path)
            self._made[key] = path
        return self._made[key]

    def faster(self, _: str, __: int, ___: Fill) -> None:
        """Nothing: it would serve nobody later."""
