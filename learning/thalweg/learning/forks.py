"""Forks in the code of a job's author. A new process that comes back from the code would go on as a second worker.

It has the worker's connections and memory, so it ends here. The worker learns of that from memory that both share.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from mmap import mmap

from thalweg.learning.errors import MistakeError

_MAX_BYTES = 4096
# By thread, which a new process has, too: what says where the thread is in the author's code.
_inside: dict[int, Callable[[], str]] = {}
# By thread that forked: the memory that its processes share, and where it forked last.
_forked: dict[int, tuple[mmap, str]] = {}


@contextmanager
def caught(where: Callable[[], str]) -> Iterator[None]:
    """Around code that may fork. A process that it forks and that leaves this context ends.

    Afterwards, or after a later context of this thread, raises MistakeError. `where` says where the code is, after the path of
    the job's field: it is called when the code forks.
    """
    process, thread = os.getpid(), threading.get_ident()
    outer, _inside[thread] = _inside.get(thread), where
    try:
        yield
    finally:
        if os.getpid() != process:
            _end(thread)
        if outer:
            _inside[thread] = outer
        else:
            del _inside[thread]
    if thread in _forked and (text := _read(_forked[thread][0])):
        del _forked[thread]
        raise MistakeError(text)


def _about_to_fork() -> None:
    thread = threading.get_ident()
    if thread in _inside:
        shared = _forked[thread][0] if thread in _forked else mmap(-1, _MAX_BYTES)
        _forked[thread] = (shared, _inside[thread]())


os.register_at_fork(before=_about_to_fork)


def _end(thread: int) -> None:
    """Ends a new process, which leaves word of it."""
    shared, where = _forked[thread]
    advice = "end it in the code, with os._exit, or use multiprocessing"
    text = f"{where} forked the process, and the new process came back from the code; {advice}".encode()[: _MAX_BYTES - 2]
    shared[1 : 1 + len(text)] = text
    # Last: from now on the text is whole.
    shared[0] = 1
    os._exit(1)


def _read(shared: mmap) -> str:
    return shared[1:].partition(b"\0")[0].decode(errors="replace") if shared[0] else ""
