"""Commands for jobs on a server: submit, watch, scale, cancel, delete."""

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from thalweg.client import records
from thalweg.client.cli.bytes_bar import bytes_bar
from thalweg.client.cli.display import display
from thalweg.client.cli.follow import follow
from thalweg.client.cli.options import (
    Data,
    JobId,
    JobSource,
    Json,
    Server,
    Settings,
    TokenFile,
    connected,
    place_of,
    read_token,
    server_of,
)
from thalweg.client.cli.output import accuracy_of, ago, complain, console, job_json, print_json
from thalweg.client.cli.signals import Inbox
from thalweg.client.cli.tls_files import given_tls
from thalweg.client.client import Client
from thalweg.client.job import Job
from thalweg.client.jobfile import load_job
from thalweg.client.records import Event
from thalweg.contract.errors import Violation, invalid
from thalweg.contract.states import state_name
from thalweg.v1 import job_pb2


def submit(
    job: JobSource,
    settings: Settings = None,
    server: Server = None,
    token_file: TokenFile = None,
    id: Annotated[  # noqa: A002 - the option's name
        str | None,
        typer.Option(metavar="ID", help="The id of the new job.", show_default="made from the job's name"),
    ] = None,
    shared: Annotated[bool, typer.Option("--share", metavar="", help="Let all others read the job.")] = False,
    json: Json = False,
) -> None:
    """Submits a job to a server, prints its id, and returns.

    [bold]Examples[/]

    [cyan]thalweg submit digits --server host:7070[/]
    [cyan]thalweg submit job.toml --set seed=8 --id second-try --server host:7070[/]
    """
    loaded = load_job(job, settings or [])
    meant, token = server_of(server, None), read_token(token_file)
    if meant is None:
        problem = (
            "a submitted job needs a running server; give its HOST:PORT (thalweg serve starts one; thalweg train needs none)"
        )
        raise invalid(Violation("--server", problem))
    with Client(meant, token, tls=given_tls()) as client, bytes_bar() as bar:
        accepted = client.submit(loaded, id=id, shared=shared, progress=bar)
    if json:
        print_json(job_json(accepted.message))
    else:
        console().print(accepted.id, markup=False)


def watch(
    job: JobId,
    server: Server = None,
    token_file: TokenFile = None,
    after: Annotated[int, typer.Option(min=0, metavar="N", help="Omit events up to this sequence number.")] = 0,
    data: Data = None,
    json: Json = False,
) -> None:
    """Shows a job until it ends. Ctrl-C leaves it running.

    With --json, prints one JSON object per line for each event. Exit code
    0 if the job succeeded, 1 if not.

    [bold]Examples[/]

    [cyan]thalweg watch digits-1 --server host:7070[/]
    [cyan]thalweg watch digits-1 --server host:7070 --json | jq .train_loss[/]
    """
    with connected(server, token_file, data) as client, Inbox() as inbox:
        watched = client.job(job)
        if json:
            follow(watched, inbox, lambda event: print_json(_event_json(event)), after)
        else:
            with display(watched.id) as screen:
                screen.say(watched.message.status)
                follow(watched, inbox, screen.show, after, screen.say)
    message = watched.message
    state = state_name(message.state)
    if state != "SUCCEEDED":
        reason = message.error or message.status
        complain(f"job {job} {'failed' if state == 'FAILED' else 'was cancelled'}" + (f": {reason}" if reason else ""))
    elif not json:
        result = records.result(message)
        validation = f", validation {accuracy_of(result.validation)}" if result.validation else ""
        console().print(f"{job} succeeded: {result.steps:,} steps{validation}", markup=False)
    raise typer.Exit(0 if state == "SUCCEEDED" else 1)


def _event_json(event: Event) -> dict[str, Any]:
    name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in type(event).__name__).lstrip("_")
    values = {key: value for key, value in asdict(event).items() if value is not None}
    return {"event": name} | values | {"time": event.time.isoformat()}


