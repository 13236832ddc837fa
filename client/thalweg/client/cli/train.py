"""`thalweg train`: a job from its submission to its weights, embedded or on a server."""

import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from thalweg.client.cli.options import JobSource, Json, Server, Settings, TokenFile, read_token, server_of
from thalweg.client.cli.output import complain
from thalweg.client.cli.signals import Inbox
from thalweg.client.cli.summary import report
from thalweg.client.cli.training import Training
from thalweg.client.client import Client
from thalweg.client.folders import embedded_folder
from thalweg.client.jobfile import load_job
from thalweg.client.local import embed, require_ray
from thalweg.contract.errors import Violation, invalid

Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Where to write the weights (safetensors). If not given: embedded, the data folder; else JOB.safetensors here.",
        show_default=False,
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option("--data", metavar="FOLDER", help="Where to keep the job if it runs on this machine.", show_default=False),
]


def train(
    job: JobSource,
    settings: Settings = None,
    server: Server = None,
    token_file: TokenFile = None,
    weights: Weights = None,
    data: Folder = None,
    json: Json = False,
) -> None:
    """Trains a job and waits for its end.

    Without a server everything runs on this machine: a server, Ray, and
    as many workers as the job wants. Ctrl-C ends the job; what was learnt
    so far is kept.

    [bold]Examples[/]

    [cyan]thalweg train digits[/]
    [cyan]thalweg train xor --set training.gradient=numerical[/]
    [cyan]thalweg train job.toml --set training.workers=4 --server host:7070[/]
    [cyan]thalweg train digits --json | jq .validation.accuracy[/]
    """
    loaded = load_job(job, settings or [])
    _check_weights(weights)
    meant, token = server_of(server, data), read_token(token_file)
    with Inbox() as inbox, ExitStack() as stack:
        if meant:
            training = Training(stack.enter_context(Client(meant, token)), inbox, weights)
            place = f" --server {shlex.quote(meant)}" if server else ""
        else:
            require_ray()
            embedded = embed(data, complain)
            stack.callback(embedded.close)
            training = Training(embedded.client, inbox, weights, embedded)
            place = "" if embedded.folder == embedded_folder() else f" --data {shlex.quote(str(embedded.folder))}"
        outcome = training.run(loaded)
        code = report(outcome, place, json)
    raise typer.Exit(code)


def _check_weights(weights: Path | None) -> None:
    """Refuses a file that cannot be written before hours of training, and not behind them."""
    if weights and weights.is_dir():
        raise invalid(Violation("--weights", f"{weights} is a folder; give the path of a file"))
    if weights and not weights.absolute().parent.is_dir():
        raise invalid(Violation("--weights", f"there is no folder {weights.parent}"))
