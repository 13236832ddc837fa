"""What a storage lies on: a folder of this machine, or memory. The same tests run on each (see `test_storages.py`)."""

import errno
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from tests.simulation.memory import Memory, MemoryStorage
from thalweg.server.storage.disk import RealDisk
from thalweg.server.storage.folder import DataFolder
from thalweg.server.storage.interface import Storage
from thalweg.server.storage.thinning import Bounds


class Backend(Protocol):
    """Where one server after another keeps what it keeps."""

    def open(self) -> Storage:
        """A server starts."""
        ...

    def crash(self) -> None:
        """The server that was started last dies."""
        ...

    def fill(self, full: bool) -> None:
        """The disk becomes full, or has room again."""
        ...

    def damage(self, storage: Storage, job_id: str) -> None:
        """Turns a bit of a job's newest checkpoint."""
        ...

    def damage_upload(self, sha256: str) -> None:
        """Changes the content of an upload."""
        ...

    def grow_old(self, sha256: str) -> None:
        """Lets an upload, or what was received of it, have come long ago."""
        ...


class _FullDisk(RealDisk):
    def write(self, path: Path, pieces: Iterable[bytes | memoryview]) -> None:
        super().write(path, [next(iter(pieces))[:5]])
        raise OSError(errno.ENOSPC, "no space left on device", str(path))


class FolderBackend:
    """A folder of this machine."""

    def __init__(self, folder: Path, bounds: Bounds) -> None:
        self._folder = folder
        self._bounds = bounds

    def open(self) -> Storage:
        self._storage = DataFolder(self._folder, self._bounds)
        return self._storage

    def crash(self) -> None:
        # Nothing more is written, and nothing is closed: what SQLite has not committed is rolled back by whoever comes next.
        pass

    def fill(self, full: bool) -> None:
        database = self._storage._database
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count = {pages if full else 1 << 30}")
        self._storage._disk = _FullDisk() if full else RealDisk()

    def damage(self, storage: Storage, job_id: str) -> None:
        path = max(storage.checkpoints(job_id).folder.iterdir())
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

    def damage_upload(self, sha256: str) -> None:
        path = self._folder / "uploads" / sha256
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")

    def grow_old(self, sha256: str) -> None:
        long_ago = time.time() - 2 * 24 * 3600
        for path in (self._folder / "uploads").glob(f"{sha256}*"):
            os.utime(path, (long_ago, long_ago))


class MemoryBackend:
    """Memory."""

    def __init__(self, bounds: Bounds) -> None:
        self._memory = Memory()
        self._bounds = bounds

    def open(self) -> Storage:
        return MemoryStorage(self._memory, self._bounds)

    def crash(self) -> None:
        self._memory.crash()

    def fill(self, full: bool) -> None:
        self._memory.disk.full = full

    def damage(self, storage: Storage, job_id: str) -> None:
        self._memory.disk.damage(storage.checkpoints(job_id).folder)

    def damage_upload(self, sha256: str) -> None:
        self._memory.uploads[sha256] = self._memory.uploads[sha256][:-1] + b"\xff"

    def grow_old(self, sha256: str) -> None:
        self._memory.old.add(sha256)
