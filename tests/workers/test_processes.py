"""Whether other processes have ended, with and without descriptors of processes."""

import os
import subprocess
import sys
import threading

import pytest

from thalweg.workers.ray import processes
from thalweg.workers.ray.processes import end_with, has_ended, wait_for_end


@pytest.fixture
def child() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


def test_a_child_has_ended_only_when_it_has(child: subprocess.Popen[bytes]) -> None:
    assert not has_ended(child.pid)
    wait_for_end(child.pid, 0)
    child.kill()
    wait_for_end(child.pid, 60)
    assert has_ended(child.pid)
    # Its number is still its own.
    os.kill(child.pid, 0)
    child.communicate()
    assert has_ended(child.pid)


@pytest.mark.parametrize("error", [None, OSError(38, "Function not implemented"), PermissionError(1, "Not permitted")])
def test_the_end_of_the_parent_is_noticed(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, error: OSError | None
) -> None:
    monkeypatch.setattr(os, "getppid", lambda: child.pid)
    monkeypatch.setattr(processes, "_LOOK_SECONDS", 0.01)
    if error:

        def fail(_: int) -> int:
            raise error

        monkeypatch.setattr(os, "pidfd_open", fail)
    ended = threading.Event()
    end_with(child.pid, ended.set)
    assert not ended.wait(0.1)
    child.kill()
    assert ended.wait(60)
    child.communicate()


def test_a_parent_that_has_ended_already_is_noticed(child: subprocess.Popen[bytes]) -> None:
    child.communicate(b"\n")
    ended = threading.Event()
    end_with(child.pid, ended.set)
    assert ended.wait(60)
