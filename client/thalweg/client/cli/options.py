"""The options that commands share, and their meanings."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from thalweg.client.cli.private import warn_if_open
from thalweg.client.cli.tls_files import given_tls
from thalweg.client.client import Client
from thalweg.client.files import check_not_pipe, reading
from thalweg.client.folder_server import attached, folder_of_jobs
from thalweg.client.folders import expanded
from thalweg.contract.addresses import is_url
from thalweg.contract.encoding import UTF8
from thalweg.contract.errors import Violation, invalid


def user_path(text: str) -> Path:
    """A path as it is typed: ~ stands for a home. Raises typer.BadParameter if it is empty."""
    if not text:
        raise typer.BadParameter("a path must not be empty")
    return expanded(text)


def user_path_or_url(text: str) -> str:
    """A URL as it is, or a path as `user_path` gives it."""
    return text if is_url(text) else str(user_path(text))


JobId = Annotated[
    str, typer.Argument(metavar="JOB", help="The id of a job, as [bold]thalweg jobs[/] lists it.", show_default=False)
]
JOB_SOURCE = "A packaged job (and, digits, nand, or, xor), or the path of a job file (TOML)."
JobSource = Annotated[str, typer.Argument(metavar="JOB", help=JOB_SOURCE, show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Overrides a value of the job, such as training.epochs=5 or optimizer.sgd.learning_rate=0.1. Can be repeated.",
        show_default=False,
    ),
]
Server = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="The server.",
        show_default="THALWEG_SERVER in the environment, else the jobs of this machine",
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        parser=user_path,
        metavar="FILE",
        help="The file that holds the server's token.",
        show_default="THALWEG_TOKEN in the environment",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        parser=user_path,
        metavar="FOLDER",
        help="The data folder of jobs that ran on this machine.",
        show_default="~/.local/share/thalweg/embedded",
    ),
]
Json = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON.")]


def server_of(server: str | None, data: Path | None) -> str | None:
    """The server of the options, None for this machine's own jobs. Raises ThalwegError if the options contradict each other."""
    if server and data:
        raise invalid(Violation("--data", "cannot be used with --server: a server has its own data folder"))
    return None if data else server or os.environ.get("THALWEG_SERVER") or None


def place_of(server: str | None, data: Path | None) -> str:
    """The place of the jobs, in words."""
    address = server_of(server, data)
    return f"the server at {address}" if address else f"this machine's own jobs, in {folder_of_jobs(data)}"


def read_token(token_file: Path | None) -> str | None:
    """The token of the options, if any. Raises ThalwegError if the file cannot be read or holds none."""
    if token_file is None:
        return _checked(os.environ.get("THALWEG_TOKEN", "").strip(), "THALWEG_TOKEN") or None
    return _read_file(token_file, "--token-file")


def check_token_file(token_file: Path | None, option: str) -> None:
    """Raises ThalwegError if a file with a token is given, and it cannot be read or holds none."""
    if token_file is not None:
        # Others read it again.
        check_not_pipe(expanded(token_file), option)
        _read_file(token_file, option)


def _read_file(token_file: Path, option: str) -> str:
    check_not_pipe(expanded(token_file), option, named_only=True)
    try:
        with reading(token_file, option):
            token = expanded(token_file).read_text(encoding=UTF8).strip()
    except UnicodeDecodeError as error:
        raise invalid(Violation(option, f"{token_file} is not a text file")) from error
    if not token:
        raise invalid(Violation(option, f"{token_file} is empty"))
    warn_if_open(expanded(token_file), option)
    return _checked(token, option)


def _checked(token: str, source: str) -> str:
    if not (token.isascii() and token.isprintable()):
        raise invalid(Violation(source, "a token is one line of printable ASCII characters"))
    return token


@contextmanager
def connected(server: str | None, token_file: Path | None, data: Path | None, writes: bool = False) -> Iterator[Client]:
    """A client of the options' server. `writes` says that it will change something there."""
    address, token = server_of(server, data), read_token(token_file)
    if address is None:
        with attached(data, token, writes, given_tls) as client:
            yield client
    else:
        with Client(address, token, tls=given_tls()) as client:
            yield client
