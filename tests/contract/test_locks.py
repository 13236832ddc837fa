"""Locks between processes."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from thalweg.contract.locks import FileLock, LockedError


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    first = FileLock.acquire(tmp_path / "lock")
    with pytest.raises(LockedError):
        FileLock.acquire(tmp_path / "lock")
    first.release()
    first.release()
    FileLock.acquire(tmp_path / "lock").release()
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from thalweg.contract.locks import FileLock\n"
        "lock = FileLock.acquire(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, tmp_path / "lock"], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError):
            FileLock.acquire(tmp_path / "lock")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    FileLock.acquire(tmp_path / "lock").release()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_does_not_keep_a_lock(tmp_path: Path) -> None:
    lock = FileLock.acquire(tmp_path / "lock")
    (ready, tell_ready), (leave, tell_leave) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(tell_leave)
        os.write(tell_ready, b"x")
        os.read(leave, 1)
        os._exit(0)
    os.read(ready, 1)
    # As when the holder is killed, which releases nothing by itself.
    lock._drop()
    try:
        FileLock.acquire(tmp_path / "lock").release()
    finally:
        os.close(tell_leave)
        os.waitpid(child, 0)
        for descriptor in (ready, tell_ready, leave):
            os.close(descriptor)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_no_lock_that_is_held(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="its file system does not support file locks") as caught:
        FileLock.acquire(tmp_path / "lock")
    assert caught.value.errno == number


def test_whether_a_lock_is_held_can_be_asked_without_making_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not FileLock.is_held(path)
    assert not path.exists()
    lock = FileLock.acquire(path)
    path.chmod(0o400)
    assert FileLock.is_held(path)
    lock.release()
    assert not FileLock.is_held(path)
