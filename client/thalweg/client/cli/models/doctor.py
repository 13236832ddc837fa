"""`thalweg doctor`: whether a job's tasks have the same bits however they are computed."""

import typer

from thalweg.client.cli.options import JobSource, Json, Settings
from thalweg.client.cli.output import complain, console, print_json
from thalweg.client.doctor import examine
from thalweg.client.jobfile import load_job


def doctor(job: JobSource, settings: Settings = None, json: Json = False) -> None:
    """Checks that a job's tasks have the same bits each time.

    Computes a few tasks several times: in two processes, in another order,
    beside another load, with dropout and buffers as in training. Says "the
    same bits", or names the first module, gradient or buffer that differs,
    and what to do. Exit code 1 if something differs. Runs the job's code on
    this machine. Needs the extra: pip install 'thalweg\\[workers]'

    [bold]Examples[/]

    [cyan]thalweg doctor job.toml[/]
    """
    loaded = load_job(job, settings or [])
    with console(stderr=True).status("") as status:
        found = examine(loaded, status.update)
    difference = found.difference
    if json:
        told = {"step": difference.step, "microbatch": difference.microbatch} if difference else {}
        shown = difference and told | {"what": difference.what, "name": difference.name, "when": difference.when}
        counts = {"tasks": found.tasks, "times": found.times}
        print_json({"same_bits": difference is None, **counts, "difference": shown, "notice": found.notice})
    elif difference is None:
        console().print(f"the same bits: {found.tasks} tasks, each computed {found.times} times in 2 processes")
    if found.notice:
        complain(found.notice)
    if difference:
        complain(difference)
        raise typer.Exit(1)
