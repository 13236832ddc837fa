"""What a server and a shard have in common: an address, and a thread with an event loop in which everything happens."""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from thalweg.contract.channel import OPTIONS, Address, bind_to_process
from thalweg.server import limits
from thalweg.server.services.guard import TokenCheck

STOP_GRACE_SECONDS = 1.0


class ServerStartError(Exception):
    """The server cannot start; the message says why and what would do."""


class Hosted(ABC):
    """Serves gRPC in a thread of its own. `address` is where it listens, as soon as it does."""

    def __init__(self, address: Address, token: str | None) -> None:
        self.address = address
        self._token = token
        self._thread = threading.Thread(target=self._run, name="thalweg-server", daemon=True)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._failure: Exception | None = None
        self._limits = limits.limits()
        self._checks = health.aio.HealthServicer()
        self._services: tuple[str, ...] = ()

    @abstractmethod
    async def _serve(self) -> None:
        """Serves until `_stop` is set; sets `_started` when it does."""

    def _check_exposure(self, trust_network: bool) -> None:
        """Raises ServerStartError if others could come without a token."""
        if not (self.address.is_loopback or self._token or trust_network):
            raise ServerStartError(
                f"{self.address} can be reached from other machines, so it needs a token: set THALWEG_TOKEN or --token-file. "
                "On a network that only trusted machines can reach, --trust-network does without."
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
                runner.run(self._serve())
            except Exception as error:  # noqa: BLE001 - told to whoever starts the server
                self._failure = error
            finally:
                self._started.set()

    def _listen(self, server: grpc.aio.Server) -> Address:
        try:
            port = server.add_insecure_port(str(self.address))
        except RuntimeError as error:
            raise ServerStartError(
                f"cannot listen at {self.address}: the address is not this machine's, or the port is in use. "
                "Choose another with --address HOST:PORT, port 0 for any free one."
            ) from error
        return Address(self.address.host, port)

    async def _grpc_server(self, services: Iterable[str]) -> grpc.aio.Server:
        """A gRPC server that asks for the token, and tells of its health and of its services, which are to be added."""
        interceptors = [TokenCheck(self._token)] if self._token else []
        server = grpc.aio.server(options=[*OPTIONS, *limits.options(self._limits.connections)], interceptors=interceptors)
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
