"""The server as a whole: its data folder, its address, its thread."""

import asyncio
import fcntl
import logging
import os
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from thalweg.contract import memory
from thalweg.contract.allocator import keep_freed
from thalweg.contract.channel import OPTIONS, Address
from thalweg.server.jobs import Jobs
from thalweg.server.services.fleet import FleetService
from thalweg.server.services.guard import TokenCheck
from thalweg.server.services.parameter import ParameterService
from thalweg.server.services.training import TrainingService
from thalweg.server.settings import CHECKPOINT_SECONDS, SILENCE_SECONDS, RunSettings
from thalweg.server.sharing import Sharing
from thalweg.server.storage import Storage
from thalweg.v1 import (
    fleet_service_pb2,
    fleet_service_pb2_grpc,
    parameter_service_pb2,
    training_service_pb2,
    training_service_pb2_grpc,
)

_log = logging.getLogger(__name__)
MAX_UPLOAD_BYTES = 1 << 30
_STOP_GRACE_SECONDS = 1.0
_SERVICES = {
    "thalweg.v1.TrainingService": training_service_pb2.DESCRIPTOR,
    "thalweg.v1.FleetService": fleet_service_pb2.DESCRIPTOR,
    "thalweg.v1.ParameterService": parameter_service_pb2.DESCRIPTOR,
}


class ServerStartError(Exception):
    """The server cannot start; the message says why and what would do."""


class FolderInUseError(ServerStartError):
    """Another server uses the data folder."""


@dataclass(frozen=True)
class ServerConfig:
    """How a server runs. `data` is the folder in which it keeps all its state; `max_running_jobs` is 0 for no limit.

    `shared_memory` is whether workers on this machine get parameters and give gradients in memory, where that is possible.
    """

    address: Address
    data: Path
    token: str | None = None
    trust_network: bool = False
    resume_unfinished: bool = True
    max_upload_bytes: int = MAX_UPLOAD_BYTES
    silence_seconds: float = SILENCE_SECONDS
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    max_running_jobs: int = 0
    shared_memory: bool = True


def _sharing() -> Sharing | None:
    """Where workers on this machine get memory. None, and a word of warning, where there is no such thing."""
    try:
        return Sharing() if memory.AVAILABLE else None
    except OSError as error:
        _log.warning("memory is not shared with workers on this machine: %s", error)
        return None


class Server:
    """A parameter server in a thread of its own."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self._thread = threading.Thread(target=self._run, name="thalweg-server", daemon=True)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._failure: Exception | None = None
        self._lock: int | None = None
        self.address = config.address

    def start(self) -> Address:
        """Starts the server and gives the address at which it listens. Raises ServerStartError if it cannot."""
        config = self.config
        if not (config.address.is_loopback or config.token or config.trust_network):
            raise ServerStartError(
                f"{config.address} can be reached from other machines, so it needs a token: set THALWEG_TOKEN or --token-file. "
                "On a network that only trusted machines can reach, --trust-network does without."
            )
        self._lock_folder()
        keep_freed()
        self._thread.start()
        self._started.wait()
        if self._failure:
            self._thread.join()
            self._unlock_folder()
            raise self._failure
        try:
            (config.data / "address").write_text(f"{self.address}\n")
        except OSError as error:
            self._end()
            raise ServerStartError(f"cannot write to the data folder {config.data}: {error.strerror}") from error
        return self.address

    def stop(self) -> None:
        """Stops the server. Jobs that have not ended stay unfinished."""
        if self._thread.is_alive():
            with suppress(OSError):
                (self.config.data / "address").unlink()
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._unlock_folder()

    def _lock_folder(self) -> None:
        data = self.config.data
        try:
            data.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ServerStartError(f"cannot use the data folder {data}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._unlock_folder()
            raise FolderInUseError(f"the data folder {data} is in use by another server; choose another with --data") from error

    def _unlock_folder(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:  # noqa: BLE001 - told to whoever starts the server
            self._failure = error
        finally:
            self._started.set()
            self._loop.close()

    async def _serve(self) -> None:
        try:
            storage = Storage(self.config.data)
        except Exception as error:
            raise ServerStartError(f"cannot use the data folder {self.config.data}: {error}") from error
        runs = RunSettings(self.config.silence_seconds, self.config.checkpoint_seconds)
        sharing = _sharing() if self.config.shared_memory else None
        jobs = Jobs(storage, runs, self.config.max_running_jobs, sharing)
        server = self._build(jobs)
        try:
            self.address = self._listen(server)
            try:
                await jobs.start(self.config.resume_unfinished)
            except Exception as error:
                raise ServerStartError(f"cannot use the data folder {self.config.data}: {error}") from error
            await server.start()
            self._started.set()
            await self._stop.wait()
            await server.stop(_STOP_GRACE_SECONDS)
        finally:
            await jobs.stop()
            if sharing:
                sharing.close()

    def _listen(self, server: grpc.aio.Server) -> Address:
        try:
            port = server.add_insecure_port(str(self.config.address))
        except RuntimeError as error:
            raise ServerStartError(
                f"cannot listen at {self.config.address}: the address is not this machine's, or the port is in use. "
                "Choose another with --address HOST:PORT, port 0 for any free one."
            ) from error
        return Address(self.config.address.host, port)

    def _build(self, jobs: Jobs) -> grpc.aio.Server:
        interceptors = [TokenCheck(self.config.token)] if self.config.token else []
        server = grpc.aio.server(options=list(OPTIONS), interceptors=interceptors)
        training = TrainingService(jobs, self.config.max_upload_bytes)
        training_service_pb2_grpc.add_TrainingServiceServicer_to_server(training, server)
        fleet_service_pb2_grpc.add_FleetServiceServicer_to_server(FleetService(jobs), server)
        ParameterService(jobs).add_to(server)
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        names = [*_SERVICES, ""]
        serving = health_pb2.HealthCheckResponse.SERVING
        settings: list[Coroutine[Any, Any, None]] = [checks.set(name, serving) for name in names]
        for setting in settings:
            self._loop.create_task(setting)
        reflection.enable_server_reflection([*_SERVICES, reflection.SERVICE_NAME], server)
        return server
