"""How many peers a process lets in, so that it never lacks a descriptor for what it has to write."""

from typing import NamedTuple

from thalweg.contract import resources

# For files that are written, the database, threads, and what libraries open.
_RESERVED = 192
# gRPC counts in 32 bits.
_MAX_CONNECTIONS = (1 << 31) - 1
# A connection without a call is ended after this time. gRPC's clients connect again when they need it.
_IDLE_MS = 60_000
# A peer that connects has as long to say that it speaks HTTP/2.
_HANDSHAKE_MS = 10_000


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
    )
