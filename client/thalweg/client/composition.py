"""The composition root: servers, shards and fleets in this process, if the extras that they need are installed.

The only module of the client that imports the server or the workers, and only inside its functions.
"""

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from thalweg.client.errors import LocalError
from thalweg.client.extras import needs, require_ray
from thalweg.client.files import reading
from thalweg.contract import addresses
from thalweg.contract.backups import Manifest
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.contract.errors import Violation, invalid
from thalweg.v1 import job_pb2

if TYPE_CHECKING:
    from thalweg.client.web.hosting import PageServer
    from thalweg.learning.data import Dataset
    from thalweg.learning.objective import Objective
    from thalweg.server.access.limits import LimitTable
    from thalweg.server.process import Server
    from thalweg.server.sharding.process import ShardProcess
    from thalweg.server.storage.backup.making import Made
    from thalweg.workers.data_access import DataPolicy
    from thalweg.workers.ray.fleet import Fleet


class RunningServer(Protocol):
    """A server in this process, for modules that do not import the server's package."""

    address: Address

    def stop(self) -> None:
        """Stops it. Jobs that have not ended can be continued."""


class FolderInUseError(LocalError):
    """Another server uses the data folder."""


def load_server() -> None:
    """Imports the server, which takes a moment. Raises ThalwegError if it is not installed."""
    with needs("server", "the server is"):
        import thalweg.server.process  # noqa: F401, PLC0415 - an extra


def check_address(address: Address) -> None:
    """Raises ThalwegError if a server cannot listen at an address now."""
    with needs("server", "the server is"):
        from thalweg.server.services import hosted  # noqa: PLC0415 - an extra
    try:
        hosted.check_free(address)
    except hosted.ServerStartError as error:
        raise LocalError(str(error)) from error


def owner_limits(file: Path) -> "LimitTable":
    """The limits in a file, for a server. Raises ThalwegError if it cannot be read, or something is wrong in it."""
    with needs("server", "the server is"):
        from thalweg.server.access.limits import read_table  # noqa: PLC0415 - an extra
    with reading(file, "--limits"):
        text = file.read_bytes()
    try:
        content = tomllib.loads(text.decode())
    except ValueError as error:
        raise invalid(Violation("--limits", f"{file} is not a TOML file: {error}")) from error
    return read_table(content)


def start_server(address: Address, folder: Path, token: str | None, **settings: Any) -> "Server":
    """A running server. `settings` are those of ServerConfig.

    Raises ThalwegError if it cannot start: FolderInUseError if another server uses the folder.
    """
    with needs("server", "the server is"):
        from thalweg.server import process as service  # noqa: PLC0415 - an extra
        from thalweg.server.services import hosted  # noqa: PLC0415 - an extra
    _check_extras(settings)
    server = service.Server(service.ServerConfig(address=address, data=folder, token=token, **settings))
    try:
        server.start()
    except service.FolderInUseError as error:
        raise FolderInUseError(str(error)) from error
    except hosted.ExposedError as error:
        raise invalid(Violation(error.option, str(error))) from error
    except (hosted.ServerStartError, OSError) as error:
        raise LocalError(str(error)) from error
    return server


def _check_extras(settings: Mapping[str, Any]) -> None:
    """Raises ThalwegError if an option of a server or a shard needs what is not installed."""
    for setting, extra, module in (("metrics", "metrics", "prometheus_client"), ("traces", "tracing", "opentelemetry")):
        if settings.get(setting) and find_spec(module) is None:
            raise LocalError(f"what --{setting} needs is not installed ({module} is missing): pip install 'thalweg[{extra}]'")


def start_shard(address: Address, server: Endpoint, **settings: Any) -> "ShardProcess":
    """A running shard of a server, which may start later. `settings` are those of ShardConfig.

    Raises ThalwegError if it cannot start.
    """
    with needs("server", "the server is"):
        from thalweg.server.services import hosted  # noqa: PLC0415 - an extra
        from thalweg.server.sharding import process as shard_server  # noqa: PLC0415 - an extra
    _check_extras(settings)
    shard = shard_server.ShardProcess(shard_server.ShardConfig(address, server, **settings))
    try:
        shard.start()
    except hosted.ExposedError as error:
        raise invalid(Violation(error.option, str(error))) from error
    except hosted.ServerStartError as error:
        raise LocalError(str(error)) from error
    return shard


def data_policy(roots: Sequence[str] | None, urls: Sequence[str], cache_bytes: int | None) -> "DataPolicy":
    """What an operator says about the data of jobs.

    `roots` are the folders below which jobs may name files of nodes, None for all; `urls` the beginnings of URLs, all if there
    are none; `cache_bytes` what a node keeps of what nobody uses.
    """
    with needs("workers", "the workers are"):
        from thalweg.learning.data.remote.limits import Limits  # noqa: PLC0415 - for workers
        from thalweg.workers.data_access import DEFAULT_CACHE_BYTES, DataPolicy  # noqa: PLC0415 - an extra
    for option, wrong in [("--data-root", root) for root in roots or () if not Path(root).is_absolute()]:
        raise invalid(Violation(option, f"{wrong} is not an absolute path; it is looked for on each node"))
    for prefix in urls:
        if not addresses.is_url(prefix) or addresses.mistake(prefix) or prefix.startswith("file:"):
            raise invalid(Violation("--data-url", f"{prefix} is not the beginning of a URL, such as https://host/folder"))
    limits = Limits(None if roots is None else tuple(roots), tuple(urls) or None)
    return DataPolicy(limits, DEFAULT_CACHE_BYTES if cache_bytes is None else cache_bytes)


