"""What is done to processes, files and disks to see whether a job continues nevertheless."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.end_to_end.command import wait_for

# How long a slowed process runs and rests by turns: a tenth of the time, in turns no longer than a few steps of a small model.
_RUNS_SECONDS = 0.002
_RESTS_SECONDS = 0.018


def pid_of(worker: str) -> int:
    """The process id in a worker's name, FLEET/HOST/PID."""
    return int(worker.rpartition("/")[2])


def kill(worker: str) -> None:
    """Kills a worker by its name, if it still runs."""
    with suppress(ProcessLookupError):
        os.kill(pid_of(worker), signal.SIGKILL)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stops a process for as long as the context."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def slowed(worker: str) -> Iterator[None]:
    """Makes a worker about ten times slower for as long as the context: it is stopped and continued by turns."""
    pid, stop = pid_of(worker), threading.Event()

    def slow() -> None:
        with suppress(ProcessLookupError):
            while not stop.is_set():
                os.kill(pid, signal.SIGSTOP)
                stop.wait(_RESTS_SECONDS)
                os.kill(pid, signal.SIGCONT)
                stop.wait(_RUNS_SECONDS)

    thread = threading.Thread(target=slow)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def flip_a_byte(path: Path) -> None:
    """Changes one byte in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))


def disk_problem() -> str | None:
    """What this machine lacks for a `SmallDisk`; None if it can have one."""
    return None if sys.platform.startswith("linux") and os.geteuid() == 0 else "a disk of its own needs root on Linux"


class SmallDisk:
    """A disk of its own at a folder, which can be filled. A context manager; the disk and what is on it go with it."""

    def __init__(self, folder: Path, mebibytes: int) -> None:
        self.folder = folder
        self._mebibytes = mebibytes
        self._filler = folder / "filler"

    def __enter__(self) -> "SmallDisk":
        self.folder.mkdir(parents=True)
        options = f"size={self._mebibytes}m,mode=0700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        # Lazily: a process that still holds a file there keeps it until it ends, and others do not see it.
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def fill(self, free: int) -> None:
        """Fills the disk until no more than `free` bytes are free."""
        state = os.statvfs(self.folder)
        excess = state.f_bavail * state.f_frsize - free
        if excess > 0:
            with self._filler.open("ab") as filler:
                os.posix_fallocate(filler.fileno(), filler.tell(), excess)

    def clear(self) -> None:
        """Removes what filled the disk."""
        self._filler.unlink(missing_ok=True)
