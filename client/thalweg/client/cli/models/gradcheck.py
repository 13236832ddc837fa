"""`thalweg gradcheck`: backpropagation compared with numerical differentiation, for a user's own job."""

from pathlib import Path
from tempfile import TemporaryDirectory

import typer
from rich.table import Table
from rich.text import Text

from thalweg.client.cli.options import JobSource, Json, Settings
from thalweg.client.cli.output import complain, console, print_json
from thalweg.client.jobfile import load_job
from thalweg.client.local_files import local_files
from thalweg.client.models import gradcheck as check


def gradcheck(job: JobSource, settings: Settings = None, json: Json = False) -> None:
    """Checks a job's gradients against numerical differentiation.

    Compares each tensor's gradient by backpropagation with central
    differences, in double precision, on the first training samples, near
    the initial parameters. Exit code 1 if a relative error is too large.
    Does not train. Runs the job's code, if any, on this machine. Needs the extra: pip install 'thalweg\\[workers]'

    [bold]Examples[/]

    [cyan]thalweg gradcheck job.toml[/]
    [cyan]thalweg gradcheck digits --json[/]
    """
    loaded = load_job(job, settings or [])
    with TemporaryDirectory(prefix="thalweg-code-") as folder:
        files = local_files(loaded, Path(folder))
        rows = check(loaded.spec, files.__getitem__, files.__getitem__)
    passed = all(row.passed for row in rows)
    if json:
        tensors = [row._asdict() | {"shape": list(row.shape), "passed": row.passed} for row in rows]
        print_json({"passed": passed, "tensors": tensors})
    else:
        table = Table(box=None, header_style="dim", pad_edge=False)
        for name in ("tensor", "shape", "checked", "absolute error", "relative error", ""):
            table.add_column(name, justify="left" if name in {"tensor", ""} else "right")
        for row in rows:
            verdict = Text("passed", "green") if row.passed else Text("failed", "bold red")
            errors = f"{row.absolute_error:.2e}", f"{row.relative_error:.2e}"
            table.add_row(row.tensor, " × ".join(map(str, row.shape)), f"{row.checked:,}", *errors, verdict)
        console().print(table)
    if not passed:
        complain(f"backpropagation differs from numerical differentiation in {sum(not row.passed for row in rows)} tensors")
        raise typer.Exit(1)
