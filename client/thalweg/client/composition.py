"""The composition root: servers, shards and fleets in this process, where the extras that they need are installed.

With `local_models`, the only module of the client that imports the server or the workers, and only inside its functions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from thalweg.client.problems import LocalError
from thalweg.contract.channel import Address
from thalweg.contract.errors import Violation, invalid

if TYPE_CHECKING:
    from thalweg.server.service import Server
    from thalweg.server.shard_server import ShardServer
    from thalweg.workers.fleet import Fleet


class RunningServer(Protocol):
    """A server in this process, for those who do not know the server's package."""

    address: Address

    def stop(self) -> None:
        """Stops it. Jobs that have not ended stay unfinished."""


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


def load_server() -> None:
    """Imports the server, which takes a moment. Raises ThalwegError if it is not installed."""
    with needs("server", "the server is"):
        import thalweg.server.service  # noqa: F401, PLC0415 - an extra


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
    except hosting.ExposedError as error:
        raise invalid(Violation("--address", str(error))) from error
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
    except hosting.ExposedError as error:
        raise invalid(Violation("--address", str(error))) from error
    except hosting.ServerStartError as error:
        raise LocalError(str(error)) from error
    return shard


def start_fleet(
    server: Address,
    token: str | None,
    *,
    ray_address: str | None = None,
    ray_token_file: Path | None = None,
    trust_network: bool = False,
    slots: int | None = None,
    name: str | None = None,
    check: Callable[[], object] = lambda: None,
) -> "Fleet":
    """A running fleet that attends on a server. Raises ThalwegError if Ray cannot be had, and what `check` raises meanwhile."""
    require_ray()
    with needs("workers", "the workers are"):
        from thalweg.workers.fleet import Fleet, FleetConfig, FleetError  # noqa: PLC0415 - an extra
    named = {"name": name} if name else {}
    fleet = Fleet(
        FleetConfig(
            server=server,
            token=token,
            ray_address=ray_address,
            ray_token_file=ray_token_file,
            trust_network=trust_network,
            slots=slots,
            **named,
        )
    )
    try:
        fleet.start(check)
    except FleetError as error:
        raise LocalError(str(error)) from error
    return fleet
