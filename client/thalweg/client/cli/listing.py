"""The command that lists jobs, prints one job's story, or says how long its result is kept."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from thalweg.client import records
from thalweg.client.cli.options import Data, Json, Server, TokenFile, connected
from thalweg.client.cli.output import accuracy_of, ago, complain, console, job_json, print_json
from thalweg.client.job import Job
from thalweg.contract.errors import Violation, invalid
from thalweg.contract.states import state_name
from thalweg.v1 import job_pb2

# Whether a job is to be kept, by what is typed.
_KEPT = {"keep": True, "release": False}
_COLOURS = {"QUEUED": "yellow", "RUNNING": "cyan", "SUCCEEDED": "green", "FAILED": "red", "CANCELLED": "dim"}


def jobs(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[[story|keep|release] JOB]",
            help="The id of the only job to list; after [bold]story[/], the job whose recent decisions to show; after "
            "[bold]keep[/], the job whose result to keep for good, where the server has --keep-results; [bold]release[/] ends "
            "that.",
            show_default=False,
        ),
    ] = None,
    server: Server = None,
    token_file: TokenFile = None,
    data: Data = None,
    states: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            metavar="STATE",
            help=f"Only jobs in this state: {', '.join(state.lower() for state in _COLOURS)}. Can be repeated.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the newest N jobs.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Lists the jobs, the newest first.

    [bold]Examples[/]

    [cyan]thalweg jobs[/]
    [cyan]thalweg jobs --state running --state queued[/]
    [cyan]thalweg jobs digits-1 --server host:7070 --json[/]
    [cyan]thalweg jobs story digits-1[/]
    [cyan]thalweg jobs keep digits-1[/]
    """
    job, verb = _one_job(words or [])
    wanted = {_state(name) for name in states or ()}
    if job and (wanted or limit):
        raise invalid(Violation("JOB", f"{job} names one job; leave out --state and --limit"))
    with connected(server, token_file, data, writes=verb in _KEPT) as client:
        if job and verb == "story":
            _print_story(client.job(job), json)
            return
        if job and verb in _KEPT:
            _keep(client.job(job), _KEPT[verb], json)
            return
        found = [client.job(job)] if job else client.jobs()
    messages = [one.message for one in found if not wanted or state_name(one.message.state) in wanted][:limit]
    if json:
        print_json({"jobs": [job_json(message) for message in messages]})
    elif messages:
        console().print(_table(messages))
        for message in messages:
            if message.error and job:
                console().print(message.error, markup=False, soft_wrap=True)
    else:
        nothing = "no such jobs" if wanted else "no jobs yet; start one with [cyan]thalweg train digits[/]"
        console(stderr=True).print(nothing)


def _one_job(words: list[str]) -> tuple[str | None, str]:
    """The job that the arguments name, if they do, and what is to be done with it; empty to list it. Raises ThalwegError."""
    match words:
        case []:
            return None, ""
        case [job]:
            return job, ""
        case ["story" | "keep" | "release" as verb, job]:
            return job, verb
    raise invalid(Violation("JOB", f"expected JOB, story JOB, keep JOB or release JOB, not {' '.join(words)}"))


def _keep(job: Job, kept: bool, json: bool) -> None:
    job.keep(kept)
    if json:
        print_json(job_json(job.message))
    else:
        console().print(
            f"{job.id}: its result {'is kept for good' if kept else 'may be removed because of its age'}", markup=False
        )


def _print_story(job: Job, json: bool) -> None:
    entries = job.story()
    if json:
        told = [{"time": entry.time.isoformat(), "source": entry.source, "text": entry.text} for entry in entries]
        print_json({"job": job.id, "story": told})
    elif entries:
        for entry in entries:
            time = entry.time.astimezone().isoformat(" ", "milliseconds")
            console().print(f"{time}  {entry.source:<11}  {entry.text}", markup=False, highlight=False, soft_wrap=True)
    else:
        complain(f"the server has no story of {job.id}: the job ended before the server started, or too long ago")


def _state(name: str) -> str:
    """The state that a user names. Raises ThalwegError if no state has that name."""
    if name.upper() not in _COLOURS:
        raise invalid(Violation("--state", f"unknown state {name!r}; expected one of {', '.join(_COLOURS).lower()}"))
    return name.upper()


def _table(messages: list[job_pb2.Job]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    # Few jobs have a priority, and on many servers all jobs have one owner.
    priority = ["priority"] if any(message.spec.priority for message in messages) else []
    owner = ["owner"] if len({message.owner for message in messages}) > 1 else []
    for name in ("job", *owner, "state", "epochs", "loss", "validation", "workers", *priority, "began"):
        left = name in {"job", "owner", "state", "validation", "began"}
        # A shortened id could not be typed: on a narrow terminal, everything else is shortened first.
        least = max(len(message.id) for message in messages) if name == "job" else None
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "state", min_width=least)
    now = datetime.now(UTC)
    for message in messages:
        state, progress, result = state_name(message.state), records.progress(message.progress), records.result(message)
        running = state not in records.ENDED
        loss = result.train.loss if result.train else progress.loss
        words = f"{state}: {message.status}" if running and message.status else state
        table.add_row(
            message.id,
            *(f"{message.owner}{' (shared)' if message.shared else ''}" for _ in owner),
            Text(words, style=_COLOURS.get(state, "")),
            f"{result.epochs}/{message.spec.training.epochs}",
            "" if loss is None else f"{loss:.4g}",
            accuracy_of(result.validation or progress.validation),
            f"{progress.workers}/{message.spec.training.workers}" if running else "",
            *(str(message.spec.priority) for _ in priority),
            ago(message.create_time.ToDatetime(tzinfo=UTC), now),
        )
    return table
