"""Commands for backups of a server's data folder: backup, restore."""

from pathlib import Path
from typing import Annotated

import typer

from thalweg.client.cli.bytes_bar import bytes_bar
from thalweg.client.cli.options import Json, user_path
from thalweg.client.cli.output import complain, console, print_json
from thalweg.client.composition import check_backup, make_backup, restore_backup
from thalweg.client.folders import served_folder
from thalweg.contract.backups import Manifest
from thalweg.contract.errors import Violation, invalid


def backup(
    target: Annotated[
        Path,
        typer.Argument(
            parser=user_path,
            metavar="DEST",
            help="The folder to make, where nothing may be. It should be on another disk.",
            show_default=False,
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            parser=user_path,
            metavar="FOLDER",
            help="The data folder of the server.",
            show_default="~/.local/share/thalweg/server",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Copies the data folder of a server, also while jobs run.

    To be called on the server's machine, as the server's user; the server
    takes no notice, and need not run. The copy has all jobs as they were at
    one moment, with their results, checkpoints and uploads. Until it is
    whole, its name ends in .partial. Restore it with [bold]thalweg restore[/].

    Exit code 1 if a file of the data folder is damaged: the backup is made
    without it, and the file is named.

    [bold]Examples[/]

    [cyan]thalweg backup /mnt/backups/2026-11-28[/]
    [cyan]thalweg backup /mnt/backups/monday --data /var/lib/thalweg --json[/]
    """
    with bytes_bar("copying") as bar:
        made = make_backup(data or served_folder(), target, bar)
    for problem in made.problems:
        complain(problem)
    if json:
        print_json({"backup": str(target)} | _told(made.manifest) | {"problems": list(made.problems)})
    else:
        console().print(f"{target}: {_words(made.manifest)}", markup=False)
    if made.problems:
        raise typer.Exit(1)


def restore(
    backup: Annotated[
        Path,
        typer.Argument(parser=user_path, metavar="BACKUP", help="A folder that thalweg backup has made.", show_default=False),
    ],
    folder: Annotated[
        Path | None,
        typer.Argument(
            parser=user_path, metavar="FOLDER", help="The data folder to make: an empty folder, or a new one.", show_default=False
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", metavar="", help="Only check that the backup is as it was made; make no folder.")
    ] = False,
    json: Json = False,
) -> None:
    """Makes a data folder of a backup. The backup stays as it is.

    Each file is checked against its SHA-256; if one is not as it was made,
    it is named, and nothing is restored. Then start the server on the
    folder: jobs that had not ended continue from their checkpoints.

    [bold]Examples[/]

    [cyan]thalweg restore /mnt/backups/monday /var/lib/thalweg[/]
    [cyan]thalweg restore /mnt/backups/monday --check[/]
    """
    if (folder is None) != check:
        raise invalid(Violation("FOLDER", "give the folder to make, or --check alone"))
    with bytes_bar("checking" if folder is None else "copying") as bar:
        manifest = check_backup(backup, bar) if folder is None else restore_backup(backup, folder, bar)
    if json:
        print_json({"backup": str(backup), "folder": folder and str(folder)} | _told(manifest))
    elif folder is None:
        console().print(f"{backup} is as it was made on {manifest.ended}: {_words(manifest)}", markup=False)
    else:
        console().print(f"{folder}: {_words(manifest)}; start it with: thalweg serve --data {folder}", markup=False)


def _told(manifest: Manifest) -> dict[str, object]:
    return {
        "jobs": manifest.jobs,
        "files": len(manifest.files),
        "bytes": manifest.size,
        "release": manifest.release,
        "data_format": manifest.data_format,
        "began": manifest.began,
        "ended": manifest.ended,
    }


def _words(manifest: Manifest) -> str:
    jobs = f"{manifest.jobs:,} job{'' if manifest.jobs == 1 else 's'}"
    return f"{jobs}, {len(manifest.files):,} files, {manifest.size:,} bytes"
