"""A worker's signs of life: heartbeats, and an end to what never ends in the code of a job's author.

Python code that does not end is found by a thread, which looks where it is. Code that holds Python's lock lets no thread run: a
process of its own then ends by a timer that needs no lock, and its last words (`crashes.py`) say where it was. Code that ends the
process itself is reported first.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from time import monotonic
from typing import NamedTuple, NoReturn

from thalweg.learning import entry_points
from thalweg.learning.data.access import Progress
from thalweg.v1 import parameter_service_pb2 as pb
from thalweg.workers import crashes

# After a report, the process has so many seconds to send it. A server that fails the job has it ended sooner.
_PATIENCE_SECONDS = 5.0
# A process that could send no heartbeat for so many times the seconds after which it counts as lost is of no use.
_HANGING = 2.0
_LIMIT_FIELD = "training.task_seconds"
_exit = os._exit
# How often the time is looked at, as a part of the limit.
_LOOKS = 4


class _Doing(NamedTuple):
    """What is done, the seconds that it may take beside the limit, and when it must have ended, by the monotonic clock.

    `progress` says how far it is, if the server is to know.
    """

    what: str
    more: float
    end: float
    progress: Progress | None


class Watch:
    """Sends heartbeats and watches the thread that makes it, as long as its context lasts.

    `heartbeat_seconds` are between heartbeats, of which there are none for 0. `limit` is the number of seconds that each thing
    may take, 0 for any. What takes longer is reported to the server as a failure. `own_process` says that the process is the
    worker's alone, and ends where its code does not; `silence_seconds` are those after which the server takes a worker for lost.
    """

    def __init__(
        self,
        send: Callable[[pb.WorkRequest], object],
        heartbeat_seconds: float,
        silence_seconds: float,
        limit: float,
        *,
        own_process: bool,
    ) -> None:
        self._send = send
        self._heartbeat = heartbeat_seconds
        self._hanging = _HANGING * silence_seconds if own_process and heartbeat_seconds > 0 else 0.0
        self._limit = limit
        self._own_process = own_process
        self._process = os.getpid()
        self._watched = threading.get_ident()
        self._doing: _Doing | None = None
        self._pause = min((seconds for seconds in (heartbeat_seconds, limit / _LOOKS) if seconds > 0), default=inf)
        # When the process ends by itself; and how long after the limit, because the thread that looks at the time may be late.
        self._armed = inf
        self._margin = self._pause + 2 * _PATIENCE_SECONDS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="thalweg-heart", daemon=True)

    def __enter__(self) -> "Watch":
        if self._own_process:
            crashes.write_last_words()
            os._exit = self._ends
        self._arm()
        if self._heartbeat > 0 or self._limit > 0:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._own_process:
            crashes.go_on()
            os._exit = _exit

    @contextmanager
    def doing(self, what: str, more: float = 0.0, progress: Progress | None = None) -> Iterator[None]:
        """Around something that must not take longer than the limit and `more` seconds. `what` says what is done, for people.

        `more` may be infinite, for what waits for something else than this process. Heartbeats tell the server what `progress`
        says.
        """
        outer, since = self._doing, monotonic()
        self._doing = _Doing(what, more, since + self._limit + more, progress)
        if self._own_process and self._limit > 0 and self._doing.end + self._margin < self._armed:
            # It may hold Python's lock from now on.
            self._arm()
        try:
            yield
        finally:
            # What was done inside had a time of its own.
            self._doing = outer and outer._replace(end=outer.end + monotonic() - since)

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            self._arm()
            doing = self._doing
            if self._heartbeat > 0:
                said = doing.progress() if doing and doing.progress else ""
                self._send(pb.WorkRequest(heartbeat=pb.Heartbeat(doing=said)))
            if self._limit > 0 and doing and monotonic() > doing.end:
                self._overdue(doing)
                return

    def _arm(self) -> None:
        """Has the process end if this is not called again in time."""
        if not self._own_process:
            return
        now, doing = monotonic(), self._doing
        ends = [now + self._hanging] if self._hanging else []
        if self._limit > 0 and doing:
            ends.append(max(now, doing.end) + self._margin)
        self._armed = min(ends, default=inf)
        if self._armed < inf:
            crashes.end_after(self._armed - now)
        else:
            crashes.go_on()

    def _overdue(self, doing: _Doing) -> None:
        """Reports that something takes too long, and ends the process unless it comes to its end."""
        self._send(pb.WorkRequest(failure=self._failure(doing)))
        if not self._stop.wait(_PATIENCE_SECONDS) and self._own_process:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
            _exit(1)

    def _ends(self, status: int) -> NoReturn:
        """In place of `os._exit`: the author's code that calls it is reported. A process that the code has forked just ends."""
        place = entry_points.caller(self._watched) if os.getpid() == self._process else None
        if place:
            problem = f"{place.field}: the code ended its process, with exit code {status}{place.where}"
            self._send(pb.WorkRequest(failure=pb.Failure(problem=problem, scope=pb.Failure.SCOPE_JOB)))
            self._stop.wait(_PATIENCE_SECONDS)
        _exit(status)

    def _failure(self, doing: _Doing) -> pb.Failure:
        place = entry_points.whereabouts(self._watched)
        more = f", and {doing.more:g} s" if doing.more else ""
        took = f"{doing.what} took longer than {_LIMIT_FIELD}, {self._limit:g} s{more}"
        if place is None:
            # Not in code of the job's: perhaps this machine is slow.
            return pb.Failure(problem=f"{_LIMIT_FIELD}: {took.replace(f' than {_LIMIT_FIELD},', ' than')}")
        return pb.Failure(problem=f"{place.field}: {took}{place.where}", scope=pb.Failure.SCOPE_JOB)
