"""How many peers a process lets in, so that it never lacks a descriptor for what it has to write, and how many calls each has."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from thalweg.contract import resources
from thalweg.contract.errors import ThalwegError
from thalweg.server.access.principal import Principal, Role

# For files that are written, the database, threads, and what libraries open.
_RESERVED = 192
# gRPC counts in 32 bits.
_MAX_CONNECTIONS = (1 << 31) - 1
# A connection without a call is ended after this time. gRPC's clients connect again when they need it.
_IDLE_MS = 60_000
# A peer that connects has as long to say that it speaks HTTP/2.
_HANDSHAKE_MS = 10_000
# Calls at a time on one connection. Workers and fleets have one each; a client, one for each job that it watches.
_STREAMS = 1_024
# Calls at a time of one principal, and of all callers together that show no token, who may ask for the server's health alone.
# Workers have one call each, and an administrator's token is also that of a cluster whose operator made no others.
_CALLS = {Role.VIEWER: 256, Role.SUBMITTER: 256, Role.FLEET: 1_024}
_STRANGERS_CALLS = 256


class Limits(NamedTuple):
    """How many connections a server takes, and how many workers may share memory with it."""

    connections: int
    guests: int


def limits() -> Limits:
    """The limits of this process, by the descriptors that it has left.

    A half is for connections. A worker with shared memory has a socket besides, and files for as long as they are not mapped.
    """
    free = max(0, resources.descriptors_left() - _RESERVED)
    return Limits(max(1, min(free // 2, _MAX_CONNECTIONS)), free // 4)


def options(connections: int) -> tuple[tuple[str, int], ...]:
    """gRPC's options for a server that takes at most some connections, and ends those that nobody uses."""
    return (
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.max_concurrent_streams", _STREAMS),
    )


class Calls:
    """The calls that are under way, by who makes them. Belongs to the server's event loop."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    @contextmanager
    def one_more(self, principal: Principal | None) -> Iterator[None]:
        """A call of a principal, or of a stranger, within the context. Raises ThalwegError if it has too many already."""
        name = principal.name if principal else ""
        most = _CALLS.get(principal.role) if principal else _STRANGERS_CALLS
        if most is not None and self._open[name] >= most:
            raise ThalwegError("TOO_MANY_CALLS", {"name": name or "callers without a token", "limit": str(most)})
        self._open[name] += 1
        try:
            yield
        finally:
            self._open[name] -= 1
            if not self._open[name]:
                del self._open[name]