def start_page(server: Endpoint, address: Address, *, option: str = "--address", **settings: Any) -> "PageServer":
    """The running page of a server. `settings` are those of PageConfig. Raises ThalwegError if it cannot start.

    `option` is the one that gives the address, for errors.
    """
    with needs("web", "the page is"):
        from thalweg.client.web.hosting import PageConfig, PageServer  # noqa: PLC0415 - an extra
    page = PageServer(PageConfig(server, address, option, **settings))
    page.start()
    return page


def start_fleet(
    server: Endpoint,
    *,
    ray_address: str | None = None,
    ray_token_file: Path | None = None,
    trust_network: bool = False,
    slots: int | None = None,
    allow_code: bool = False,
    allow_requirements: bool = False,
    data: "DataPolicy | None" = None,
    name: str | None = None,
    check: Callable[[], object] = lambda: None,
) -> "Fleet":
    """A running fleet of a server. Raises ThalwegError if Ray cannot be used, and what `check` raises meanwhile.

    `allow_code` is whether its workers run code of jobs' authors, `allow_requirements` whether it installs packages for that.
    `data` is what jobs' data may use of nodes.
    """
    require_ray()
    with needs("workers", "the workers are"):
        from thalweg.workers.ray.config import FleetConfig  # noqa: PLC0415 - an extra
        from thalweg.workers.ray.fleet import Fleet, FleetError  # noqa: PLC0415 - an extra
    config = FleetConfig(
        server=server,
        ray_address=ray_address,
        ray_token_file=ray_token_file,
        trust_network=trust_network,
        slots=slots,
        allow_code=allow_code,
        allow_requirements=allow_requirements,
    )
    if data:
        config = replace(config, data=data)
    fleet = Fleet(replace(config, name=name) if name else config)
    try:
        fleet.start(check)
    except FleetError as error:
        raise LocalError(str(error)) from error
    return fleet


def completed(spec: job_pb2.JobSpec) -> job_pb2.JobSpec:
    """A copy of a specification with every default, as a server completes it. Raises ThalwegError if it is not right."""
    from thalweg.server import validation  # noqa: PLC0415 - the composition root

    return validation.complete(spec)


@contextmanager
def importable(spec: job_pb2.JobSpec, fetch: Callable[[str], Path]) -> Iterator[None]:
    """Within the context, a job's code can be run in this process, as workers run it. For code that the user has allowed.

    `fetch` gives the file that was uploaded under a SHA-256. Raises MistakeError if the code's archive is not right.
    """
    from thalweg.workers import code  # noqa: PLC0415 - the composition root

    with code.ready(spec, fetch, allowed=True):
        yield


def worker_bytes(spec: job_pb2.JobSpec, objective: "Objective", dataset: "Dataset") -> int:
    """The bytes of memory that a worker of this machine's server needs for a job besides its data."""
    from thalweg.workers import needs as takes  # noqa: PLC0415 - the composition root
    from thalweg.workers.differentiator import EVALUATION_BATCH  # noqa: PLC0415

    return takes.of_worker(spec, objective, len(dataset.train), EVALUATION_BATCH, shared=True)


def check_initial(layout: job_pb2.Layout, file: Path) -> None:
    """Raises ThalwegError if a model of this layout cannot start from the parameters in a file."""
    from thalweg.server.storage import initial  # noqa: PLC0415 - the composition root

    try:
        initial.initial_slab(layout, initial.read(file))
    except ValueError as error:
        raise invalid(Violation("model.initial.file", str(error))) from error


def make_backup(folder: Path, target: Path, progress: Callable[[int, int], object]) -> "Made":
    """Makes a backup of a data folder. `progress` gets the bytes that are copied, and those in all. Raises ThalwegError."""
    with needs("server", "the server is"):
        from thalweg.server.storage.backup import making  # noqa: PLC0415 - an extra
    with _backup_errors():
        return making.make(folder, target, progress)


def check_backup(backup: Path, progress: Callable[[int, int], object]) -> Manifest:
    """Reads all of a backup. Raises ThalwegError if it is not as it was made."""
    with needs("server", "the server is"):
        from thalweg.server.storage.backup import restoring  # noqa: PLC0415 - an extra
    with _backup_errors():
        return restoring.check(backup, progress)


def restore_backup(backup: Path, folder: Path, progress: Callable[[int, int], object]) -> Manifest:
    """Makes a data folder of a backup. Raises ThalwegError if that is not possible, and then has left nothing."""
    with needs("server", "the server is"):
        from thalweg.server.storage.backup import restoring  # noqa: PLC0415 - an extra
    with _backup_errors():
        return restoring.restore(backup, folder, progress)


@contextmanager
def _backup_errors() -> Iterator[None]:
    from thalweg.server.storage.backup.copying import BackupError  # noqa: PLC0415 - an extra

    try:
        yield
    except BackupError as error:
        raise LocalError(str(error)) from error
