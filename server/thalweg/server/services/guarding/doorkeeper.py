"""Who is let in when many come: strangers' connections end before those of callers with a valid token find no room.

gRPC counts connections, and when there are too many it closes the newest, whoever it is. It tells nobody which connections there
are, and closes none when asked to. So a thread looks at this process's sockets, and shuts those down that belong to strangers.
"""

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Collection
from urllib.parse import unquote

_log = logging.getLogger(__name__)
# How often the number of connections is looked at, and how long a caller has to show its token when there are too many.
_LOOK_SECONDS, _GRACE_SECONDS = 1.0, 2.0
# The part of a processor's time that looking may take: with ten thousand connections, a look takes a tenth of a second.
_PART = 0.05
# How often the log says that connections were ended.
_LOG_SECONDS = 60.0


class Doorkeeper:
    """Ends connections of strangers when half of those that a process takes are in use. Belongs to the server's event loop.

    `ports` gives the ports at which the process listens. Where the system does not list descriptors, it does nothing.
    """

    def __init__(self, connections: int, ports: Callable[[], Collection[int]]) -> None:
        self._half = max(1, connections // 2)
        self._ports = ports
        # The peers, as gRPC names them, of which a call was admitted.
        self._known: set[str] = set()
        # Since when each stranger is known to be there.
        self._strangers: dict[str, float] = {}
        self._ended = 0
        self._logged = -_LOG_SECONDS

    def admit(self, peer: str) -> None:
        """A call with a valid token has come from a peer, as gRPC names it."""
        self._known.add(unquote(peer) if "%" in peer else peer)

    async def watch(self) -> None:
        """Looks at the connections, for as long as the server runs."""
        if sys.platform != "linux":
            return
        took = 0.0
        while True:
            await asyncio.sleep(max(_LOOK_SECONDS, took / _PART))
            took = await asyncio.to_thread(self._look_if_many)

    def _look_if_many(self) -> float:
        """Looks if there may be too many connections, and gives the processor time that this took, in seconds."""
        began = time.thread_time()
        if len(_descriptors()) > self._half or len(self._known) > 4 * self._half:
            self.look()
        return time.thread_time() - began

    def look(self) -> None:
        """Ends the connections of strangers that have been there for long enough, if there are too many connections."""
        ports, now = self._ports(), time.monotonic()
        # Those that are admitted from now on may not be found.
        known = frozenset(self._known)
        found = _connections(ports)
        # The port of a peer that is gone may be another's next time.
        self._known.difference_update(known.difference(found))
        strangers = [peer for peer in found if peer not in self._known]
        self._strangers = {peer: self._strangers.get(peer, now) for peer in strangers}
        if len(found) <= self._half:
            return
        for peer, since in self._strangers.items():
            if now - since >= _GRACE_SECONDS and _shut_down(found[peer], peer, ports):
                self._ended += 1
        if self._ended and now - self._logged >= _LOG_SECONDS:
            _log.warning("%d connections of peers without a valid token were ended, to leave room for others", self._ended)
            self._logged, self._ended = now, 0


def _descriptors() -> list[int]:
    """The descriptors of this process."""
    return [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208 - there may be ten thousands


def _connections(ports: Collection[int]) -> dict[str, int]:
    """The descriptors of the connections to some ports of this process, by the other side's address as gRPC names it."""
    found = {}
    for descriptor in _descriptors():
        if peer := _peer(descriptor, ports):
            found[peer] = descriptor
    return found


def _peer(descriptor: int, ports: Collection[int]) -> str:
    """The other side of a connection to one of some ports; empty if the descriptor is none."""
    try:
        connection = socket.socket(fileno=descriptor)
    except OSError:
        return ""
    try:
        own = connection.getsockname()
        if not isinstance(own, tuple) or own[1] not in ports:
            return ""
        ip, port, *_ = connection.getpeername()
    except OSError:
        return ""
    finally:
        # The descriptor is gRPC's.
        connection.detach()
    ip = ip.removeprefix("::ffff:")
    return f"ipv6:[{ip}]:{port}" if ":" in ip else f"ipv4:{ip}:{port}"


def _shut_down(descriptor: int, peer: str, ports: Collection[int]) -> bool:
    """Ends a connection, which gRPC then closes as one that its peer has closed; not if the descriptor is another's meanwhile."""
    if _peer(descriptor, ports) != peer:
        return False
    try:
        connection = socket.socket(fileno=descriptor)
    except OSError:
        return False
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return False
    finally:
        connection.detach()
    return True
