"""The socket to which workers on this machine connect, to share memory with the server."""

import asyncio
import hashlib
import logging
import os
import socket
import sys
from collections.abc import Callable

from thalweg.contract import shared_memory
from thalweg.server.streams.memory_peers import MemoryPeer

_log = logging.getLogger(__name__)
# Callers that have not said anything yet, and how long they may take to.
_MAX_CALLERS = 256
_TOKEN_SECONDS = 10.0
# How long nobody is let in after the process has run out of descriptors or memory.
_PAUSE_SECONDS = 1.0


class Sharing:
    """Where workers on this machine ask for memory: at most `max_guests` at a time, the others use their streams.

    Belongs to the event loop in which it is made. Raises OSError.
    """

    def __init__(self, max_guests: int = sys.maxsize) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener, self._name = shared_memory.listen()
        self._listener.setblocking(False)
        self._max_guests = max_guests
        self._guests: dict[bytes, MemoryPeer] = {}  # by a digest of their tokens
        self._callers: dict[socket.socket, asyncio.TimerHandle] = {}
        self._resuming: asyncio.TimerHandle | None = None
        self._failing = False
        self._resume()

    def invite(self, hear: Callable[[bytes], object], lost: Callable[[str], object]) -> MemoryPeer | None:
        """A worker that may come; see MemoryPeer. None if there are as many as can be."""
        if len(self._guests) >= self._max_guests:
            return None
        guest = MemoryPeer(self._name, hear, lost)
        self._guests[_digest(guest.token)] = guest
        return guest

    def dismiss(self, guest: MemoryPeer) -> None:
        """A worker that was invited may not come any more, or has gone."""
        self._guests.pop(_digest(guest.token), None)
        guest.close()

    def _resume(self) -> None:
        self._resuming = None
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            caller, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            # The caller still waits, so the listener would be ready again at once.
            self._loop.remove_reader(self._listener)
            self._resuming = self._loop.call_later(_PAUSE_SECONDS, self._resume)
            if not self._failing:
                self._failing = True
                _log.warning("workers on this machine cannot share memory at the moment: %s", error)
            return
        self._failing = False
        caller.setblocking(False)
        if len(self._callers) >= _MAX_CALLERS or shared_memory.user_of(caller) != os.geteuid():
            caller.close()
            return
        self._callers[caller] = self._loop.call_later(_TOKEN_SECONDS, self._turn_away, caller)
        self._loop.add_reader(caller, self._hear, caller)

    def _turn_away(self, caller: socket.socket) -> None:
        """Ends a caller that has said nothing."""
        self._listened(caller)
        caller.close()

    def _listened(self, caller: socket.socket) -> None:
        """A caller is no longer listened to here."""
        self._loop.remove_reader(caller)
        self._callers.pop(caller).cancel()

    def _hear(self, caller: socket.socket) -> None:
        """A caller's first message: its token, or anything else, which is refused."""
        self._listened(caller)
        try:
            guest = self._guests.get(_digest(caller.recv(shared_memory.TOKEN_BYTES + 1)))
            if guest and not guest.attached:
                guest.attach(caller)
                return
        except OSError as error:
            _log.info("a worker's socket broke: %s", error)
        caller.close()

    def close(self) -> None:
        """Nobody can come any more, and who has come is gone."""
        if self._resuming:
            self._resuming.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for caller in list(self._callers):
            self._turn_away(caller)
        for guest in self._guests.values():
            guest.close()


def _digest(token: bytes) -> bytes:
    """The key by which a token is looked up: how long that takes reveals nothing about the tokens."""
    return hashlib.sha256(token).digest()
