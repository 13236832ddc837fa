"""The twin of a data folder: what a server keeps, in memory, without SQLite and without files of the machine."""

import hashlib
import random
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load

from tests.simulation.disk import ImaginaryDisk
from thalweg.contract.layout import Slab
from thalweg.contract.manifests import SHA256
from thalweg.server.deciding.allotment.closures import Closed
from thalweg.server.storage.job_files import JobFiles
from thalweg.server.storage.thinning import BOUNDS, NOTHING, Bounds, Merged, Tally, Thinning
from thalweg.server.storage.uses import uploads_of
from thalweg.v1 import job_pb2, training_service_pb2

_FOLDER = Path("/imaginary")
_UNMERGED = Merged(0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0)


@dataclass(eq=False)
class _Row:
    """One job on record, with its events."""

    number: int
    request_id: str
    job: bytes
    uploads: set[str]
    events: dict[int, bytes] = field(default_factory=dict)
    tally: Tally = NOTHING
    merged: Merged = _UNMERGED
    deaths: int | None = None
    shared: bool = False
    kept: bool = False
    result_removed: float | None = None

    def read(self) -> job_pb2.Job:
        """The job as it is on record."""
        job = job_pb2.Job.FromString(self.job)
        job.shared, job.kept = self.shared, self.kept
        job.ClearField("result_removed_time")
        if self.result_removed is not None:
            job.result_removed_time.FromMicroseconds(int(self.result_removed * 1e6))
        return job


@dataclass(eq=False)
class Memory:
    """What is there when no server runs: it outlives the storages that are opened on it, and crashes.

    What is in `rows` and `uploads` is durable; the files of jobs lie on a disk that forgets what was not synchronised.
    """

    disk: ImaginaryDisk = field(default_factory=lambda: ImaginaryDisk(random.Random(0)))
    rows: dict[str, _Row] = field(default_factory=dict)
    last_number: int = 0
    clean_stop: bool = False
    cordons: dict[tuple[str, str], Closed] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    # Uploads and their owners.
    owners: set[tuple[str, str]] = field(default_factory=set)
    # What was received of other uploads.
    parts: dict[str, bytes] = field(default_factory=dict)
    # Uploads, and parts of them, that came long ago.
    old: set[str] = field(default_factory=set)

    def crash(self) -> None:
        """The machine goes down and comes back."""
        self.disk.crash()


