"""A worker's signs of life: heartbeats, and an end to what never ends in the code of a job's author.

Python code that does not end is found by a thread, which looks where it is. Code that holds Python's lock lets no thread run: a
process of its own then ends by a timer that needs no lock, and the server, which hears nothing, knows that it is lost.
"""

import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic

from thalweg.learning import entry_points
from thalweg.v1 import parameter_service_pb2 as pb

# After a report, the process has so many seconds to send it. A server that fails the job has it ended sooner.
_PATIENCE_SECONDS = 5.0
# A process that could send no heartbeat for so many times the seconds after which it counts as lost is of no use.
_HANGING = 2.0
# Descriptor of the log of a worker's errors.
_LOG = 2
_LIMIT_FIELD = "training.task_seconds"
# How often the time is looked at, as a part of the limit.
_LOOKS = 4


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
        self._watched = threading.get_ident()
        self._doing: tuple[str, float] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="thalweg-heart", daemon=True)

    def __enter__(self) -> "Watch":
        self._arm()
        if self._heartbeat > 0 or self._limit > 0:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Around something that must not take longer than the limit. `what` says what is done, for people."""
        self._doing = (what, monotonic() + self._limit)
        try:
            yield
        finally:
            self._doing = None

    def _run(self) -> None:
        pause = min(seconds for seconds in (self._heartbeat, self._limit / _LOOKS) if seconds > 0)
        try:
            while not self._stop.wait(pause):
                self._arm()
                if self._heartbeat > 0:
                    self._send(pb.WorkRequest(heartbeat=pb.Heartbeat()))
                doing = self._doing
                if self._limit > 0 and doing and monotonic() > doing[1]:
                    self._overdue(doing[0])
                    return
        finally:
            if self._hanging:
                faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        """Has the process end if this is not called again in time. Its log then has the lines where its threads are."""
        if self._hanging:
            faulthandler.dump_traceback_later(self._hanging, exit=True, file=_LOG)

    def _overdue(self, what: str) -> None:
        """Reports that something takes too long, and ends the process unless it comes to its end."""
        self._send(pb.WorkRequest(failure=self._failure(what)))
        if not self._stop.wait(_PATIENCE_SECONDS) and self._own_process:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(1)

    def _failure(self, what: str) -> pb.Failure:
        place = entry_points.whereabouts(self._watched)
        took = f"{what} took longer than {_LIMIT_FIELD}, {self._limit:g} s"
        if place is None:
            # Not in code of the job's: perhaps this machine is slow.
            return pb.Failure(problem=f"{_LIMIT_FIELD}: {took.replace(f' than {_LIMIT_FIELD},', ' than')}")
        return pb.Failure(problem=f"{place.field}: {took}{place.where}", scope=pb.Failure.SCOPE_JOB)
