"""Makes a backup of a data folder, also while a server runs on it, which takes no notice. Everything here blocks.

Files are immutable once they have their names, and the record of jobs is one database, so what matters is the order:

1. Uploads, which are large: most of them are there long before and after.
2. Checkpoints. A checkpoint becomes durable only after the events before it, so that no checkpoint is ahead of a later copy of
   the record. An older one does no harm: its job takes the same steps again.
3. The record: a copy of the database at one moment.
4. What ended jobs of that record have left, and uploads that have come meanwhile. A job leaves its files before its end is
   recorded.
5. The record is read again. If a job that had ended was changed meanwhile (resumed, say), its files may be later than the copied
   record, and 2 to 5 happen again: little is left to be copied then. Jobs that were deleted meanwhile are removed from the copy.
"""

import os
import re
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from thalweg.contract import backups
from thalweg.contract.backups import INCOMPLETE, MANIFEST, Manifest
from thalweg.contract.locks import FileLock, LockedError
from thalweg.contract.manifests import SHA256
from thalweg.contract.states import ENDED
from thalweg.server.settings import KEPT_CHECKPOINTS
from thalweg.server.storage.backup.copying import BackupError, Copies, Progress, private, synchronize
from thalweg.server.storage.checkpoints import CHECKPOINT_NAME
from thalweg.server.storage.tables import schema
from thalweg.server.storage.tables.database import FILE
from thalweg.v1 import job_pb2

# What belongs to a running server or to this machine, and what takes room only.
_LEFT_OUT = {"lock", "address", "token", "server-token", "runs", "deleted", "reserve", "probe", INCOMPLETE}
_FOLDERS = {"jobs", "uploads"}
# How often ended jobs may be changed while they are copied.
_ROUNDS = 10


class Made(NamedTuple):
    """A backup that was made. `problems` are files of the data folder that are damaged, and are not in it."""

    manifest: Manifest
    problems: tuple[str, ...]


def make(folder: Path, target: Path, progress: Progress = lambda _, __: None) -> Made:
    """Makes a backup of a data folder at `target`, where nothing may be. Until it is whole, it is `target` with `.partial`.

    Raises BackupError, and then has left nothing.
    """
    target, folder = target.absolute(), folder.absolute()
    if target.exists() or target.is_symlink():
        raise BackupError(f"{target} exists already; a backup overwrites nothing: choose another name")
    if target.resolve().is_relative_to(folder.resolve()):
        raise BackupError(
            f"{target} is within the data folder {folder}; choose a place outside of it, on another disk if possible"
        )
    if backups.is_backup(folder) or backups.is_incomplete(folder):
        raise BackupError(f"{folder} is a backup, or a part of one, and not a data folder")
    try:
        with _unfinished(target) as partial:
            return _Making(folder, partial, progress).run()
    except sqlite3.Error as error:
        raise BackupError(f"the database {folder / FILE} cannot be copied: {error}") from error
    except OSError as error:
        raise BackupError(f"cannot make the backup {target}: {error.strerror} ({error.filename or folder})") from error


@contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """The folder in which a backup is made; afterwards it has its name, or is gone."""
    partial = target.with_name(f"{target.name}.partial")
    if partial.exists():
        _clear(partial)
    partial.mkdir(parents=True, mode=0o700)
    lock = FileLock.acquire(partial / INCOMPLETE)
    try:
        yield partial
        (partial / INCOMPLETE).unlink()
        synchronize(partial)
        partial.rename(target)
        synchronize(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        lock.release()


def _clear(partial: Path) -> None:
    """Removes what a backup that was killed has left."""
    if not backups.is_incomplete(partial):
        raise BackupError(f"{partial} is in the way, and is not the beginning of a backup; remove it, or choose another name")
    try:
        FileLock.acquire(partial / INCOMPLETE).release()
    except LockedError as error:
        raise BackupError(f"another backup is being made at {partial}; wait for it, or choose another name") from error
    shutil.rmtree(partial)


class _Making:
    """One backup while it is made."""

    def __init__(self, folder: Path, target: Path, progress: Progress) -> None:
        self._folder = folder
        self._target = target
        self._copies = Copies(folder, target, progress)
        self._problems: dict[str, str] = {}
        # Files that may get another content under the same name, as they were when they were copied.
        self._seen: dict[str, tuple[int, int, int]] = {}

    def run(self) -> Made:
        began = _now()
        if not (self._folder / FILE).is_file():
            raise BackupError(f"{self._folder} is not a data folder: it has no {FILE}")
        with closing(_opened(self._folder / FILE)) as source:
            data_format = _known_format(source)
            self._check_room()
            self._copy_uploads()
            gone = self._copy_consistently(source)
        number = self._finish_database(gone)
        self._copy_others()
        self._copies.note(FILE)
        self._copies.settle()
        files = tuple(entry for _, entry in sorted(self._copies.files.items()))
        manifest = Manifest(version("thalweg"), data_format, number, began, _now(), files)
        with private(self._target / MANIFEST) as file:
            file.write(backups.written(manifest))
            file.flush()
            os.fsync(file.fileno())
        return Made(manifest, tuple(self._problems.values()))

    def _check_room(self) -> None:
        """Raises BackupError if there is clearly no room. What is to be copied is known roughly: the folder changes meanwhile."""
        for path in self._folder.rglob("*"):
            top = path.relative_to(self._folder).parts[0]
            with suppress(FileNotFoundError):
                if top not in _LEFT_OUT and path.is_file():
                    self._copies.total += path.stat().st_size
        free = shutil.disk_usage(self._target).free
        if self._copies.total > free:
            needed = f"needs about {self._copies.total:,} bytes, and {free:,} are free"
            raise BackupError(f"there is no room at {self._target.parent}: the backup {needed}")

    def _copy_uploads(self) -> None:
        """Copies the uploads that are there and were not copied."""
        for name in sorted(_names(self._folder / "uploads")):
            path = f"uploads/{name}"
            if re.fullmatch(SHA256, name) and path not in self._copies.files and path not in self._problems:
                self._copy_named(path, name)

    def _copy_consistently(self, source: sqlite3.Connection) -> set[str]:
        """Copies the record and the files of jobs that belong together. Gives the jobs that were deleted meanwhile."""
        for _ in range(_ROUNDS):
            self._copy_checkpoints(_names(self._folder / "jobs"))
            record = self._copy_database(source)
            ended = {job_id for job_id, row in record.items() if row.state in ENDED}
            self._copy_uploads()
            self._copy_checkpoints(ended)
            for job_id in ended:
                self._copy_results(job_id)
            now = _record(source)
            if all(now.get(job_id, record[job_id]) == record[job_id] for job_id in ended):
                self._remove_needless(record)
                return record.keys() - now.keys()
        raise BackupError(f"jobs that had ended were resumed {_ROUNDS} times while they were copied; try again later")

    def _copy_database(self, source: sqlite3.Connection) -> "dict[str, _Row]":
        """Copies the database as it is at one moment. Gives the record of each job in it."""
        (self._target / FILE).unlink(missing_ok=True)
        with closing(sqlite3.connect(self._target / FILE, isolation_level=None)) as copy:
            # All at once: otherwise, each change begins it anew. Nobody waits for it.
            source.backup(copy)
            return _record(copy)

    def _copy_checkpoints(self, job_ids: Iterable[str]) -> None:
        """Copies the checkpoints of jobs that were not copied."""
        for job_id in sorted(job_ids):
            folder = f"jobs/{job_id}/checkpoints"
            while names := [name for name in _names(self._folder / folder) if CHECKPOINT_NAME.fullmatch(name)]:
                fresh = [name for name in names if f"{folder}/{name}" not in self._copies.files.keys() | self._problems.keys()]
                found = [self._copy_named(f"{folder}/{name}", name[13:77]) for name in sorted(fresh, reverse=True)]
                # If all are gone, newer ones have taken their places.
                if any(found) or not fresh:
                    break

    def _copy_named(self, path: str, sha256: str) -> bool:
        """Copies a file whose SHA-256 is known. False if it is not there any more."""
        try:
            copied = self._copies.copy(path)
        except FileNotFoundError:
            if (self._folder / path).is_symlink():
                self._problems[path] = f"{path} leads to a file that does not exist: {(self._folder / path).readlink()}"
                return True
            return False
        if copied.sha256 != sha256:
            self._problems[path] = f"{path} is damaged: its SHA-256 is {copied.sha256}"
            self._copies.drop(path)
        return True

    def _copy_results(self, job_id: str) -> None:
        """Copies the other files of a job that has ended, unless they were copied and have not changed."""
        for name in _names(self._folder / "jobs" / job_id):
            path = f"jobs/{job_id}/{name}"
            with suppress(FileNotFoundError):
                status = (self._folder / path).stat()
                seen = status.st_ino, status.st_mtime_ns, status.st_size
                if not (self._folder / path).is_file() or name.endswith(".part") or self._seen.get(path) == seen:
                    continue
                self._copies.copy(path)
                self._seen[path] = seen

    def _remove_needless(self, record: "dict[str, _Row]") -> None:
        """Removes files of jobs that are not on record, results of jobs that go on, and checkpoints that no job needs."""
        states = {job_id: row.state for job_id, row in record.items()}
        checkpoints = defaultdict[str, list[str]](list)
        for path in list(self._copies.files):
            kind, job_id, *rest = path.split("/")
            if kind != "jobs":
                continue
            if job_id not in states or (len(rest) == 1 and states[job_id] not in ENDED):
                self._copies.drop(path)
            elif len(rest) > 1:
                checkpoints[job_id].append(path)
        for job_id, paths in checkpoints.items():
            kept = 0 if states[job_id] == job_pb2.JOB_STATE_SUCCEEDED else KEPT_CHECKPOINTS
            for path in sorted(paths, reverse=True)[kept:]:
                self._copies.drop(path)

    def _finish_database(self, gone: Iterable[str]) -> int:
        """Makes the copied database whole in itself, without the jobs that are gone. Gives its number of jobs."""
        for job_id in gone:
            for path in [path for path in self._copies.files if path.startswith(f"jobs/{job_id}/")]:
                self._copies.drop(path)
        with closing(sqlite3.connect(self._target / FILE, isolation_level=None)) as copy:
            copy.executescript("PRAGMA foreign_keys = ON; PRAGMA journal_mode = DELETE")
            copy.executemany("DELETE FROM jobs WHERE id = ?", [(job_id,) for job_id in gone])
            # A server that finds it has not died.
            if copy.execute("SELECT 1 FROM sqlite_master WHERE name = 'clean_stop'").fetchone():
                copy.execute("INSERT OR IGNORE INTO clean_stop VALUES (1)")
            (found,) = copy.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise BackupError(f"the database {self._folder / FILE} is damaged: {found}")
            if copy.execute("SELECT 1 FROM sqlite_master WHERE name = 'uploads_used'").fetchone():
                for job_id, sha256 in copy.execute("SELECT job_id, sha256 FROM uploads_used"):
                    path = f"uploads/{sha256}"
                    if path not in self._copies.files:
                        self._problems.setdefault(path, f"{path} is missing, which job {job_id} uses")
            number = len(_record(copy))
        (self._target / FILE).chmod(0o600)
        return number

    def _copy_others(self) -> None:
        """Copies the other files. A log that is full gets another name: then they are looked for again."""
        for _ in range(_ROUNDS):
            names = self._others()
            with suppress(FileNotFoundError):
                for name in names:
                    (self._copies.copy_lines if name.endswith(".jsonl") else self._copies.copy)(name)
                if self._others() == names:
                    return
        raise BackupError(f"files of {self._folder} were renamed {_ROUNDS} times while they were copied; try again later")

    def _others(self) -> list[str]:
        """The other files of the data folder, which the server continues or replaces as a whole."""
        names = (name for name in _names(self._folder) if name not in _LEFT_OUT | _FOLDERS and not name.startswith(FILE))
        return sorted(name for name in names if (self._folder / name).is_file() and not name.endswith(".part"))


def _opened(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)
    database.execute("PRAGMA query_only = ON")
    return database


def _known_format(database: sqlite3.Connection) -> int:
    try:
        return schema.found_format(database)
    except schema.NewerFormatError as error:
        raise BackupError(f"this release cannot back the data folder up: {error}") from error


def _has_jobs(database: sqlite3.Connection) -> bool:
    return database.execute("SELECT 1 FROM sqlite_master WHERE name = 'jobs'").fetchone() is not None


class _Row(NamedTuple):
    """A job on record: its state, and all that is in its row, whatever the format of the database."""

    state: job_pb2.JobState.ValueType
    values: tuple[Any, ...]


def _record(database: sqlite3.Connection) -> dict[str, _Row]:
    """Each job on record, by its id."""
    if not _has_jobs(database):
        return {}
    rows = database.execute("SELECT id, job, * FROM jobs")
    return {job_id: _Row(job_pb2.Job.FromString(blob).state, tuple(values)) for job_id, blob, *values in rows}


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
