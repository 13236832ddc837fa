"""What goes into the audit log: calls that change something or read what a job consists of, and calls that were refused."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Protocol
from urllib.parse import unquote

import grpc

from thalweg.contract.audit import Record
from thalweg.contract.errors import ThalwegError
from thalweg.contract.text import MAX_ADDRESS, visible
from thalweg.server.access import table
from thalweg.server.access.principal import Caller, Role

_log = logging.getLogger(__name__)
# Calls that failed and are recorded, in a minute; of more, which anyone can make, only the number is.
_MAX_REFUSED, _REFUSED_SECONDS = 100, 60.0
# Records that wait for room on the disk. Of more, only the number is recorded.
_MAX_WAITING = 10_000
_RETRY_SECONDS = 5.0
_MAX_TEXT = 100
_OK, _BEGUN, _CANCELLED = "OK", "BEGUN", "CANCELLED"


class Auditor(Protocol):
    """What is told of calls."""

    @contextmanager
    def call(self, caller: Caller, peer: str) -> Iterator[None]:
        """A call that was admitted is made within the context, from a peer as gRPC names it."""
        ...

    def refused(self, method: str, peer: str, error: ThalwegError) -> None:
        """A call was refused before it was read."""
        ...


class Unaudited:
    """Records nothing."""

    @contextmanager
    def call(self, _: Caller, peer: str) -> Iterator[None]:  # noqa: ARG002 - of the protocol
        """Records nothing."""
        yield

    def refused(self, method: str, peer: str, error: ThalwegError) -> None:
        """Records nothing."""


class Audit:
    """Records calls. Belongs to the server's event loop; `write` blocks, appends records for good, or raises OSError."""

    def __init__(self, write: Callable[[list[Record]], None]) -> None:
        self._write = write
        self._waiting: list[Record] = []
        self._lost = 0
        self._refused = 0
        self._window = -_REFUSED_SECONDS
        self._wake = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    def start(self, release: str) -> None:
        """Begins, with a record that the server has started."""
        self._take({"event": "server started", "release": release})
        self._writer = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Writes what is waiting, if the disk takes it, and ends."""
        if self._writer:
            self._writer.cancel()
            with suppress(asyncio.CancelledError):
                await self._writer
            self._tell_unrecorded()
            self._take({"event": "server stopped"})
            try:
                await asyncio.to_thread(self._write, self._waiting)
            except OSError as error:
                _log.error("%d records of the audit log cannot be written: %s", len(self._waiting), error)

    @contextmanager
    def call(self, caller: Caller, peer: str) -> Iterator[None]:
        """Records a call when it ends, and when it begins if it may last for long."""
        row = table.row(caller.method)
        # Workers do what their job needs, on behalf of its owner.
        if not row.audited or caller.principal.role is Role.WORKER:
            yield
            return
        if row.lasts:
            self._add(caller, peer, _BEGUN)
        outcome = _OK
        try:
            yield
        except ThalwegError as error:
            outcome = error.reason
            raise
        except (asyncio.CancelledError, GeneratorExit):
            outcome = _CANCELLED
            raise
        except grpc.aio.AbortError:
            outcome = caller.act.reason
            raise
        finally:
            self._add(caller, peer, outcome)

    def refused(self, method: str, peer: str, error: ThalwegError) -> None:
        """Records a refused call, if there are not too many."""
        if self._has_room():
            who = {"name": error.metadata["name"]} if "name" in error.metadata else {}
            self._take(who | _from(method, peer) | {"outcome": error.reason})

    def _has_room(self) -> bool:
        """Whether one more call that failed is recorded."""
        now = asyncio.get_running_loop().time()
        if now - self._window > _REFUSED_SECONDS:
            self._tell_unrecorded()
            self._window, self._refused = now, 0
        self._refused += 1
        return self._refused <= _MAX_REFUSED

    def _add(self, caller: Caller, peer: str, outcome: str) -> None:
        if outcome not in (_OK, _BEGUN, _CANCELLED) and not self._has_room():
            return
        principal, about = caller.principal, {key: visible(text, _MAX_TEXT) for key, text in caller.act.about.items()}
        who = {"name": principal.name, "role": principal.role.value}
        self._take(who | _from(caller.method, peer) | ({"about": about} if about else {}) | {"outcome": outcome})

    def _take(self, record: Record) -> None:
        if len(self._waiting) >= _MAX_WAITING:
            self._lost += 1
            return
        self._waiting.append({"time": datetime.now(UTC).isoformat(timespec="milliseconds")} | dict(record))
        self._wake.set()

    def _tell_unrecorded(self) -> None:
        if self._refused > _MAX_REFUSED:
            self._take({"event": "more calls that failed", "count": self._refused - _MAX_REFUSED})
            self._refused = 0

    async def _run(self) -> None:
        complained = False
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch = list(self._waiting)
            writing = asyncio.create_task(asyncio.to_thread(self._write, batch))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                # The server stops; what is being written must not be written again.
                await asyncio.wait([writing])
                if writing.exception() is None:
                    del self._waiting[: len(batch)]
                raise
            except OSError as error:
                if not complained:
                    _log.error("the audit log cannot be written, trying again every %g s: %s", _RETRY_SECONDS, error)
                complained = True
                await asyncio.sleep(_RETRY_SECONDS)
                self._wake.set()
                continue
            complained = False
            del self._waiting[: len(batch)]
            if self._lost:
                lost, self._lost = self._lost, 0
                self._take({"event": "calls that were not recorded, for lack of room", "count": lost})


def _from(method: str, peer: str) -> dict[str, str]:
    return {"from": visible(unquote(peer), MAX_ADDRESS), "method": method.rpartition("/")[2]}
