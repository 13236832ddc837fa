"""Stored ratios, and whether measured ones have become worse. Times are those of a machine; ratios can be held against others."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.results import BASES

# By what share a ratio may be less than the stored one. Machines differ, and none is quiet.
TOLERANCE = 0.25


class Compared(NamedTuple):
    """A stored ratio, and the measured one, None if it was not measured."""

    name: str
    stored: float
    measured: float | None


def stored(results: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of results: the ratios of Thalweg's own systems."""
    workloads = {
        name: {kind: {system: round(ratio, 3) for system, ratio in _own(workload[kind]).items()} for kind in BASES}
        for name, workload in results["workloads"].items()
    }
    return {"tolerance": TOLERANCE, "cpu": _cpu(results), "workloads": workloads}


def _cpu(results: Mapping[str, Any]) -> str:
    return str(results.get("machine", {}).get("cpu", ""))


def _own(values: Mapping[str, float]) -> dict[str, float]:
    return {system: ratio for system, ratio in values.items() if system.startswith("thalweg")}


def store(results: Mapping[str, Any], file: Path) -> None:
    """Writes ratios, over those of the same workloads; others stay, if they are of the same processor."""
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"workloads": {}}
    new = stored(results)
    others = kept["workloads"] if kept.get("cpu", new["cpu"]) == new["cpu"] else {}
    document = new | kept | {"cpu": new["cpu"], "workloads": others | new["workloads"]}
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def compared(results: Mapping[str, Any], kept: Mapping[str, Any]) -> Iterator[Compared]:
    """Every stored ratio of the workloads that were measured."""
    for name, kinds in kept["workloads"].items():
        if name in results["workloads"]:
            for kind, values in kinds.items():
                for system, ratio in values.items():
                    yield Compared(f"{name}.{kind}.{system}", ratio, results["workloads"][name][kind].get(system))


def check(results: Mapping[str, Any], file: Path) -> tuple[bool, list[str]]:
    """Whether all ratios hold, and a line for each that does not or could not be compared."""
    kept = json.loads(file.read_text(encoding="utf-8"))
    tolerance = float(kept["tolerance"])
    lines, regressed, held = [], 0, 0
    for name, ratio, measured in compared(results, kept):
        if measured is None:
            lines.append(f"{name}: stored {ratio:.3f}, not measured")
        elif measured < ratio * (1 - tolerance):
            regressed += 1
            lines.append(f"{name}: stored {ratio:.3f}, measured {measured:.3f}, a regression by more than {tolerance:.0%}")
        else:
            held += 1
    lines.append(f"{held} ratios held, {regressed} regressed")
    if "cpu" in kept and kept["cpu"] != _cpu(results):
        lines.append(
            f"the stored ratios are of {kept['cpu']}, the measured ones of {_cpu(results)}: on another processor they "
            "are others; store those of the release to compare with on this one"
        )
    if not held and not regressed:
        lines.append(f"nothing that was measured is in {file}")
    return bool(held) and not regressed, lines
