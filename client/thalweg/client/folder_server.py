"""Servers on folders of jobs on this machine: finds a running one, or starts one."""

import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from thalweg.client import runs
from thalweg.client.client import Client
from thalweg.client.composition import FolderInUseError, RunningServer, start_server
from thalweg.client.errors import LocalError
from thalweg.client.files import check_folder
from thalweg.client.folders import embedded_folder, folder_token, has_token, is_locked, running_server
from thalweg.client.snapshot import copy_of, is_read_only
from thalweg.contract.endpoint import Address
from thalweg.contract.tls import Tls

_LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


def used_elsewhere(folder: Path) -> str:
    """The message that another server uses a folder."""
    address = ""
    with suppress(OSError):
        address = (folder / "address").read_text().strip()
    return f"the data folder {folder} is in use by another server; use it with --server {address or 'HOST:PORT'}, " + (
        "or choose another folder with --data"
    )


def _loopback() -> Address:
    """Any free port of this machine's loopback. Raises ThalwegError if none is free."""
    for family, host in _LOOPBACKS:
        with suppress(OSError), socket.socket(family) as probe:
            probe.bind((host, 0))
            return Address(host, 0)
    raise LocalError("this machine has neither 127.0.0.1 nor ::1, where a server could listen; bring them up: ip link set lo up")


def start_embedded_server(folder: Path, token: str, address: Address | None = None, **settings: Any) -> RunningServer:
    """Starts a server on a folder of embedded jobs, at `address`, or at the address at which the runs that are alive expect it.

    Raises ThalwegError if it cannot start: FolderInUseError if another server uses the folder.
    """
    places = [address] if address else [*{told.server for told in runs.told(folder) if told.server}, _loopback()]
    kept = partial(runs.jobs_of_the_living, folder)
    while True:
        place = places.pop(0)
        try:
            return start_server(
                place, folder, token, resume_unfinished=False, kept=kept, local_workers=True, allow_code=True, **settings
            )
        except FolderInUseError:
            raise
        except LocalError:
            if not places:
                raise


def folder_of_jobs(folder: Path | None) -> Path:
    """The folder of jobs: the given one, or that of embedded jobs. Raises ThalwegError if it cannot be read."""
    if folder:
        check_folder(folder, "--data")
    return folder or embedded_folder()


@contextmanager
def attached(
    folder: Path | None, token: str | None = None, writes: bool = False, tls: Callable[[], Tls | None] = lambda: None
) -> Iterator[Client]:
    """A client of the server that runs on a folder, or of one that is started there until the context exits.

    `tls` gives how a server is verified that was started on the folder by hand; embedded ones use no TLS.

    The folder is the embedded jobs' by default. A folder that cannot be written can be read, unless `writes` says that
    something will be changed. Raises ThalwegError if there is no such folder, or a server cannot start.
    """
    usual, folder = folder is None, folder_of_jobs(folder)
    own = has_token(folder) or usual
    # Another user's jobs may be read, but their code is not run.
    trusted = own and folder.is_dir() and folder.stat().st_uid == os.getuid()
    with ExitStack() as stack:
        if is_read_only(folder) and not is_locked(folder):
            if writes:
                raise LocalError(f"the data folder {folder} is read-only: its jobs can be listed but not changed")
            ours, settings = secrets.token_urlsafe(), {"resume_unfinished": not own}
            server: RunningServer = start_server(_loopback(), stack.enter_context(copy_of(folder)), ours, **settings)
        else:
            ours = folder_token(folder) if own else secrets.token_urlsafe()
            try:
                server = start_embedded_server(folder, ours) if own else start_server(_loopback(), folder, ours)
            except FolderInUseError:
                verified = None if own else tls()
                theirs = token or (ours if own else None)
                yield stack.enter_context(Client(running_server(folder), theirs, tls=verified, own=trusted))
                return
        stack.callback(server.stop)
        yield stack.enter_context(Client(server.address, ours, own=trusted))
