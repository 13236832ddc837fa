"""The last words of a worker's process whose code crashed, or held Python's lock for too long: lines that it writes to its log.

`faulthandler` writes them, in C, where no Python code can run any more. They are read when the process has ended, by others.
"""

import ctypes
import faulthandler
import os
import re
import stat
from pathlib import Path
from traceback import FrameSummary
from typing import NamedTuple

from thalweg.learning import entry_points
from thalweg.workers.code_cache import below_folder

# Descriptor of the log of a worker's errors.
_LOG = 2
# What is read of a log: more than the tracebacks of all threads of a process take.
_MAX_READ = 1 << 20
# For a signal's handler where a thread's own stack has overflowed.
_STACK_BYTES = 1 << 16

_BEGINNING = re.compile(r"^(?:Fatal Python error: (.*)|Timeout \([\d:.]+\)!)$", re.MULTILINE)
# Processes that the code forks write other headings.
_THREAD = re.compile(r"^(Current thread|Thread) 0x[0-9a-f]+.*\(most recent call first\):$")
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')


class _Stack(ctypes.Structure):
    """`stack_t` of the C library."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


_stacks: list[object] = []


def write_last_words() -> None:
    """From now on this process, a worker's own, writes to its log where its threads are when it crashes.

    The calling thread may also overflow its stack.
    """
    faulthandler.enable(file=_LOG, all_threads=True)
    # What a process that the code forks leaves there must not be taken for this one's last words.
    os.register_at_fork(after_in_child=lambda: faulthandler.enable(file=_LOG, all_threads=False))
    memory = ctypes.create_string_buffer(_STACK_BYTES)
    stack = _Stack(ctypes.addressof(memory), 0, _STACK_BYTES)
    if ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0:
        _stacks.append(memory)


def end_after(seconds: float) -> None:
    """Has this process end, with last words, unless this or `go_on` is called in time. That takes no lock of Python's."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=_LOG)


def go_on() -> None:
    """This process does not end by itself any more."""
    faulthandler.cancel_dump_traceback_later()


def log_of_errors() -> str:
    """The path of this process's log, from which others read its last words; empty if it has none."""
    try:
        return str(Path(f"/proc/self/fd/{_LOG}").readlink()) if stat.S_ISREG(os.fstat(_LOG).st_mode) else ""
    except OSError:
        return ""


class LastWords(NamedTuple):
    """Why a process ended, and at which line of its author's code; each is empty if it is unknown."""

    problem: str = ""
    line: str = ""

    def __str__(self) -> str:
        return f"{self.problem} (at {self.line})" if self.line else self.problem


def last_words(log: str) -> LastWords:
    """What the end of a process's log says of its end."""
    try:
        with Path(log).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _MAX_READ))
            text = file.read(_MAX_READ).decode(errors="replace")
    except OSError:
        return LastWords()
    found = list(_BEGINNING.finditer(text))
    threads = _threads(text[found[-1].end() :]) if found else []
    if not threads:
        return LastWords()
    problem = found[-1][1] or "it held Python's lock for too long"
    return LastWords(entry_points.cut(problem), entry_points.line_in(threads, below_folder))


def _threads(text: str) -> list[list[FrameSummary]]:
    """The calls of each thread, innermost first: of the thread that crashed before those of the others."""
    threads: list[list[FrameSummary]] = []
    calls: list[FrameSummary] = []
    for line in text.splitlines():
        if thread := _THREAD.match(line):
            calls = []
            threads.insert(0 if thread[1] == "Current thread" else len(threads), calls)
        elif call := _FRAME.match(line):
            calls.append(FrameSummary(call[1], int(call[2]), call[3]))
    return threads
