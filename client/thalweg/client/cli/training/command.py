"""`thalweg train`: a job from its submission to its weights, embedded or on a server."""

import shlex
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from thalweg.client.cli.options import JOB_SOURCE, Json, Server, Settings, TokenFile, read_token, server_of, user_path
from thalweg.client.cli.output import complain
from thalweg.client.cli.signals import Inbox
from thalweg.client.cli.tls_files import given_tls
from thalweg.client.cli.training.course import Outcome, Training
from thalweg.client.cli.training.summary import report
from thalweg.client.client import Client
from thalweg.client.embedded import Embedded
from thalweg.client.extras import require_ray
from thalweg.client.files import check_output
from thalweg.client.folder_server import folder_of_jobs
from thalweg.client.folders import embedded_folder
from thalweg.client.jobfile import load_job
from thalweg.client.settings import read_settings
from thalweg.client.weights import check_weights_name
from thalweg.contract.errors import Violation, invalid

Weights = Annotated[
    Path | None,
    typer.Option(
        parser=user_path,
        metavar="FILE",
        help="The safetensors file for the weights.",
        show_default="without a server, in the data folder; otherwise JOB.safetensors",
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--data",
        parser=user_path,
        metavar="FOLDER",
        help="The data folder of a job that runs on this machine.",
        show_default="~/.local/share/thalweg/embedded",
    ),
]


Source = Annotated[str | None, typer.Argument(metavar="[JOB]", help=JOB_SOURCE, show_default=False)]
Resume = Annotated[
    str | None,
    typer.Option(
        metavar="JOB",
        help="The id of a job that was cancelled, interrupted or failed, to resume from its last checkpoint.",
        show_default=False,
    ),
]


def train(
    job: Source = None,
    settings: Settings = None,
    resume: Resume = None,
    server: Server = None,
    token_file: TokenFile = None,
    weights: Weights = None,
    data: Folder = None,
    json: Json = False,
) -> None:
    """Trains a job and waits until it ends.

    Without --server, everything runs on this machine: a server, Ray, and
    the workers that the job requests. Ctrl-C ends the job and keeps the
    parameters trained so far; --resume continues from there, with another
    time limit if --set training.max_seconds=S is given (0 for none).

    [bold]Examples[/]

    [cyan]thalweg train digits[/]
    [cyan]thalweg train xor --set training.gradient=numerical[/]
    [cyan]thalweg train job.toml --set training.workers=4 --server host:7070[/]
    [cyan]thalweg train digits --json | jq .validation.accuracy[/]
    [cyan]thalweg train --resume digits-1[/]
    """
    begin = _begin(job, settings or [], resume)
    _check_weights(weights)
    meant, token = server_of(server, data), read_token(token_file)
    with Inbox() as inbox, ExitStack() as stack:
        if meant:
            training = Training(stack.enter_context(Client(meant, token, tls=given_tls())), inbox, weights)
            place = f" --server {shlex.quote(meant)}" if server else ""
        else:
            require_ray()
            folder = folder_of_jobs(data) if resume else data or embedded_folder()
            embedded = Embedded(folder, complain, inbox.check)
            stack.callback(embedded.close)
            training = Training(embedded.client, inbox, weights, embedded)
            place = embedded.place
        outcome = begin(training)
        code = report(outcome, place, json)
    raise typer.Exit(code)


def _begin(job: str | None, settings: list[str], resume: str | None) -> Callable[[Training], Outcome]:
    """The job to submit or to resume. Raises ThalwegError if it is not exactly one."""
    if resume is None:
        if job is None:
            raise invalid(Violation("JOB", "must be given: a packaged job or the path of a job file; or --resume and a job's id"))
        loaded = load_job(job, settings)
        return lambda training: training.run(loaded)
    if job is not None:
        raise invalid(Violation("--resume", f"resumes job {resume}, which has its own job file; leave out {job}"))
    max_seconds = _time_limit(settings)
    return lambda training: training.resume(resume, max_seconds)


def _time_limit(settings: list[str]) -> float | None:
    """The time limit of a job that is resumed, if one is set. Raises ThalwegError if something else is."""
    limit: float | None = None
    for path, value, _ in read_settings(settings):
        if path != "training.max_seconds":
            raise invalid(Violation("--set", "cannot be used with --resume: a resumed job keeps its settings"))
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise invalid(Violation(path, f"{value!r} is not a number of seconds"))
        limit = float(value)
    return limit


def _check_weights(weights: Path | None) -> None:
    """Fails before training starts, not after it, if the file cannot be written."""
    if weights is None:
        return
    check_output(weights, "--weights")
    if not weights.absolute().parent.is_dir():
        raise invalid(Violation("--weights", f"there is no folder {weights.parent}"))
    check_weights_name(weights, "--weights")
