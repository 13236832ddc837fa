"""The command for the audit log of a server."""

from pathlib import Path
from typing import Annotated

import typer

from thalweg.client.cli.options import Json, user_path
from thalweg.client.cli.output import complain, console, print_json
from thalweg.client.errors import LocalError
from thalweg.contract.audit import BrokenError
from thalweg.contract.audit import verify as verify_files


def verify(
    files: Annotated[
        list[Path],
        typer.Argument(
            parser=user_path,
            metavar="FILE...",
            help="Files of an audit log, in their order: audit-*.jsonl, then audit.jsonl.",
            show_default=False,
        ),
    ],
    json: Json = False,
) -> None:
    """Verifies an audit log: whether each line follows from those before it.

    It names the first line that does not. It prints the chain of the last line:
    with one that was noted earlier, nobody can replace or shorten the log.

    [bold]Examples[/]

    [cyan]thalweg audit verify /var/lib/thalweg/audit.jsonl[/]
    [cyan]thalweg audit verify /var/lib/thalweg/audit-*.jsonl /var/lib/thalweg/audit.jsonl --json[/]
    """
    try:
        found = verify_files(files)
    except BrokenError as error:
        if json:
            print_json({"unbroken": False, "file": str(error.path), "line": error.line, "problem": error.problem})
        complain(error)
        raise typer.Exit(1) from error
    except OSError as error:
        raise LocalError(f"cannot read {error.filename}: {error.strerror}") from error
    if json:
        print_json({"unbroken": True, "lines": found.lines, "chain": found.chain})
    else:
        lines = f"{found.lines:,} line{'' if found.lines == 1 else 's'}"
        console().print(f"{lines}, unbroken; the last one has the chain {found.chain}", markup=False, soft_wrap=True)
