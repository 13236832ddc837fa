"""How fast Thalweg trains, side by side with PyTorch DDP, Ray and the machine's limits; and how fast its parts are.

Each workload is trained by two synchronous workers of one BLAS thread, on each system in turn, in every repetition anew; counted
are steps per second once all is under way. Peers need an environment of their own: python -m benchmarks.peers install.
Absolute numbers are those of this machine at this moment; ratios are what counts. --check holds them against stored ones.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import chart, machine, regressions, results, suite, tables
from benchmarks.parts import PARTS, Part
from benchmarks.systems import SYSTEMS, ProgramError, System
from benchmarks.workloads import GROUPS, WORKLOADS, Workload


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    groups = "\n".join(f"  {name:<22} {', '.join(members)}" for name, members in GROUPS.items())
    workloads = "\n".join(f"  {name:<22} {workload.title}" for name, workload in WORKLOADS.items())
    parts = "\n".join(f"  {name:<22} {part.title}" for name, part in PARTS.items())
    systems = "\n".join(f"  {name:<22} {system.title}" for name, system in SYSTEMS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"workloads:\n{workloads}\n{groups}\n\nparts:\n{parts}\n\nsystems:\n{systems}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="workloads and parts of those below; without any, all workloads; 'all' is all of both",
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="how often each system is measured (default: 5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long steps are counted each time (default: 4)")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, metavar="SYSTEM", help="only these of those below")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--load", type=Path, metavar="FILE", help="measure nothing: take results that --json wrote")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw the ratios to DDP, as PNG or SVG")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables between the marks of a page")
    parser.add_argument("--store", type=Path, metavar="FILE", help="keep Thalweg's ratios for --check")
    parser.add_argument("--check", type=Path, metavar="FILE", help="exit code 1 if a ratio is worse than the stored one")
    given = parser.parse_args(argv)
    given.names = [name for given_name in given.names for name in GROUPS.get(given_name, [given_name])]
    known = [*WORKLOADS, *PARTS]
    for name in given.names:
        if name not in {*known, "all"}:
            parser.error(f"there is no workload and no part {name!r} (choose from {', '.join(known)}, all)")
    given.names = known if "all" in given.names else given.names or list(WORKLOADS)
    if given.check and not given.check.is_file():
        parser.error(f"--check: there is no file {given.check}; --store writes one")
    if given.repeats < 1:
        parser.error("--repeats: at least 1")
    return given


def measure(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measures, with a bar of progress. Ctrl-C ends it; the workloads and parts that were measured whole are kept."""
    systems = [SYSTEMS[name] for name in given.systems or SYSTEMS]
    workloads = [WORKLOADS[name] for name in given.names if name in WORKLOADS]
    parts = [PARTS[name] for name in given.names if name in PARTS]
    plan = {workload: [system for system in systems if system.measures(workload)] for workload in workloads}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    measured, measured_parts = {}, {}
    load = os.getloadavg()[0]
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=given.repeats * sum(map(len, plan.values())) + len(parts))

        def tell(workload: Workload, system: System, came: float | str | None) -> None:
            if came is None:
                progress.update(bar, description=f"{workload.name} on {system.name}")
            else:
                said = f"{came:,.1f} steps/s" if isinstance(came, float) else came.splitlines()[-1]
                progress.console.print(
                    f"{workload.name:<10} {system.name:<22} {said}", highlight=False, markup=False, soft_wrap=True
                )
                progress.advance(bar)

        interrupted = False
        try:
            for workload, chosen in plan.items():
                found = suite.measure(workload, chosen, given.repeats, given.seconds, tell)
                measured[workload.name] = results.of_workload(workload.title, found)
            for part in parts:
                progress.update(bar, description=part.name)
                measured_parts[part.name] = _of_part(part, given)
                progress.advance(bar)
        except KeyboardInterrupt:
            interrupted = True
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine.facts() | {"load_before": round(load, 2)},
        "repeats": given.repeats,
        "seconds": given.seconds,
        "workloads": measured,
        "parts": measured_parts,
        "interrupted": interrupted,
    }


def _of_part(part: Part, given: argparse.Namespace) -> dict[str, Any]:
    """What a part says, or why it says nothing: that is no reason to lose what was measured before."""
    try:
        return part.measure(given.seconds, given.repeats)
    except ProgramError as why:
        return {"title": part.title, "columns": ["not measured"], "rows": [[str(why).splitlines()[-1]]]}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and reports. Gives the exit code."""
    given = arguments(argv)
    console = Console(stderr=True)
    found = json.loads(given.load.read_text(encoding="utf-8")) if given.load else measure(given, console)
    tables.show(found, Console(width=max(console.width, 110)))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if given.chart:
        chart.draw(found, given.chart)
    if given.markdown:
        tables.write_markdown(found, given.markdown)
    holds = True
    if given.check:
        holds, lines = regressions.check(found, given.check)
        print("\n".join(lines))
    if given.store:
        regressions.store(found, given.store)
    return 130 if found.get("interrupted") else int(not holds)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
