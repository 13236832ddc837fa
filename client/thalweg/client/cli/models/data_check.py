"""`thalweg data check`: what is in a file, what training makes of it, and a job to begin with."""

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from thalweg.client.cli.options import Json, Settings
from thalweg.client.cli.output import complain, console, print_json
from thalweg.client.first_job import Checked, check
from thalweg.learning.data.inspection import ArrayFound, ArraysFound, ColumnFound, TableFound, TargetFound

# Classes that are listed.
_MAX_CLASSES = 12
_MAX_SHOWN = 40


def data_check(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A CSV file, JSON lines, a Parquet or Arrow file or a folder of those, an .npz or .npy file, or a URL.",
            show_default=False,
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The column of targets; for x.npy the file of targets, y.npy.", show_default="the last column"
        ),
    ] = None,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Shows what is in a file, what training makes of it, and a job to begin with.

    Reads the file as training does, block by block. Exit code 1 if training
    could not read it.

    [bold]Examples[/]

    [cyan]thalweg data check trips.csv[/]
    [cyan]thalweg data check trips/ --target price --json[/]
    [cyan]thalweg data check values.csv --set data.header=false[/]
    """
    checked = check(file, target, settings or [])
    if json:
        print_json(_json(file, checked))
        return
    found, output = checked.found, console()
    if isinstance(found, TableFound):
        _show_table(file, found)
    else:
        _show_arrays(file, found)
    if not isinstance(found, ArrayFound):
        _show_target(found.target)
    if checked.job:
        output.print("\nA job to begin with, which thalweg train takes as a file:\n")
        output.print(checked.text.rstrip("\n"), markup=False, soft_wrap=True)
    elif isinstance(found, ArrayFound):
        complain("a job needs targets, too: name their file with --target")
    else:
        complain("no model can learn from this as it is: name another target with --target, or other features")


def _show_table(file: str, found: TableFound) -> None:
    output = console()
    output.print(f"{file}: {found.rows:,} rows, {len(found.columns):,} columns", markup=False, soft_wrap=True)
    if (how := found.written) is not None:
        names = "names in the first line" if how.header else "no names"
        after = f" after {how.skipped} lines" if how.skipped else ""
        text = f"written with delimiter {how.delimiter}, encoding {how.encoding}, decimal {how.decimal}, {names}{after}"
        output.print(text, markup=False, soft_wrap=True)
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("column", "type", "values", "missing", "training"):
        table.add_column(name, justify="right" if name == "missing" else "left")
    for column in found.columns:
        use = _use(column)
        missing = "" if column.missing is None else f"{column.missing:,}"
        table.add_row(*map(Text, (column.name, column.type, _values(column), missing, use)))
    output.print(table)


def _values(column: ColumnFound) -> str:
    if column.low is not None:
        return f"{_number(column.low)} … {_number(column.high)}"
    if column.distinct is not None:
        most = column.most_frequent or ""
        shown = most if len(most) <= _MAX_SHOWN else f"{most[:_MAX_SHOWN]}…"
        return f"{column.distinct:,} distinct, most often {shown!r}"
    return "many distinct" if column.prepare and column.type == "text" else ""


def _number(value: float | str | None) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _use(column: ColumnFound) -> str:
    if column.refused:
        return f"refused: {column.refused}"
    several = f", {column.features:,} features"
    match column.prepare:
        case "":
            # Of columns that are not used, nothing is read.
            return "not used" if column.missing is None else "target"
        case "none":
            return "0 or 1" if column.type == "boolean" else "number"
        case "one_hot":
            return f"one-hot{several}"
        case "hash" | "calendar":
            return f"{column.prepare}{several}"
        case other:
            return f"number, {other}"


def _show_target(target: TargetFound) -> None:
    if target.refused:
        text = f"refused: {target.refused}"
    elif target.classes:
        listed = [f"{name} ({count:,})" for name, count in target.classes.items()]
        more = f" and {len(listed) - _MAX_CLASSES:,} more" if len(listed) > _MAX_CLASSES else ""
        text = f"{len(listed):,} classes: {', '.join(listed[:_MAX_CLASSES])}{more}"
    else:
        text = "numbers" if target.values == 1 else f"{target.values:,} numbers"
    console().print(f"target {target.name}: {text}", markup=False, soft_wrap=True)


def _show_arrays(file: str, found: ArraysFound | ArrayFound) -> None:
    output = console()
    output.print(f"{file}:", markup=False, soft_wrap=True)
    for array in found.arrays if isinstance(found, ArraysFound) else (found,):
        values = "" if array.low is None else f", {_number(array.low)} … {_number(array.high)}"
        shape = " × ".join(map(str, array.shape))
        output.print(f"{array.name}: {shape}, {array.dtype}{values}", markup=False, soft_wrap=True)


def _json(file: str, checked: Checked) -> dict[str, Any]:
    found = checked.found
    answer: dict[str, Any] = {"file": file, "source": checked.source}
    if isinstance(found, TableFound):
        answer |= {"rows": found.rows, "written": found.written and found.written._asdict()}
        answer["columns"] = [column._asdict() for column in found.columns]
    else:
        arrays = found.arrays if isinstance(found, ArraysFound) else (found,)
        answer["arrays"] = [array._asdict() for array in arrays]
    if not isinstance(found, ArrayFound):
        answer["target"] = found.target._asdict() | {"classes": dict(found.target.classes)}
    return answer | {"job": checked.job or None, "job_file": checked.text or None}