class MemoryUploads:
    """The uploads in memory."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._parts = memory.parts
        for name in [name for name in self._parts if not re.fullmatch(SHA256, name)]:
            del self._parts[name]

    def whole(self, sha256: str) -> bool:
        self._memory.old.discard(sha256)
        return hashlib.sha256(self._memory.uploads.get(sha256, b"")).hexdigest() == sha256 and self.exists(sha256)

    def exists(self, sha256: str) -> bool:
        return sha256 in self._memory.uploads

    def received(self, name: str) -> int:
        return len(self._parts.get(name, b""))

    def receive(self, name: str, data: bytes | memoryview) -> None:
        self._memory.disk.write(_FOLDER / "uploads" / f"{name}.part", [data])
        self._parts[name] = self._parts.get(name, b"") + bytes(data)

    def finish(self, name: str, sha256: str) -> bool:
        if hashlib.sha256(self._parts[name]).hexdigest() != sha256:
            return False
        self._memory.disk.step()
        self._memory.uploads[sha256] = self._parts.pop(name)
        return True

    def discard(self, name: str) -> None:
        self._parts.pop(name, None)

    def read(self, sha256: str, start: int, size: int) -> bytes | None:
        content = self._memory.uploads.get(sha256)
        return None if content is None else content[start : start + size]

    def in_place(self, _: str) -> None:
        """No other process can read it."""


class MemoryStorage(JobFiles):
    """A storage that is open on a memory. Of several, the last one counts."""

    def __init__(self, memory: Memory, bounds: Bounds = BOUNDS) -> None:
        super().__init__(_FOLDER, memory.disk, MemoryUploads(memory))
        self._memory = memory
        self._rows = memory.rows
        self._thinning = Thinning(_Merging(memory.rows), bounds)
        self.written_by = version("thalweg")
        # Files of jobs whose deletion a crash undid on the disk.
        for path in memory.disk.below(_FOLDER / "jobs"):
            if path.relative_to(_FOLDER).parts[1] not in self._rows:
                memory.disk.forget(self.job_folder(path.relative_to(_FOLDER).parts[1]))
        for job_id, row in self._rows.items():
            if row.result_removed is not None:
                self.remove_result(job_id)
        self.remove_unused_uploads()

    def close(self) -> None:
        """Nothing is open."""

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What changes the record: the machine may go down just before it and just after it."""
        if self._memory.disk.full:
            raise sqlite3.OperationalError("database or disk is full")
        try:
            self._memory.disk.step()
        except OSError as error:
            raise sqlite3.OperationalError("disk I/O error") from error
        yield
        # What is broken now does not undo it.
        with suppress(OSError):
            self._memory.disk.step()

    def _row(self, job_id: str) -> _Row:
        if job_id not in self._rows:
            raise sqlite3.IntegrityError("FOREIGN KEY constraint failed")
        return self._rows[job_id]

    def insert_job(self, job: job_pb2.Job, request_id: str, name: str, parts: Sequence[str] = ()) -> job_pb2.Job | None:
        with self._writing():
            known = self.job_of_request(request_id)
            if known:
                return known
            number = self._memory.last_number + 1
            if not job.id:
                while f"{name}-{number}" in self._rows:
                    number += 1
                job.id = f"{name}-{number}"
            elif job.id in self._rows:
                return None
            self._memory.last_number = number
            uploads = {*uploads_of(job.spec), *parts}
            self._rows[job.id] = _Row(number, request_id, job.SerializeToString(), uploads, shared=job.shared)
        return job

    def job_of_request(self, request_id: str) -> job_pb2.Job | None:
        found = [row for row in self._rows.values() if request_id and row.request_id == request_id]
        return found[0].read() if found else None

    def job(self, job_id: str) -> job_pb2.Job | None:
        row = self._rows.get(job_id)
        return row.read() if row else None

    def jobs(self, limit: int, before: int | None = None, reader: str | None = None) -> list[tuple[int, job_pb2.Job]]:
        rows = sorted((row for row in self._rows.values() if before is None or row.number < before), key=lambda row: -row.number)
        found = [(row.number, row.read()) for row in rows]
        return [(number, job) for number, job in found if reader is None or job.owner == reader or job.shared][:limit]

    def share_job(self, job_id: str, shared: bool) -> None:
        with self._writing():
            self._row(job_id).shared = shared

    def keep_job(self, job_id: str, kept: bool) -> None:
        with self._writing():
            self._row(job_id).kept = kept

    def results(self, limit: int, before: int | None = None) -> list[tuple[int, job_pb2.Job]]:
        found = self.jobs(len(self._rows), before)
        return [(number, job) for number, job in found if not job.kept and not job.HasField("result_removed_time")][:limit]

    def note_result_removed(self, job_id: str, time: float) -> None:
        with self._writing():
            row = self._row(job_id)
            row.result_removed = time
            if row.read().state == job_pb2.JOB_STATE_SUCCEEDED:
                row.uploads.clear()

    def own_upload(self, sha256: str, owner: str) -> None:
        with self._writing():
            self._memory.owners.add((sha256, owner))

    def is_readable(self, sha256: str, reader: str) -> bool:
        jobs = [row.read() for row in self._rows.values() if sha256 in row.uploads]
        return (sha256, reader) in self._memory.owners or any(job.owner == reader or job.shared for job in jobs)

    def is_used_by(self, sha256: str, job_id: str) -> bool:
        row = self._rows.get(job_id)
        return row is not None and sha256 in row.uploads

    def delete_job(self, job_id: str) -> None:
        if job_id not in self._rows:
            return
        # With the room in reserve, if there is no other.
        self._memory.disk.step()
        row = self._rows.pop(job_id)
        self._memory.disk.forget(self.job_folder(job_id))
        wanted = {sha256 for sha256, owner in self._memory.owners if owner != row.read().owner}
        for sha256 in row.uploads - self._uploads_used() - wanted:
            self._memory.uploads.pop(sha256, None)

    def _uploads_used(self) -> set[str]:
        return {sha256 for row in self._rows.values() for sha256 in row.uploads}

    def remove_unused_uploads(self) -> None:
        for sha256 in self._memory.old - self._uploads_used():
            self._memory.uploads.pop(sha256, None)
        for sha256 in self._memory.old:
            self._memory.parts.pop(sha256, None)

    def count_deaths(self, running: Iterable[str]) -> dict[str, int]:
        with self._writing():
            if self._memory.clean_stop:
                self._memory.clean_stop = False
                for row in self._rows.values():
                    row.deaths = None
                return {}
            for job_id in running:
                row = self._row(job_id)
                row.deaths = (row.deaths or 0) + 1
        return {job_id: row.deaths for job_id, row in self._rows.items() if row.deaths is not None}

    def forget_deaths(self, job_id: str) -> None:
        with self._writing():
            if job_id in self._rows:
                self._rows[job_id].deaths = self._rows[job_id].result_removed = None

    def note_progress(self, job_id: str) -> None:
        with self._writing():
            self._row(job_id).deaths = -1

    def stop_cleanly(self) -> None:
        with self._writing():
            self._memory.clean_stop = True

    def cordons(self) -> list[Closed]:
        return [self._memory.cordons[place] for place in sorted(self._memory.cordons)]

    def put_cordon(self, closed: Closed) -> None:
        with self._writing():
            self._memory.cordons[closed.place] = closed

    def remove_cordon(self, fleet: str, node: str) -> None:
        with self._writing():
            self._memory.cordons.pop((fleet, node), None)

    def record(self, events: Iterable[tuple[str, training_service_pb2.Event]]) -> None:
        with self._writing():
            events = list(events)
            taken = set[tuple[str, int]]()
            for job_id, event in events:
                if (job_id, event.sequence) in taken or event.sequence in self._row(job_id).events:
                    raise sqlite3.IntegrityError("UNIQUE constraint failed: events.job_id, events.sequence")
                taken.add((job_id, event.sequence))
            for job_id, event in events:
                row, content = self._rows[job_id], event.SerializeToString()
                row.events[event.sequence] = content
                row.tally = row.tally.plus(event, len(content))
                if event.HasField("state_changed"):
                    row.job = event.state_changed.job.SerializeToString()

    def events(self, job_id: str, after: int, limit: int) -> list[training_service_pb2.Event]:
        found = sorted(number for number in self._events(job_id) if number > after)[:limit]
        return [training_service_pb2.Event.FromString(self._events(job_id)[number]) for number in found]

    def _events(self, job_id: str) -> dict[int, bytes]:
        return self._rows[job_id].events if job_id in self._rows else {}

    def last_sequence(self, job_id: str) -> int:
        return max(self._events(job_id), default=0)

    def told(self, job_id: str) -> tuple[int, int]:
        tally = self._rows[job_id].tally if job_id in self._rows else NOTHING
        return tally.steps, tally.epochs

    def thin(self) -> bool:
        with self._writing():
            return self._thinning.step()

    def check_initial(self, sha256: str, dtype: str) -> None:
        for name, tensor in self._tensors(sha256).items():
            if tensor.dtype != dtype:
                raise ValueError(f"{name!r} is of type {tensor.dtype}, but model.dtype is {dtype}")

    def initial(self, sha256: str) -> dict[str, Slab]:
        if not self.uploads.whole(sha256):
            raise ValueError("is damaged: its SHA-256 differs from that of the upload")
        return self._tensors(sha256)

    def _tensors(self, sha256: str) -> dict[str, Slab]:
        try:
            return load(self._memory.uploads[sha256])
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"is not a whole safetensors file: {error}") from error

    def probe(self) -> None:
        with self._writing():
            pass

    def shrink(self) -> bool:
        return False

    def empty_bin(self) -> None:
        """Nothing is put aside."""


