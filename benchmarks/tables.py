"""Results as tables: for a terminal, and for the documentation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.results import BASES
from benchmarks.systems import SYSTEMS

BEGIN, END = "<!-- results: written by python -m benchmarks --markdown -->", "<!-- end of results -->"
_HEADS = ("system", "steps/s", "min to max", "ms a step", "÷ DDP", "÷ DDP, defaults", "÷ Ray", "of the limit")


def rows(workload: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each system that was measured."""
    return [_row(name, workload) for name in SYSTEMS if name in workload["steps_per_second"]]


def _row(name: str, workload: Mapping[str, Any]) -> tuple[str, ...]:
    rate = workload["steps_per_second"][name]
    compared = [f"{workload[kind][name]:.2f}" if name in workload[kind] else "" for kind in BASES]
    spread = f"{number(rate['min'])} to {number(rate['max'])}"
    return (SYSTEMS[name].title, number(rate["median"]), spread, number(1000 / rate["median"]), *compared)


def number(value: float) -> str:
    """A measured number, with as many digits as say something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cell(value: str | float) -> str:
    """A part's value: three digits are more than the noise leaves."""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else number(value)


def _part_rows(part: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [tuple(map(_cell, row)) for row in part["rows"]]


def show(results: Mapping[str, Any], console: Console) -> None:
    """Prints a table for each workload and each part."""

    def print_table(title: str, heads: Sequence[str], cells: list[tuple[str, ...]]) -> None:
        table = Table(title=title, title_justify="left")
        for place, head in enumerate(heads):
            table.add_column(head, justify="right" if place else "left")
        for row in cells:
            table.add_row(*row)
        console.print(table)

    for name, part in results["parts"].items():
        print_table(f"{name}: {part['title']}", part["columns"], _part_rows(part))
    for name, workload in results["workloads"].items():
        print_table(f"{name}: {workload['title']}", _HEADS, rows(workload))
        for system, why in workload["unavailable"].items():
            console.print(f"{SYSTEMS[system].title}: {why}", style="yellow", markup=False)


def markdown(results: Mapping[str, Any]) -> str:
    """The results as a section of a page."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in (machine["versions"] | machine["peers"]).items())
    lines = [f"Measured on {machine['usable_cores']} cores of {machine['cpu']}, with {versions}, Python {machine['python']}; "]
    lines[0] += f"medians of {results['repeats']}, {results['seconds']:g} s each."
    for name, workload in results["workloads"].items():
        lines += _table(f"**{name}**: {workload['title']}", _HEADS, rows(workload))
        missing = [f"{SYSTEMS[system].title}: {why.splitlines()[-1]}" for system, why in workload["unavailable"].items()]
        if missing:
            lines += ["", f"Not measured. {'; '.join(missing)}."]
    for name, part in results["parts"].items():
        lines += _table(f"**{name}**: {part['title']}", part["columns"], _part_rows(part))
    return "\n".join(lines)


def _table(title: str, heads: Sequence[str], cells: list[tuple[str, ...]]) -> list[str]:
    return ["", title, "", _line(heads), "|---|" + "---:|" * (len(heads) - 1), *map(_line, cells)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write_markdown(results: Mapping[str, Any], page: Path) -> None:
    """Puts the results between the marks of a page. Raises ValueError if it has none."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no place for results: a line {BEGIN} and a line {END}")
    page.write_text(f"{before}{BEGIN}\n\n{markdown(results)}\n\n{END}{after}", encoding="utf-8")
