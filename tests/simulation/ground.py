"""What a town stands on: a storage that outlives its servers, and all that can befall it."""

import errno
import hashlib
import json
import random
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tests.server.test_storage import make_older
from tests.simulation.disk import ImaginaryDisk
from tests.simulation.memory import Memory, MemoryStorage
from thalweg.contract import tensors
from thalweg.server import validation
from thalweg.server.storage.disk import Disk, RealDisk
from thalweg.server.storage.folder import DataFolder
from thalweg.server.storage.interface import Storage
from thalweg.server.storage.thinning import Bounds
from thalweg.v1 import job_pb2

_HEADER = "thalweg.checkpoint"


class Ground(Protocol):
    """A storage between two servers, and under each."""

    # There is no room; nothing can be written for another reason.
    full: bool
    broken: bool

    def open(self, bounds: Bounds) -> Storage:
        """A server starts on what is there."""
        ...

    def crash(self) -> None:
        """The machine goes down."""
        ...

    def crash_within(self, steps: int) -> None:
        """The machine is going down at one of the next steps of a write."""
        ...

    def damage(self, job_id: str) -> None:
        """A bit of a job's newest checkpoint turns."""
        ...

    def age(self) -> None:
        """All that is there is now as an earlier release would have written it."""
        ...


class MemoryGround:
    """Memory, with a disk that forgets what was not synchronised."""

    def __init__(self, random_: random.Random) -> None:
        self.memory = Memory(ImaginaryDisk(random_))
        self._checkpoints: MemoryStorage | None = None

    @property
    def full(self) -> bool:
        return self.memory.disk.full

    @full.setter
    def full(self, full: bool) -> None:
        self.memory.disk.full = full

    @property
    def broken(self) -> bool:
        return self.memory.disk.broken

    @broken.setter
    def broken(self, broken: bool) -> None:
        self.memory.disk.broken = broken

    def open(self, bounds: Bounds) -> Storage:
        self._storage = MemoryStorage(self.memory, bounds)
        return self._storage

    def crash(self) -> None:
        self.memory.crash()

    def crash_within(self, steps: int) -> None:
        self.memory.disk.crash_after = steps

    def damage(self, job_id: str) -> None:
        self.memory.disk.damage(self._storage.checkpoints(job_id).folder)

    def age(self) -> None:
        for row in self.memory.rows.values():
            row.job = _older_job(row.job)
        disk = self.memory.disk
        for path in disk.below(self._storage.folder):
            if path.parent.name == "checkpoints":
                older = _older_checkpoint(path, bytes(disk.read(path)))
                if older:
                    disk.replace(path, *older)


class FolderGround:
    """A folder of this machine. Its disk keeps what was written, whether or not it was synchronised."""

    def __init__(self, folder: Path) -> None:
        self.full = self.broken = False
        self._folder = folder

    def open(self, bounds: Bounds) -> Storage:
        self._storage = _FaultyFolder(self._folder, bounds)
        self._storage.ground = self
        self._storage._disk = _FaultyDisk(self)
        return self._storage

    def crash(self) -> None:
        self._storage.close()

    def crash_within(self, steps: int) -> None:
        """A real disk does not go down."""

    def damage(self, job_id: str) -> None:
        folder = self._storage.checkpoints(job_id).folder
        paths = sorted(folder.glob("*.safetensors"))
        if paths:
            data = bytearray(paths[-1].read_bytes())
            data[-1] ^= 1
            paths[-1].write_bytes(data)

    def age(self) -> None:
        """The database is in the format of the releases that had none, too."""
        database = sqlite3.connect(self._folder / "jobs.sqlite", isolation_level=None)
        make_older(database)
        for job_id, job in database.execute("SELECT id, job FROM jobs").fetchall():
            database.execute("UPDATE jobs SET job = ? WHERE id = ?", (_older_job(job), job_id))
        database.close()
        for path in self._folder.glob("jobs/*/checkpoints/*.safetensors"):
            older = _older_checkpoint(path, path.read_bytes())
            if older:
                path.unlink()
                older[0].write_bytes(older[1])

    def refuse(self) -> None:
        """Raises OSError if nothing can be written now."""
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.broken:
            raise OSError(errno.EIO, "Input/output error")


class _FaultyDisk(RealDisk):
    def __init__(self, ground: FolderGround) -> None:
        self._ground = ground

    def write(self, path: Path, pieces: Iterable[bytes | memoryview]) -> None:
        self._ground.refuse()
        super().write(path, pieces)


class _FaultyFolder(DataFolder):
    """A data folder on a disk that can be full, or broken. It is neither while it is opened."""

    ground: FolderGround | None = None
    _disk: Disk

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if self.ground:
            try:
                self.ground.refuse()
            except OSError as error:
                raise sqlite3.OperationalError("database or disk is full" if self.ground.full else "disk I/O error") from error
        with super()._transaction() as database:
            yield database

    def _delete_records(self, job_id: str) -> list[str]:
        """A full disk has room in reserve for this."""
        ground, full = self.ground, self.ground is not None and self.ground.full
        if ground and full:
            ground.full = False
        try:
            return super()._delete_records(job_id)
        finally:
            if ground and full:
                ground.full = True


def _older_job(job: bytes) -> bytes:
    """A job on record, without the fields that came later and have their defaults."""
    found = job_pb2.Job.FromString(job)
    wanted = job_pb2.JobSpec()
    wanted.CopyFrom(found.spec)
    for name in ("mixed_machines", "threads_per_worker"):
        found.spec.training.ClearField(name)
    found.spec.data.ClearField("order")
    assert validation.complete(found.spec) == validation.complete(wanted)
    return found.SerializeToString()


def _older_checkpoint(path: Path, data: bytes) -> tuple[Path, bytes] | None:
    """The path and the bytes of a checkpoint in format 1, which has no number; None if it is damaged."""
    if hashlib.sha256(data).hexdigest() != path.name[13:77]:
        return None
    found, metadata = tensors.read(memoryview(data))
    header = json.loads(metadata[_HEADER])
    for name in ("format", "release", "machines"):
        header.pop(name, None)
    older = b"".join(tensors.pieces(found, {_HEADER: json.dumps(header)}))
    return path.with_name(f"{path.name[:12]}-{hashlib.sha256(older).hexdigest()}.safetensors"), older