def scale(
    job: JobId,
    workers: Annotated[
        int | None,
        typer.Argument(metavar="WORKERS", min=0, help="The number of workers that the job requests; 0 pauses it."),
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(
            metavar="N", show_default="(stays as it is)", help="Jobs of higher priority start first and get workers first."
        ),
    ] = None,
    server: Server = None,
    token_file: TokenFile = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Changes the number of workers of a job, or its priority; its result stays the same.

    With 0, the job is paused and gives up its workers and its place in the
    queue. Scale it again to resume it.

    [bold]Examples[/]

    [cyan]thalweg scale digits-1 8 --server host:7070[/]
    [cyan]thalweg scale digits-1 0 --server host:7070[/]
    [cyan]thalweg scale digits-1 --priority 5 --server host:7070[/]
    """
    if workers is None and priority is None:
        raise typer.BadParameter("give a number of workers, or --priority N")
    with connected(server, token_file, data, writes=True) as client:
        scaled = client.job(job)
        note = scaled.scale(workers, priority)
    words = [f"has priority {priority}"] if priority is not None else []
    if workers is not None:
        words.append(f"wants {workers} worker{'' if workers == 1 else 's'}" if workers else "is paused; scale it again to go on")
    _print_state(scaled.message, ", and ".join(words), json)
    if note:
        complain(note)


def share(
    job: JobId,
    stop: Annotated[bool, typer.Option("--stop", metavar="", help="Let others no longer read it.")] = False,
    server: Server = None,
    token_file: TokenFile = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Lets all others with a token read a job, its weights, its data and its code.

    They cannot change it. Without this, submitters see their own jobs only.

    [bold]Examples[/]

    [cyan]thalweg share digits-1 --server host:7070[/]
    [cyan]thalweg share digits-1 --stop --server host:7070[/]
    """
    with connected(server, token_file, data, writes=True) as client:
        shared = client.job(job)
        shared.share(not stop)
    _print_state(shared.message, "is no longer shared" if stop else "is shared", json)


def cancel(job: JobId, server: Server = None, token_file: TokenFile = None, data: Data = None, json: Json = False) -> None:
    """Ends a job. The parameters trained so far are kept.

    [bold]Examples[/]

    [cyan]thalweg cancel digits-1 --server host:7070[/]
    """
    with connected(server, token_file, data, writes=True) as client:
        cancelled = client.job(job)
        state = cancelled.cancel()
    _print_state(cancelled.message, state.lower(), json)


def delete(
    jobs: Annotated[
        list[str],
        typer.Argument(metavar="JOB...", help="The ids of jobs, as [bold]thalweg jobs[/] lists them.", show_default=False),
    ],
    server: Server = None,
    token_file: TokenFile = None,
    data: Data = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", metavar="", help="Delete without asking.")] = False,
    json: Json = False,
) -> None:
    """Deletes jobs that have ended, with all their files and events.

    On a terminal, it lists what it will delete and asks first.

    [bold]Examples[/]

    [cyan]thalweg delete digits-1[/]
    [cyan]thalweg delete digits-1 digits-2 --yes --server host:7070[/]
    """
    with connected(server, token_file, data, writes=True) as client:
        found = [client.job(job) for job in dict.fromkeys(jobs)]
        if not yes and sys.stdin.isatty():
            _confirm(found, place_of(server, data))
        for job in found:
            job.delete()
            if json:
                print_json({"job": job.id, "deleted": True})
            else:
                console().print(f"{job.id} deleted", markup=False)


def _confirm(found: list[Job], place: str) -> None:
    """Asks whether to delete jobs. Raises typer.Abort if not."""
    now, terminal = datetime.now(UTC), console(stderr=True)
    terminal.print(f"From {place}:", markup=False, soft_wrap=True)
    for job in found:
        age = ago(job.message.create_time.ToDatetime(tzinfo=UTC), now)
        terminal.print(f"  {job.id}, {state_name(job.message.state).lower()}, begun {age}", markup=False)
    typer.confirm("Delete with weights, checkpoints and events?", abort=True, err=True)


def _print_state(message: job_pb2.Job, words: str, json: bool) -> None:
    if json:
        print_json(job_json(message))
    else:
        console().print(f"{message.id} {words}", markup=False)
