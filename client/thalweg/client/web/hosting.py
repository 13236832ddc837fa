"""The page's own server: HTTP at an address, in a thread with an event loop."""

import asyncio
import secrets
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from thalweg.client.errors import LocalError
from thalweg.client.web.application import Page
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.contract.errors import Violation, invalid

# Connections beyond this number are refused with 503.
_MAX_CONNECTIONS = 1000
_MAX_HEADER_BYTES = 32 << 10
_STOP_SECONDS = 2
# How long a connection may be without a request.
IDLE_SECONDS = 15.0


class _Protocol(H11Protocol):
    """A connection that ends if no request comes over it for some time. uvicorn waits for the first one for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._served: object = None
        self._check = self.loop.call_later(IDLE_SECONDS, self._end_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._check.cancel()
        super().connection_lost(exc)

    def _end_if_idle(self) -> None:
        """Ends the connection if it has had no request since the last time, and none is being answered."""
        idle = self.cycle is None or (self.cycle.response_complete and self.cycle is self._served)
        if idle:
            self.transport.close()
            return
        self._served = self.cycle
        self._check = self.loop.call_later(IDLE_SECONDS, self._end_if_idle)


@dataclass(frozen=True)
class PageConfig:
    """How the page of the server at an endpoint is served.

    `address` is where browsers reach it, port 0 for any free port; `option` gave it. `certificate` and `key` are files in PEM
    format for HTTPS. `hosts` are names, besides those of loopback, by which browsers may reach a page on loopback, such as a
    proxy's. With `invite`, the link to a page on loopback logs in its reader with the endpoint's own token: it is for a
    terminal, not for a log.
    """

    endpoint: Endpoint
    address: Address
    option: str = "--address"
    certificate: Path | None = None
    key: Path | None = None
    trust_network: bool = False
    hosts: Sequence[str] = ()
    invite: bool = False


class PageServer:
    """Serves the page. `link` is the address to open in a browser."""

    def __init__(self, config: PageConfig) -> None:
        self._check(config)
        self._config = config
        self._socket = _listening(config.address)
        port = self._socket.getsockname()[1]
        self.address = Address(config.address.host, port)
        loopback, secure = config.address.is_loopback, config.certificate is not None
        key = secrets.token_urlsafe(24) if config.invite and loopback and config.endpoint.metadata else None
        self.link = f"{'https' if secure else 'http'}://{self.address}/" + (f"#key={key}" if key else "")
        hosts = config.hosts if loopback else None
        self.page = Page(config.endpoint, port, key=key, hosts=hosts, secure=secure)
        try:
            self._server = uvicorn.Server(
                uvicorn.Config(
                    self.page.app,
                    lifespan="on",
                    log_config=None,
                    log_level="warning",
                    access_log=False,
                    server_header=False,
                    proxy_headers=False,
                    ws="none",
                    http=_Protocol,
                    loop="asyncio",
                    limit_concurrency=_MAX_CONNECTIONS,
                    h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
                    timeout_graceful_shutdown=_STOP_SECONDS,
                    ssl_certfile=config.certificate,
                    ssl_keyfile=config.key,
                )
            )
            self._server.config.load()
        except OSError as error:
            self._socket.close()
            raise invalid(Violation("--web-tls-cert", f"cannot use the certificate or its key: {error}")) from error
        self._thread = threading.Thread(target=self._run, name="thalweg-web", daemon=True)

    @staticmethod
    def _check(config: PageConfig) -> None:
        if (config.certificate is None) != (config.key is None):
            raise invalid(Violation("--web-tls-cert", "a certificate needs its key: give --web-tls-cert and --web-tls-key"))
        if not (config.address.is_loopback or config.certificate or config.trust_network):
            problem = (
                f"{config.address} can be reached from other machines, and tokens and passwords would travel in clear text; give "
                "--web-tls-cert and --web-tls-key; on a network that only trusted machines can reach, use --trust-network instead"
            )
            raise invalid(Violation(config.option, problem))

    def start(self) -> None:
        """Starts the thread. Connections wait until it serves."""
        self._thread.start()

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Ends all connections, and the thread."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


def _listening(address: Address) -> socket.socket:
    """A socket that listens at an address. Raises ThalwegError if that is not possible."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(128)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        problem = f"the page cannot listen at {address}: {error.strerror}; choose another address, port 0 for any free one"
        raise LocalError(problem) from error
    return listener