class _Merging:
    """The record as thinning sees it."""

    def __init__(self, rows: dict[str, _Row]) -> None:
        self._rows = rows

    def grown(self, size: int) -> tuple[str, Merged] | None:
        return next(((job_id, row.merged) for job_id, row in self._rows.items() if row.tally.size > size), None)

    def newest(self, job_id: str) -> Iterator[tuple[int, int]]:
        for number in sorted(self._rows[job_id].events, reverse=True):
            yield number, len(self._rows[job_id].events[number])

    def older(self, job_id: str, after: int, before: int, limit: int) -> Iterator[training_service_pb2.Event]:
        for number in sorted(number for number in self._rows[job_id].events if after < number < before)[:limit]:
            yield training_service_pb2.Event.FromString(self._rows[job_id].events[number])

    def replace(self, job_id: str, removed: Sequence[int], changed: Sequence[training_service_pb2.Event]) -> None:
        events = self._rows[job_id].events
        for number in removed:
            del events[number]
        for event in changed:
            events[event.sequence] = event.SerializeToString()

    def set_merged(self, job_id: str, merged: Merged) -> None:
        self._rows[job_id].merged = merged

    def set_fresh(self, job_id: str, size: int) -> None:
        row = self._rows[job_id]
        row.tally = row.tally._replace(size=size)
