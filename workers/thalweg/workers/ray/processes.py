"""Whether other processes have ended. Some kernels and sandboxes have no descriptors of processes (pidfd)."""

import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path

_LOOK_SECONDS = 0.25
_WAIT_SECONDS = 0.02


def has_ended(child: int) -> bool:
    """Whether a child of this process has ended. It is not waited for, so its id is not used again."""
    try:
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def wait_for_end(child: int, seconds: float) -> None:
    """Waits until a child of this process has ended, for at most some seconds. Its id is not used again."""
    patience = time.monotonic() + seconds
    while not has_ended(child) and time.monotonic() < patience:
        time.sleep(_WAIT_SECONDS)


def end_with(parent: int, end: Callable[[], object]) -> None:
    """Calls `end`, in a new thread, as soon as the process that started this one has ended.

    Ray checks that, too, but considers a process alive that has died and was not waited for, as in a container without an init.
    """

    def watch() -> None:
        _wait_for(parent)
        end()

    threading.Thread(target=watch, name="thalweg-parent", daemon=True).start()


def _wait_for(parent: int) -> None:
    try:
        descriptor = os.pidfd_open(parent)
    except ProcessLookupError:
        return
    except OSError:
        while os.getppid() == parent and not _is_zombie(parent):
            time.sleep(_LOOK_SECONDS)
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.poll()


def _is_zombie(process: int) -> bool:
    """Whether a process has died and was not waited for yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(") ")[2].startswith("Z")
    except OSError:
        return True
