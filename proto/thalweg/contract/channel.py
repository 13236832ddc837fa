"""Channels: addresses, limits and options that both ends of a connection share."""

import ipaddress
from collections.abc import Sequence
from typing import NamedTuple

# About 1 MiB: large enough that a message's fixed cost does not show, small enough that it is handled while the next travels.
CHUNK_BYTES = 1 << 20

DEFAULT_PORT = 7070

# gRPC's own limit of 4 MiB stays: a greater message is a mistake, for everything large travels in chunks.
OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),
)


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
