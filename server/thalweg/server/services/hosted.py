"""What a server and a shard have in common: an address, and a thread with an event loop in which everything happens."""

import asyncio
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from thalweg.contract.endpoint import OPTIONS, Address, bind_to_process
from thalweg.contract.tls import ServerTls
from thalweg.server.observing.calls import Calls
from thalweg.server.observing.https import Https
from thalweg.server.observing.pages import Pages
from thalweg.server.services.guarding import limits
from thalweg.server.services.guarding.certificates import Certificates
from thalweg.server.services.guarding.doorkeeper import Doorkeeper
from thalweg.server.services.guarding.guard import Admits, Guard, sole_token

if TYPE_CHECKING:
    from thalweg.server.observing.exposition import Source

STOP_GRACE_SECONDS = 1.0
_BEARER = "a token (--token-file, or THALWEG_TOKEN)"
_TLS = "TLS (--tls-cert and --tls-key; thalweg certs init DIR --server HOST makes the files)"


class ServerStartError(Exception):
    """The server cannot start; the message says why and what would do."""


class ExposedError(ServerStartError):
    """Others could come without a token, or read it on its way, at the address of an option."""

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(problem)
        self.option = option


class Hosted(ABC):
    """Serves gRPC in a thread of its own.

    `address` is where it listens, as soon as it does; `listening` is the same without names: one may stand for several addresses.
    `metrics` is where it can be observed over HTTP, None if it is not to be.
    """

    def __init__(self, address: Address, token: str | None, tls: ServerTls | None = None, metrics: Address | None = None) -> None:
        self.address = address
        self.metrics = metrics
        self.listening: tuple[Address, ...] = ()
        self._token = token
        self._tls = tls
        self._thread = threading.Thread(target=self._run, name="thalweg-server", daemon=True)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._failure: Exception | None = None
        self._limits = limits.limits()
        self._doorkeeper = Doorkeeper(self._limits.connections, lambda: {address.port for address in self.listening})
        self._watching: asyncio.Task[None] | None = None
        # Methods that workers call with tokens that are valid for nothing else.
        self._invitations: dict[str, Admits] = {}
        self._checks = health.aio.HealthServicer()
        self._services: tuple[str, ...] = ()
        self._calls = Calls()
        self._pages: Pages | None = None

    @abstractmethod
    async def _serve(self) -> None:
        """Serves until `_stop` is set; sets `_started` when it does."""

    def _check_exposure(self, trust_network: bool) -> None:
        """Raises ExposedError if others could come without a token, or read it on its way."""
        needed = [what for what, given in ((_BEARER, self._token), (_TLS, self._tls)) if not given]
        for option, address in (("--address", self.address), ("--metrics", self.metrics)):
            if address and needed and not (address.is_loopback or trust_network):
                raise ExposedError(
                    option,
                    f"{address} can be reached from other machines, so the server needs {' and '.join(needed)}; "
                    "on a network that only trusted machines can reach, use --trust-network instead",
                )

    def _begin(self) -> None:
        """Starts the thread, and waits until it serves. Raises whatever keeps it from that."""
        bind_to_process()
        self._thread.start()
        self._started.wait()
        if self._failure:
            self._thread.join()
            raise self._failure

    def _end(self) -> None:
        """Stops the thread, if it runs."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        # It also ends what is still under way behind, such as streams that were cancelled.
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._serve_observed())
            except Exception as error:  # noqa: BLE001 - raised where the server is started
                self._failure = error
            finally:
                self._started.set()

    async def _serve_observed(self) -> None:
        try:
            await self._serve()
        finally:
            if self._pages:
                self._pages.close()

    def _listen(self, server: grpc.aio.Server) -> Address:
        port, credentials = self.address.port, self._credentials()
        for host in _hosts(self.address.host):
            where = Address(host, port)
            try:
                port = server.add_secure_port(str(where), credentials) if credentials else server.add_insecure_port(str(where))
            except RuntimeError as error:
                raise _taken(self.address, where, "--address") from error
            self.listening += (Address(host, port),)
        return Address(self.address.host, port)

    def _guard(self) -> Guard:
        """What every call passes."""
        return Guard(sole_token(self._token or None), self._doorkeeper, invitations=self._invitations)

    def _credentials(self) -> grpc.ServerCredentials | None:
        """What the server shows its clients; None without TLS. Raises ServerStartError if something is wrong with the files."""
        try:
            return Certificates(self._tls).credentials() if self._tls else None
        except ValueError as error:
            raise ServerStartError(str(error)) from error

    async def _observe(self, source: "Callable[[], Source]") -> None:
        """Answers those who observe this process, if that is wanted, with what a source tells. Raises ServerStartError."""
        if self.metrics is None:
            return
        from thalweg.server.observing.exposition import Exposition  # noqa: PLC0415 - an extra, and takes a moment

        admits = (lambda _: True) if self.metrics.is_loopback else self._guard().may_watch
        https = Https(self._tls) if self._tls else None
        self._pages = Pages(Exposition(source(), self._calls, admits).pages, https)
        if https:
            await https.start()
        port = self.metrics.port
        for host in _hosts(self.metrics.host):
            try:
                port = await self._pages.listen(host, port)
            except OSError as error:
                raise _taken(self.metrics, Address(host, port), "--metrics") from error
        self.metrics = Address(self.metrics.host, port)

    async def _grpc_server(self, services: Iterable[str]) -> grpc.aio.Server:
        """A gRPC server with a guard, which reports its health and its services, which are to be added."""
        server = grpc.aio.server(
            options=[*OPTIONS, *limits.options(self._limits.connections)],
            interceptors=[self._calls, self._guard()],
        )
        self._watching = asyncio.create_task(self._doorkeeper.watch())
        health_pb2_grpc.add_HealthServicer_to_server(self._checks, server)
        self._services = (*services, "")
        await self._set_health(serving=True)
        reflection.enable_server_reflection([*services, reflection.SERVICE_NAME], server)
        return server

    async def _set_health(self, *, serving: bool) -> None:
        """Tells those who check whether the services can do what they are asked for."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._services:
            await self._checks.set(name, status)


def check_free(address: Address) -> None:
    """Raises ServerStartError if nothing can listen at an address now: to be asked before a folder is made for a server there."""
    for host in _hosts(address.host):
        try:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                # As gRPC does: a port whose last connections are still closing is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, address.port))
        except OSError as error:
            raise _taken(address, Address(host, address.port), "--address") from error


def _taken(address: Address, where: Address, option: str) -> ServerStartError:
    name = where if where.host == address.host else f"{where}, which {address.host} stands for"
    return ServerStartError(
        f"cannot listen at {name}: this machine does not have the address, or the port is in use. "
        f"Choose another with {option} HOST:PORT, port 0 for any free one."
    )


def _hosts(host: str) -> list[str]:
    """The IP addresses of this machine that a host's name stands for. gRPC calls it a success to listen at one of them.

    The host itself, if it is an IP address, or nothing is known of it.
    """
    found: dict[str, None] = {}
    with suppress(OSError):
        for family, _, _, _, (ip, *_) in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            # A name may stand for addresses that this machine does not have, as ::1 where there is no IPv6.
            with suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind((ip, 0))
                found[str(ip)] = None
    return list(found) or [host]
