"""Channels: addresses, limits and options that both ends of a connection share, and the only place that opens a channel."""

import ipaddress
import os
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import grpc

from thalweg.contract import tokens
from thalweg.contract.errors import ThalwegError, from_rpc_error
from thalweg.contract.tls import Tls

# Names and values that go with a call.
Metadata: TypeAlias = tuple[tuple[str, str], ...]
_Ip: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

# The process in which gRPC started threads that do not survive a fork.
_bound_to: int | None = None

# About 1 MiB: large enough that a message's fixed cost is small, small enough that one is handled while the next one arrives.
CHUNK_BYTES = 1 << 20

DEFAULT_PORT = 7070
_NAME = re.compile(r"[\w-]+(\.[\w-]+)*\.?")

# gRPC's own default. Everything large is sent in chunks, so a larger message is a mistake.
MAX_MESSAGE_BYTES = 4 << 20

# After this time without data, a connection is pinged; it is given up if the answer takes as long again.
_KEEPALIVE_MS = 10_000


def connection_options(keepalive_ms: int = _KEEPALIVE_MS) -> tuple[tuple[str, int], ...]:
    """gRPC's options for both ends of a connection: each end notices within twice `keepalive_ms` that the other is gone.

    By default, a server treats pings more frequent than every five minutes as an attack, and closes the connection.
    """
    return (
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", keepalive_ms),
        # gRPC's pings that measure the bandwidth. While one is under way, no keepalive is sent.
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
        address = _ip(self.host)
        return _is_localhost(self.host) if address is None else address.is_loopback


def parse_address(text: str) -> Address:
    """Reads `HOST`, `HOST:PORT`, `[IPV6]:PORT` or `:PORT`; the host defaults to 127.0.0.1, the port to 7070.

    Raises ValueError if the text has another form.
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
        or not (_NAME.fullmatch(host) or (_ip(host) and (bracketed or ":" not in host)))
    ):
        raise ValueError(f"{text!r} is not an address; write HOST:PORT, as in 127.0.0.1:{DEFAULT_PORT}")
    return Address(host, int(port))


def authorization(token: str | None) -> Metadata:
    """The metadata that a call carries."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def forks_are_supported(default: bool = False) -> bool:
    """Whether gRPC's support for forks is on; `default` is the answer if the environment does not say.

    In gRPC's core it is on by default, so that a forked process can open channels of its own. gRPC's Python part supports forks
    only if the environment says so; then channels that were open go on working, too.
    """
    said = os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "")
    return said.lower() in ("1", "true", "yes", "on") if said else default


def bind_to_process() -> None:
    """Records that this process uses gRPC in a way that makes it crash or hang in processes that are forked from it."""
    global _bound_to  # noqa: PLW0603 - it is the process's
    _bound_to = os.getpid()


def _check_forks() -> None:
    """Raises ThalwegError if this process was forked from one in which gRPC was used in a way that forks do not support."""
    if _bound_to not in (None, os.getpid()):
        problem = (
            "this process was forked from one that used gRPC in a way that does not support forks: it ran a server, or "
            "GRPC_ENABLE_FORK_SUPPORT is 0; start it by multiprocessing's spawn or forkserver"
        )
        raise ThalwegError("LOCAL", {"problem": problem})
    if not forks_are_supported(default=True):
        bind_to_process()


class Endpoint(NamedTuple):
    """A server to connect to: its address, the token that it requires, if any, and how it is verified, if it uses TLS.

    For a server of this user on loopback, the token that the server made for itself replaces any other that no server issued.
    """

    address: Address
    token: str | None = None
    tls: Tls | None = None

    @property
    def metadata(self) -> Metadata:
        """The metadata of a call that is made now."""
        issued = self.token is not None and self.token.startswith(tokens.ISSUED)
        own = tokens.find(*self.address) if self.address.is_loopback and not issued else None
        return authorization(own or self.token)

    def open(self) -> grpc.Channel:
        """A channel, which must be closed or used as a context manager. It connects when it is first used.

        Raises ThalwegError (LOCAL) if something is wrong with the files of TLS, which are read now.
        """
        _check_forks()
        if self.tls is None:
            return grpc.insecure_channel(str(self.address), options=self._options())
        return grpc.secure_channel(str(self.address), self.tls.credentials(), options=self._options())

    def open_aio(self) -> grpc.aio.Channel:
        """The same for asyncio."""
        bind_to_process()
        if self.tls is None:
            return grpc.aio.insecure_channel(str(self.address), options=self._options())
        return grpc.aio.secure_channel(str(self.address), self.tls.credentials(), options=self._options())

    def translated(self, error: grpc.RpcError) -> ThalwegError:
        """The error that gRPC's exception stands for, which a call on a channel to the server has raised."""
        return from_rpc_error(error, str(self.address), encrypted=self.tls is not None)

    def _options(self) -> list[tuple[str, int | str]]:
        direct = [("grpc.enable_http_proxy", 0)] if is_reached_directly(self.address) else []
        named = [("grpc.ssl_target_name_override", self.tls.name)] if self.tls and self.tls.name else []
        return [*OPTIONS, *direct, *named]


def is_reached_directly(address: Address) -> bool:
    """Whether the connection must not use a proxy: proxies cannot reach this machine's ports, and `no_proxy` names other hosts.

    `no_proxy`, or `NO_PROXY`, lists host names, domains (with or without a leading dot: each names its subdomains too), IP
    addresses and networks such as 10.0.0.0/8, optionally with a port, separated by commas; `*` is everything.
    """
    ip = _ip(address.host)
    if address.is_loopback or (ip is not None and ip.is_unspecified):
        return True
    listed = ",".join(os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    return any(_names(entry, address, ip) for entry in listed.replace(",", " ").split())


def _names(entry: str, address: Address, ip: _Ip | None) -> bool:
    """Whether an entry of `no_proxy` names an address."""
    if entry == "*":
        return True
    if ip is not None:
        try:
            return ip in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            pass
    try:
        host, port = parse_address(entry.removeprefix("*").removeprefix("."))
    except ValueError:
        return False
    if entry.rpartition(":")[2] == str(port) and port != address.port:
        return False
    named = _ip(host)
    if named is not None or ip is not None:
        return named == ip
    domain, ours = host.lower().rstrip("."), address.host.lower().rstrip(".")
    return ours == domain or ours.endswith(f".{domain}")


def _ip(host: str) -> _Ip | None:
    """The IP address of a host that is written as one. None if it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_localhost(host: str) -> bool:
    name = host.lower().rstrip(".")
    return name == "localhost" or name.endswith(".localhost")
