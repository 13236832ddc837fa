"""Commands for job files: a job's settings, and a file to start from."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from thalweg.client.cli.options import Data, Json, Server, TokenFile, connected, server_of, user_path
from thalweg.client.cli.output import console, print_json
from thalweg.client.files import check_output, write_whole
from thalweg.client.jobfile import load_job, packaged_job, packaged_jobs, toml_of
from thalweg.client.mapping import values_of
from thalweg.contract.errors import ThalwegError, Violation, invalid

_DEFAULT = "digits"


def show(
    job: Annotated[
        str,
        typer.Argument(
            metavar="JOB",
            help=f"The id of a job, as [bold]thalweg jobs[/] lists it, or a packaged job ({', '.join(packaged_jobs())}).",
            show_default=False,
        ),
    ],
    server: Server = None,
    token_file: TokenFile = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Prints a job's settings as a job file.

    A job of a server is printed with every default filled in: the file
    trains the same model again. A packaged job is printed unchanged.

    [bold]Examples[/]

    [cyan]thalweg show digits-1[/]
    [cyan]thalweg show digits-1 --server host:7070 > again.toml[/]
    [cyan]thalweg show xor --json[/]
    """
    try:
        with connected(server, token_file, data) as client:
            spec = client.job(job).spec
        text = toml_of(spec)
    except ThalwegError as error:
        if job not in packaged_jobs() or (error.reason != "JOB_NOT_FOUND" and server_of(server, data)):
            raise
        spec, text = load_job(job).spec, packaged_job(job)
    if json:
        print_json({"job": job, "settings": values_of(spec)})
    else:
        console().print(text.rstrip("\n"), markup=False, soft_wrap=True)


def init(
    job: Annotated[
        str, typer.Argument(metavar="[JOB]", help=f"The packaged job to start from: {', '.join(packaged_jobs())}.")
    ] = _DEFAULT,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", parser=user_path, metavar="FILE", help="The file to write.", show_default="JOB.toml"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", metavar="", help="Overwrite the file if it exists.")] = False,
    json: Json = False,
) -> None:
    """Writes a job file to start from.

    [bold]Examples[/]

    [cyan]thalweg init[/]
    [cyan]thalweg init xor -o mine.toml && thalweg train mine.toml[/]
    """
    if job not in packaged_jobs():
        raise invalid(Violation("JOB", f"unknown packaged job {job!r}; expected one of {', '.join(packaged_jobs())}"))
    path = (output or Path(f"{job}.toml")).absolute()
    check_output(path, "--output")
    if path.exists() and not force:
        raise invalid(Violation("--output", f"{path} exists; choose another file, or overwrite it with --force"))

    def write(aside: Path) -> None:
        aside.write_text(packaged_job(job), encoding="utf-8")

    write_whole(path, write)
    if json:
        print_json({"job": job, "file": str(path)})
    else:
        console().print(f"{path}: train it with `thalweg train {shlex.quote(path.name)}`", markup=False, soft_wrap=True)
