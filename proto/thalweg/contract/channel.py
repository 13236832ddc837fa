"""Channels: addresses, limits and options that both ends of a connection share."""

import ipaddress
from collections.abc import Sequence
from typing import NamedTuple

# About 1 MiB: large enough that a message's fixed cost does not show, small enough that it is handled while the next travels.
CHUNK_BYTES = 1 << 20

DEFAULT_PORT = 7070

# A connection on which nothing arrives for so long is asked for a sign of life, and given up if that takes as long again.
_KEEPALIVE_MS = 10_000


def connection_options(keepalive_ms: int = _KEEPALIVE_MS) -> tuple[tuple[str, int], ...]:
    """gRPC's options for both ends of a connection: either notices within twice `keepalive_ms` that the other is gone.

    A server takes pings that come oftener than every five minutes for an attack and hangs up, unless it is told otherwise.
    gRPC's own limit of 4 MiB stays: a greater message is a mistake, for everything large travels in chunks.
    """
    return (
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", keepalive_ms),
        # Of gRPC's other pings, with which it measures the bandwidth; no keepalive is sent while one is under way.
        ("grpc.http2.ping_timeout_ms", 2 * keepalive_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", keepalive_ms // 2),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),
    )


OPTIONS: Sequence[tuple[str, int]] = connection_options()


class Address(NamedTuple):
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_address(text: str) -> Address:
    """Reads `HOST`, `HOST:PORT`, `[IPV6]:PORT` or `:PORT`; the host defaults to 127.0.0.1, the port to 7070.

    Raises ValueError if the text is none of them.
    """
    host, separator, port = text.rpartition(":")
    if text.endswith("]") or not separator:
        host, port = text, str(DEFAULT_PORT)
    bracketed = host.startswith("[") and host.endswith("]")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if (
        not port.isascii()
        or not port.isdigit()
        or int(port) > 65535
        or "/" in host
        or " " in host
        or (":" in host and not bracketed)
    ):
        raise ValueError(f"{text!r} is not an address; write HOST:PORT, as in 127.0.0.1:{DEFAULT_PORT}")
    return Address(host, int(port))


def authorization(token: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata that a call carries."""
    return (("authorization", f"Bearer {token}"),) if token else ()
