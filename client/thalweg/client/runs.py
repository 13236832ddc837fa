"""The runs that share a folder of embedded jobs.

A run is a process's use of the folder, from `local()` or `thalweg train` to its end. Each has a file in the folder `runs`, locked
until the run ends, with the address of its server and the ids of its jobs. So a run that was killed is noticed, and a server that
replaces one that has ended resumes the jobs of the runs that are alive.
"""

import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from thalweg.client.errors import LocalError
from thalweg.contract.endpoint import Address, parse_address
from thalweg.contract.locks import FileLock, LockedError

_log = logging.getLogger(__name__)
_FOLDER = "runs"
_SERVER, _JOB = "server", "job"


class Run:
    """This process's file among those of a folder. Raises LocalError if it cannot be made."""

    def __init__(self, folder: Path) -> None:
        self.jobs: list[str] = []
        name = uuid.uuid4().hex
        runs = folder / _FOLDER
        # Hidden from others until it is locked.
        aside = runs / f".{name}"
        try:
            runs.mkdir(exist_ok=True, mode=0o700)
            self._lock = FileLock.acquire(aside)
            self._path = aside.rename(runs / name)
        except OSError as error:
            raise LocalError(f"cannot use the data folder {folder}: {error.strerror}; choose another with --data") from error

    def joined(self, server: Address) -> None:
        """Writes the address of the server that this run uses."""
        self._say(_SERVER, str(server))

    def add(self, job_id: str) -> None:
        """Records that a job belongs to this run: it ends with the run."""
        if job_id not in self.jobs:
            self.jobs.append(job_id)
            self._say(_JOB, job_id)

    def _say(self, what: str, value: str) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{what} {value}\n")
        except OSError as error:
            # Only a run that replaces the server reads it. Without it, this run's jobs are interrupted then, and can be resumed.
            _log.warning("cannot write to %s: %s", self._path, error.strerror)

    def leave(self) -> None:
        """Removes the file."""
        with suppress(OSError):
            self._path.unlink()
        self._lock.release()


class Told(NamedTuple):
    """The contents of a run's file."""

    server: Address | None
    jobs: tuple[str, ...]


def told(folder: Path) -> list[Told]:
    """The contents of all runs' files, including those of dead runs."""
    return [_read(path) for path in _files(folder)]


def jobs_of_the_living(folder: Path) -> frozenset[str]:
    """The jobs of the runs that are alive. Removes the files of dead runs. For the process that has the folder's lock."""
    bury(folder)
    return frozenset(job for run in told(folder) for job in run.jobs)


def bury(folder: Path) -> list[str]:
    """Removes the files of runs that ended without doing so. Returns their jobs. For the process that has the folder's lock."""
    jobs: list[str] = []
    for path in _files(folder):
        try:
            lock = FileLock.acquire(path)
        except (LockedError, OSError):
            continue
        jobs += _read(path).jobs
        with suppress(OSError):
            path.unlink()
        lock.release()
    return jobs


def _files(folder: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from [Path(entry) for entry in os.scandir(folder / _FOLDER) if not entry.name.startswith(".")]


def _read(path: Path) -> Told:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return Told(None, ())
    # What follows the last line's end is still being written.
    words = [line.split(" ", 1) for line in text[: text.rfind("\n") + 1].splitlines()]
    server = None
    with suppress(ValueError, IndexError):
        server = parse_address([value for what, value in words if what == _SERVER][-1])
    return Told(server, tuple(value for what, value in words if what == _JOB))
