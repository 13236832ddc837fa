"""Results as tables: for a terminal, and for the documentation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.results import BASES
from benchmarks.systems import SYSTEMS

BEGIN, END = "<!-- results: written by python -m benchmarks --markdown -->", "<!-- end of results -->"
_HEADS = ("system", "steps/s", "min to max", "ms a step", "÷ DDP", "÷ Ray", "of the limit")


def rows(workload: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each system that was measured."""
    return [_row(name, workload) for name in SYSTEMS if name in workload["steps_per_second"]]


def _row(name: str, workload: Mapping[str, Any]) -> tuple[str, ...]:
    rate = workload["steps_per_second"][name]
    compared = [f"{workload[kind][name]:.2f}" if name in workload[kind] else "" for kind in BASES]
    spread = f"{_number(rate['min'])} to {_number(rate['max'])}"
    return (SYSTEMS[name].title, _number(rate["median"]), spread, f"{1000 / rate['median']:.3g}", *compared)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def show(results: Mapping[str, Any], console: Console) -> None:
    """Prints a table for each workload."""
    for name, workload in results["workloads"].items():
        table = Table(title=f"{name}: {workload['title']}", title_justify="left")
        for head in _HEADS:
            table.add_column(head, justify="left" if head == "system" else "right")
        for row in rows(workload):
            table.add_row(*row)
        console.print(table)
        for system, why in workload["unavailable"].items():
            console.print(f"{SYSTEMS[system].title}: {why}", style="yellow", markup=False)


def markdown(results: Mapping[str, Any]) -> str:
    """The results as a section of a page."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in (machine["versions"] | machine["peers"]).items())
    lines = [f"Measured on {machine['usable_cores']} cores of {machine['cpu']}, with {versions}, Python {machine['python']}; "]
    lines[0] += f"medians of {results['repeats']}, {results['seconds']:g} s each."
    for name, workload in results["workloads"].items():
        lines += ["", f"**{name}**: {workload['title']}", "", _line(_HEADS), "|---|" + "---:|" * (len(_HEADS) - 1)]
        lines += [_line(row) for row in rows(workload)]
        missing = [f"{SYSTEMS[system].title}: {why.splitlines()[-1]}" for system, why in workload["unavailable"].items()]
        if missing:
            lines += ["", f"Not measured. {'; '.join(missing)}."]
    return "\n".join(lines)


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def write_markdown(results: Mapping[str, Any], page: Path) -> None:
    """Puts the results between the marks of a page. Raises ValueError if it has none."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no place for results: a line {BEGIN} and a line {END}")
    page.write_text(f"{before}{BEGIN}\n\n{markdown(results)}\n\n{END}{after}", encoding="utf-8")
