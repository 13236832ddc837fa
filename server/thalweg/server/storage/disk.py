"""What is asked of a disk, step by step, so that the order of the steps can be tried out on a disk that fails between them."""

import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

from thalweg.contract import shared_memory


class Disk(Protocol):
    """A file system. Only what was synchronised is sure to survive a crash; all methods raise OSError if they fail."""

    def write(self, path: Path, pieces: Iterable[bytes | memoryview]) -> None:
        """Makes a file, or overwrites it, piece by piece."""
        ...

    def synchronize(self, path: Path) -> None:
        """Makes a file's content, or a folder's names, durable."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Gives a file another name in the same folder, in place of whatever had it."""
        ...

    def remove(self, path: Path) -> None:
        """Removes a file, if it is there."""
        ...

    def read(self, path: Path) -> memoryview:
        """A file's content where it lies: it takes no memory that the system could not have back."""
        ...

    def names(self, folder: Path) -> list[str]:
        """The names in a folder, in any order; none if it is not there."""
        ...

    def make_folder(self, folder: Path) -> None:
        """Makes a folder, with those above it, durably, if it is not there."""
        ...


class RealDisk:
    """The machine's own."""

    def write(self, path: Path, pieces: Iterable[bytes | memoryview]) -> None:
        with path.open("wb") as file:
            for piece in pieces:
                file.write(piece)

    def synchronize(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def read(self, path: Path) -> memoryview:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                return memoryview(b"")
            return np.frombuffer(
                memoryview(shared_memory.mapped(file.fileno(), size, mmap.PROT_READ)), np.uint8
            ).data.toreadonly()

    def names(self, folder: Path) -> list[str]:
        return [path.name for path in folder.iterdir()] if folder.is_dir() else []

    def make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self.make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        self.synchronize(folder.parent)


def publish(disk: Disk, aside: Path, path: Path) -> None:
    """Gives a finished file its name: first its content is made durable, then the name."""
    disk.synchronize(aside)
    disk.rename(aside, path)
    disk.synchronize(path.parent)
