"""The composition root: server and fleet in this process, for whoever has the extras that they need.

With `local_models`, the only module of the client that imports the server or the workers, and only inside its functions.
"""

import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.client.client import Client
from thalweg.client.folders import embedded_folder, folder_token, has_token, numbered, running_server
from thalweg.client.problems import LocalError
from thalweg.contract.channel import Address
from thalweg.contract.errors import Violation, invalid

if TYPE_CHECKING:
    from thalweg.server.service import Server
    from thalweg.server.shard_server import ShardServer
    from thalweg.workers.fleet import Fleet

_log = logging.getLogger(__name__)
_LOOPBACK = Address("127.0.0.1", 0)


class FolderInUseError(LocalError):
    """Another server uses the data folder."""


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Says which extra to install if an import within finds that it is not there. Raises ThalwegError."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("thalweg"):
            raise
        raise LocalError(f"{what} not installed ({error.name} is missing): pip install 'thalweg[{extra}]'") from error


def require_ray() -> None:
    """Raises ThalwegError if Ray is not installed."""
    if find_spec("ray") is None:
        raise LocalError("Ray is not installed: pip install 'thalweg[workers]'")


def start_server(address: Address, folder: Path, token: str | None, **settings: Any) -> "Server":
    """A running server. `settings` are those of ServerConfig.

    Raises ThalwegError if it cannot start: FolderInUseError if another server uses the folder.
    """
    with needs("server", "the server is"):
        from thalweg.server import hosting, service  # noqa: PLC0415 - an extra
    server = service.Server(service.ServerConfig(address=address, data=folder, token=token, **settings))
    try:
        server.start()
    except service.FolderInUseError as error:
        raise FolderInUseError(str(error)) from error
    except (hosting.ServerStartError, OSError) as error:
        raise LocalError(str(error)) from error
    return server


def start_shard(address: Address, server: Address, token: str | None, *, trust_network: bool = False) -> "ShardServer":
    """A running shard of a server, which need not run yet. Raises ThalwegError if it cannot start."""
    with needs("server", "the server is"):
        from thalweg.server import hosting, shard_server  # noqa: PLC0415 - an extra
    shard = shard_server.ShardServer(shard_server.ShardConfig(address, server, token, trust_network))
    try:
        shard.start()
    except hosting.ServerStartError as error:
        raise LocalError(str(error)) from error
    return shard


def start_fleet(
    server: Address,
    token: str | None,
    *,
    ray_address: str | None = None,
    slots: int | None = None,
    name: str | None = None,
) -> "Fleet":
    """A running fleet that attends on a server. Raises ThalwegError if Ray cannot be had."""
    require_ray()
    with needs("workers", "the workers are"):
        from thalweg.workers.fleet import Fleet, FleetConfig, FleetError  # noqa: PLC0415 - an extra
    named = {"name": name} if name else {}
    fleet = Fleet(FleetConfig(server=server, token=token, ray_address=ray_address, slots=slots, **named))
    try:
        fleet.start()
    except FleetError as error:
        raise LocalError(str(error)) from error
    return fleet


class Embedded:
    """A server in this process, on a folder, that only this machine's user can reach; and a fleet, once it is started.

    `own` says whether the folder's jobs run embedded, so that those that have not ended were interrupted. Else it is the folder
    of a `thalweg serve` that is not running, and they wait for it. `settings` are further ones of ServerConfig.
    """

    def __init__(self, folder: Path, own: bool = True, **settings: Any) -> None:
        self.folder = folder
        self._token = folder_token(folder) if own else secrets.token_urlsafe()
        server = start_server(_LOOPBACK, folder, self._token, resume_unfinished=not own, **settings)
        self._address = server.address
        self._stack = ExitStack()
        self._stack.callback(server.stop)
        self.client = self._stack.enter_context(Client(self._address, self._token))

    def start_fleet(self, slots: int) -> None:
        """Starts Ray with so many CPU slots, and workers on it as jobs want them."""
        fleet = start_fleet(self._address, self._token, slots=slots, name="embedded")
        self._stack.callback(fleet.stop)

    def close(self) -> None:
        """Stops the fleet, Ray and the server. Jobs that have not ended are interrupted."""
        self._stack.close()


def embed(folder: Path | None, notify: Callable[[str], None] = _log.warning, **settings: Any) -> Embedded:
    """An embedded server on a folder; by default on the usual one, or, while that is in use, on one beside it.

    `notify` is told of the latter; `settings` are those of ServerConfig. Raises ThalwegError if no server can be started.
    """
    usual = embedded_folder()
    for candidate in numbered(usual):
        try:
            embedded = Embedded(folder or candidate, **settings)
        except FolderInUseError:
            if folder:
                raise
            continue
        if embedded.folder not in (folder, usual):
            notify(f"{usual} is in use by another run; this one is kept in {embedded.folder}")
        break
    return embedded


def folder_of_jobs(folder: Path | None) -> Path:
    """The folder in which jobs are kept: the given one, or that of the embedded jobs. Raises ThalwegError if it is not there."""
    if folder and not folder.is_dir():
        raise invalid(Violation("--data", f"there is no folder {folder}"))
    return folder or embedded_folder()


@contextmanager
def attached(folder: Path | None, token: str | None = None) -> Iterator[Client]:
    """A client of the server that runs on a folder, or, if none does, of one that runs there for as long as the context.

    The folder is the embedded jobs' by default. Raises ThalwegError if there is no such folder, or none of both can be had.
    """
    own = folder is None or has_token(folder)
    folder = folder_of_jobs(folder)
    try:
        embedded = Embedded(folder, own)
    except FolderInUseError:
        with Client(running_server(folder), token or (folder_token(folder) if own else None)) as client:
            yield client
        return
    try:
        yield embedded.client
    finally:
        embedded.close()


@contextmanager
def local(workers: int = 2, data: str | Path | None = None, *, shared_memory: bool = True) -> Iterator[Client]:
    """A client of a server of its own, with Ray and `workers` CPU slots on this machine, all for as long as the context.

    `data` is the folder in which jobs are kept. Without `shared_memory` parameters and gradients travel over gRPC, as between
    machines; the result is the same. Raises ThalwegError if an extra that it needs,
    `server` or `workers`, is not installed, or if the folder is in use.
    """
    require_ray()
    embedded = embed(None if data is None else Path(data), shared_memory=shared_memory)
    try:
        embedded.start_fleet(workers)
        yield embedded.client
    finally:
        embedded.close()
