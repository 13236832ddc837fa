"""The folders of this machine's jobs, and the servers that run on them."""

import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

from thalweg.client.errors import LocalError
from thalweg.contract.endpoint import Address, parse_address
from thalweg.contract.errors import Violation, invalid
from thalweg.contract.locks import FileLock

# The seconds within which a server that holds its folder's lock writes its address.
_START_SECONDS = 10.0
_LOOK_SECONDS = 0.05
_EMBEDDED_TOKEN = "token"  # noqa: S105 - the name of a file
# The token of `thalweg serve` on loopback.
SERVER_TOKEN = "server-token"  # noqa: S105 - the name of a file


AnyPath = str | os.PathLike[str]


def expanded(path: AnyPath) -> Path:
    """A path with ~ expanded; unchanged, if there is no such home. Raises ThalwegError if it is empty."""
    if not os.fspath(path):
        # Python takes it as the current folder.
        raise invalid(Violation("path", "is empty"))
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _data_home() -> Path:
    # The standard says to ignore a relative path, which would be another folder for each current one.
    chosen = Path(os.environ.get("XDG_DATA_HOME", ""))
    if chosen.is_absolute():
        return chosen / "thalweg"
    try:
        return Path.home() / ".local" / "share" / "thalweg"
    except RuntimeError as error:
        raise LocalError("this user has no home folder; choose a folder with --data") from error


def embedded_folder() -> Path:
    """The default data folder of embedded jobs. Raises LocalError if the user has no home."""
    return _data_home() / "embedded"


def is_usual(folder: Path) -> bool:
    """Whether a folder is a default one of embedded jobs."""
    try:
        return folder == embedded_folder()
    except LocalError:
        return False


def served_folder() -> Path:
    """The default data folder of `thalweg serve`. Raises LocalError if the user has no home."""
    return _data_home() / "server"


def _unusable(folder: Path, error: OSError) -> LocalError:
    return LocalError(f"cannot use the data folder {folder}: {error.strerror}; choose another with --data")


def folder_token(folder: Path, name: str = _EMBEDDED_TOKEN) -> str:
    """The token of the servers that run on a folder, by default embedded ones: made once, readable by this user only.

    Users who may read the folder may use its server; other users of the machine, who reach loopback, too, may not. Raises
    ThalwegError if the folder cannot be used.
    """
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            aside = folder / f"{name}-{secrets.token_hex(8)}"
            with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(24))
            # If two processes make one at the same time, both use the first one.
            with suppress(FileExistsError):
                os.link(aside, path)
            aside.unlink()
        return path.read_text()
    except OSError as error:
        raise _unusable(folder, error) from error


def is_locked(folder: Path) -> bool:
    """Whether a server uses a folder now. Raises LocalError if that cannot be determined."""
    try:
        return FileLock.is_held(folder / "lock")
    except OSError as error:
        raise _unusable(folder, error) from error


def has_token(folder: Path) -> bool:
    """Whether embedded servers ran on a folder. Raises LocalError if that cannot be determined."""
    try:
        return (folder / _EMBEDDED_TOKEN).exists()
    except OSError as error:
        raise _unusable(folder, error) from error


def running_server(folder: Path) -> Address:
    """The address of the server that runs on a folder. Raises ThalwegError if it is not written."""
    patience = time.monotonic() + _START_SECONDS
    while time.monotonic() < patience:
        with suppress(OSError, ValueError):
            return parse_address((folder / "address").read_text().strip())
        time.sleep(_LOOK_SECONDS)
    raise LocalError(f"a server uses the folder {folder}, but its address is not known")
