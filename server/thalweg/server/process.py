"""The server as a whole: its data folder, its jobs, its services."""

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from thalweg.contract import backups
from thalweg.contract import shared_memory as memory
from thalweg.contract.endpoint import Address
from thalweg.contract.locks import FileLock, LockedError
from thalweg.contract.release import release
from thalweg.contract.tls import ServerTls
from thalweg.server.access.limits import LimitTable
from thalweg.server.driving.jobs import Jobs
from thalweg.server.services.access import AccessService
from thalweg.server.services.cluster import ClusterService
from thalweg.server.services.fleet import FleetService
from thalweg.server.services.guarding.auditing import Audit, Unaudited
from thalweg.server.services.guarding.credentials import Credentials
from thalweg.server.services.guarding.guard import Guard
from thalweg.server.services.guarding.open_calls import OpenCalls
from thalweg.server.services.guarding.permits import Permits
from thalweg.server.services.guarding.quotas import Quotas
from thalweg.server.services.hosted import STOP_GRACE_SECONDS, Hosted, ServerStartError
from thalweg.server.services.parameter import JobReception, ParameterService
from thalweg.server.services.shard import ShardService
from thalweg.server.services.training import TrainingService
from thalweg.server.settings import CHECKPOINT_SECONDS, KEEP_UPLOADS_SECONDS, SILENCE_SECONDS, RunSettings
from thalweg.server.storage.audit_file import AuditFile
from thalweg.server.storage.folder import DataFolder
from thalweg.server.streams.memory_listener import Sharing
from thalweg.v1 import (
    access_service_pb2,
    access_service_pb2_grpc,
    cluster_service_pb2,
    cluster_service_pb2_grpc,
    fleet_service_pb2,
    fleet_service_pb2_grpc,
    parameter_service_pb2,
    shard_service_pb2,
    shard_service_pb2_grpc,
    training_service_pb2,
    training_service_pb2_grpc,
)

if TYPE_CHECKING:
    from thalweg.server.observing.server import ServerSource
    from thalweg.server.observing.tracing import Tracing

_log = logging.getLogger(__name__)
MAX_UPLOAD_BYTES = 1 << 30
UNLIMITED = LimitTable()
_SERVICES = {
    "thalweg.v1.TrainingService": training_service_pb2.DESCRIPTOR,
    "thalweg.v1.ClusterService": cluster_service_pb2.DESCRIPTOR,
    "thalweg.v1.FleetService": fleet_service_pb2.DESCRIPTOR,
    "thalweg.v1.ParameterService": parameter_service_pb2.DESCRIPTOR,
    "thalweg.v1.ShardService": shard_service_pb2.DESCRIPTOR,
    "thalweg.v1.AccessService": access_service_pb2.DESCRIPTOR,
}


class FolderInUseError(ServerStartError):
    """Another server uses the data folder."""


@dataclass(frozen=True)
class ServerConfig:
    """How a server runs. `data` is the folder in which it keeps all its state; `max_running_jobs` is 0 for no limit.

    Jobs that have not ended are resumed: all if `resume_unfinished`, else those that `kept` gives, called once the folder is
    locked. The others are recorded as interrupted.

    Uploads that no job uses are removed after `keep_uploads_seconds`, and the results of jobs that have ended, and that nobody
    keeps, after `keep_results_seconds`, if that is given.

    `shared_memory` is whether workers on this machine get parameters and give gradients in memory, where that is possible.
    `local_workers` is whether all workers are on this machine, so that they can read data where it lies.

    With `tls`, connections are encrypted, and clients may need a certificate; without, they are not.

    `allow_code` is whether jobs with code of their own are accepted, and get workers, on fleets that allow it too. The server
    itself never runs such code.

    `limits` is how much of the server submitters may use.

    `audit` is whether `audit.jsonl` in the data folder says who did what.

    `drained` is called, in the server's thread, when a server that is to end waits for nothing more: it is to be stopped then.

    `metrics` is where Prometheus finds metrics, and others whether the server is alive and ready, over HTTP. `traces` is the URL
    of a collector that gets traces of steps by OTLP; empty for none.
    """

    address: Address
    data: Path
    token: str | None = None
    trust_network: bool = False
    resume_unfinished: bool = True
    kept: Callable[[], Collection[str]] = frozenset
    max_upload_bytes: int = MAX_UPLOAD_BYTES
    silence_seconds: float = SILENCE_SECONDS
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    max_running_jobs: int = 0
    keep_uploads_seconds: float = KEEP_UPLOADS_SECONDS
    keep_results_seconds: float | None = None
    shared_memory: bool = True
    local_workers: bool = False
    allow_code: bool = False
    metrics: Address | None = None
    traces: str = ""
    drained: Callable[[], object] = lambda: None
    tls: ServerTls | None = None
    audit: bool = False
    limits: LimitTable = UNLIMITED


def _sharing(max_guests: int) -> Sharing | None:
    """Where workers on this machine get memory. None, and a word of warning, where there is no such thing."""
    try:
        return Sharing(max_guests) if memory.AVAILABLE else None
    except OSError as error:
        _log.warning("memory is not shared with workers on this machine: %s", error)
        return None


def _tracing(endpoint: str) -> "Tracing":
    from thalweg.server.observing.tracing import tracing_to  # noqa: PLC0415 - an extra, and takes a moment

    return tracing_to(endpoint)


def _source(jobs: Jobs) -> "ServerSource":
    from thalweg.server.observing.server import ServerSource  # noqa: PLC0415 - an extra, and takes a moment

    return ServerSource(jobs)


