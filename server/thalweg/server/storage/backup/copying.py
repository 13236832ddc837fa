"""Copies of files, with the SHA-256 of what was read. Everything here blocks."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeAlias

from thalweg.contract.manifests import Entry

# Gets the bytes that were copied so far, and those in all, as far as they are known.
Progress: TypeAlias = Callable[[int, int], object]

_PIECE = 1 << 20


class BackupError(Exception):
    """A backup cannot be made or restored; the message says why, and what to do."""


class Copies:
    """Copies files below one folder to another. `files` has those that were copied, by path; `total` is what is to be copied."""

    def __init__(self, source: Path, target: Path, progress: Progress) -> None:
        self.files: dict[str, Entry] = {}
        self.total = 0
        self._source = source
        self._target = target
        self._progress = progress
        self._done = 0
        self._folders = set[Path]()

    def copy(self, path: str) -> Entry:
        """Copies a file, durably, and takes note of it. Raises OSError: FileNotFoundError if it is not there."""
        target = self._target / path
        digest, copied = hashlib.sha256(), 0
        with (self._source / path).open("rb") as file:
            self._make_folder(target.parent)
            with private(target) as copy:
                while piece := file.read(_PIECE):
                    digest.update(piece)
                    copy.write(piece)
                    copied += len(piece)
                    self._done += len(piece)
                    self._progress(self._done, max(self.total, self._done))
                copy.flush()
                os.fsync(copy.fileno())
        entry = self.files[path] = Entry(path, copied, digest.hexdigest())
        return entry

    def copy_lines(self, path: str) -> None:
        """Copies a file to which lines are appended meanwhile: whole lines only. Raises OSError, as `copy`."""
        end = self.copy(path).size
        with (self._target / path).open("r+b") as file:
            while end:
                start = max(0, end - _PIECE)
                file.seek(start)
                if found := file.read(end - start).rfind(b"\n") + 1:
                    end = start + found
                    break
                end = start
            file.truncate(end)
        self.note(path)

    def note(self, path: str) -> None:
        """Takes note of a file that was written by other means."""
        with (self._target / path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
            self.files[path] = Entry(path, file.seek(0, os.SEEK_END), digest)

    def drop(self, path: str) -> None:
        """Removes a copy."""
        self.files.pop(path, None)
        (self._target / path).unlink(missing_ok=True)

    def _make_folder(self, folder: Path) -> None:
        if folder != self._target and folder not in self._folders:
            self._make_folder(folder.parent)
            folder.mkdir(exist_ok=True, mode=0o700)
            self._folders.add(folder)

    def settle(self) -> None:
        """Makes the names of all copies durable."""
        for folder in {self._target, *self._folders}:
            synchronize(folder)


def private(path: Path) -> BinaryIO:
    """An empty file that this user alone can read. Raises OSError."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb")


def synchronize(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