class Server(Hosted):
    """A parameter server in a thread of its own."""

    def __init__(self, config: ServerConfig) -> None:
        super().__init__(config.address, config.token, config.tls, config.metrics)
        self.config = config
        self.jobs: Jobs
        self.credentials: Credentials
        self._audit: Audit | None = None
        self._open_calls = OpenCalls()
        self._quotas: Quotas
        self._lock: FileLock | None = None

    def start(self) -> Address:
        """Starts the server and gives the address at which it listens. Raises ServerStartError if it cannot."""
        self._check_exposure(self.config.trust_network)
        self._check_folder()
        self._lock_folder()
        try:
            # Of a server that was killed: nobody should take it for this one's.
            with suppress(OSError):
                (self.config.data / "address").unlink()
            self._begin()
        except Exception:
            self._unlock_folder()
            raise
        data = self.config.data
        try:
            (data / "address").write_text(f"{self.address}\n")
        except OSError as error:
            self._end()
            raise ServerStartError(f"cannot write to the data folder {data}: {error.strerror}") from error
        return self.address

    def stop(self) -> None:
        """Stops the server. Jobs that have not ended stay unfinished."""
        if self._thread.is_alive():
            with suppress(OSError):
                (self.config.data / "address").unlink()
            self._end()

    def _end(self) -> None:
        super()._end()
        self._unlock_folder()

    def _check_folder(self) -> None:
        """Raises ServerStartError for a folder that a server must not change."""
        data = self.config.data
        if backups.is_backup(data):
            raise ServerStartError(
                f"{data} is a backup, which a server would change; make a data folder of it first: thalweg restore {data} FOLDER"
            )
        if backups.is_incomplete(data):
            raise ServerStartError(f"{data} is incomplete: the backup, or the restoration to it, did not end; repeat that")

    def _lock_folder(self) -> None:
        data = self.config.data
        try:
            data.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = FileLock.acquire(data / "lock")
        except LockedError as error:
            raise FolderInUseError(f"the data folder {data} is in use by another server; choose another with --data") from error
        except OSError as error:
            raise ServerStartError(f"cannot use the data folder {data}: {error.strerror}; choose another with --data") from error

    def _unlock_folder(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    async def _serve(self) -> None:
        try:
            storage = DataFolder(self.config.data, keep_uploads_seconds=self.config.keep_uploads_seconds)
        except Exception as error:
            raise ServerStartError(f"cannot use the data folder {self.config.data}: {error}") from error
        config = self.config
        runs = RunSettings(config.silence_seconds, config.checkpoint_seconds, config.allow_code, config.keep_results_seconds)
        sharing = _sharing(self._limits.guests) if self.config.shared_memory else None
        self.jobs = jobs = Jobs(storage, runs, self.config.max_running_jobs, sharing)
        tracing = _tracing(self.config.traces) if self.config.traces else None
        if tracing:
            jobs.lives.runs.watched = tracing.watched
        self.credentials = Credentials(self.config.token or None, storage, jobs, self._open_calls.end)
        self._quotas = Quotas(self.config.limits, storage, jobs)
        self._audit = Audit(AuditFile(self.config.data).write) if self.config.audit else None
        server = await self._build(jobs)
        kept = self.config.kept()
        try:
            self.address = self._listen(server)
            await self._observe(lambda: _source(jobs))
            try:
                await self.credentials.load()
                await jobs.start(self.config.resume_unfinished, kept)
            except Exception as error:
                raise ServerStartError(f"cannot use the data folder {self.config.data}: {error}") from error
            if self._audit:
                self._audit.start(release())
            await server.start()
            telling = [asyncio.create_task(work) for work in (self._tell_health(jobs), self._tell_drained(jobs))]
            self._started.set()
            await self._stop.wait()
            await jobs.write_checkpoints()
            jobs.stopping = True
            await server.stop(STOP_GRACE_SECONDS)
            for task in telling:
                task.cancel()
        finally:
            if self._audit:
                await self._audit.stop()
            await jobs.stop()
            if tracing:
                await asyncio.to_thread(tracing.close)
            if sharing:
                sharing.close()

    async def _tell_health(self, jobs: Jobs) -> None:
        """Serving means that what is asked for can be written down, and that the server is not about to end."""
        room, draining = jobs.journal.room, asyncio.create_task(jobs.cluster.draining.wait())
        try:
            while not draining.done():
                change = asyncio.create_task(room.change.wait())
                await self._set_health(serving=room.shortage is None)
                await asyncio.wait({change, draining}, return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
        finally:
            draining.cancel()
        await self._set_health(serving=False)

    async def _tell_drained(self, jobs: Jobs) -> None:
        await jobs.cluster.drained.wait()
        self.config.drained()

    def _guard(self) -> Guard:
        auditor = self._audit or Unaudited()
        permit, count = Permits(self.jobs).request, self._quotas.count_call
        return Guard(
            self.credentials.authenticate, self._doorkeeper, permit, open_calls=self._open_calls, audit=auditor, count=count
        )

    async def _build(self, jobs: Jobs) -> grpc.aio.Server:
        server = await self._grpc_server(_SERVICES)
        training = TrainingService(jobs, self._quotas, self.config.max_upload_bytes, self.config.local_workers)
        training_service_pb2_grpc.add_TrainingServiceServicer_to_server(training, server)
        cluster_service_pb2_grpc.add_ClusterServiceServicer_to_server(ClusterService(jobs), server)
        fleet_service_pb2_grpc.add_FleetServiceServicer_to_server(FleetService(jobs, self.credentials.worker_token), server)
        shard_service_pb2_grpc.add_ShardServiceServicer_to_server(ShardService(jobs, self.config.tls), server)
        access_service_pb2_grpc.add_AccessServiceServicer_to_server(AccessService(self.credentials), server)
        ParameterService(JobReception(jobs)).add_to(server)
        return server
