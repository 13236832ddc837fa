"""A picture of the results: for each workload, the steps per second of each system as a multiple of PyTorch DDP's.

The limits are left out: beside those of the smallest models no system could be seen.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.systems import SYSTEMS


def draw(results: Mapping[str, Any], file: Path) -> None:
    """Writes a chart as PNG or SVG, by the file's name."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    workloads = {name: one for name, one in results["workloads"].items() if one["ratio_to_ddp"]}
    shown = [name for name in SYSTEMS if not name.startswith("limit")]
    systems = [name for name in shown if any(name in one["ratio_to_ddp"] for one in workloads.values())]
    rows = sum(len(one["ratio_to_ddp"]) for one in workloads.values())
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.28 * rows), layout="constrained")
    colours = dict(zip(systems, plt.get_cmap("tab10").colors, strict=False))
    ticks, place = [], 0.0
    for name, one in workloads.items():
        first = place
        for system in (system for system in systems if system in one["ratio_to_ddp"]):
            ratio, base = one["ratio_to_ddp"][system], one["steps_per_second"]["ddp"]["median"]
            rate = one["steps_per_second"][system]
            spread = [[max(0.0, ratio - rate["min"] / base)], [max(0.0, rate["max"] / base - ratio)]]
            axes.barh(place, ratio, 0.85, xerr=spread, color=colours[system], ecolor="0.3", capsize=2)
            axes.text(
                rate["max"] / base, place, f"  {ratio:.2f}  ({tables.number(1000 / rate['median'])} ms)", va="center", fontsize=8
            )
            place += 1
        ticks.append(((first + place - 1) / 2, f"{name}\n" + one["title"].replace(", ", "\n", 1)))
        place += 1
    axes.axvline(1, color="0.3", linewidth=0.8)
    axes.set_yticks([tick for tick, _ in ticks], [label for _, label in ticks], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_xlim(left=0)
    axes.set_xlabel("steps per second ÷ PyTorch DDP's; in brackets: a step")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[system]) for system in systems]
    figure.legend(handles, [SYSTEMS[system].title for system in systems], loc="outside upper center", ncols=2, fontsize=8)
    figure.savefig(file, dpi=150)
    plt.close(figure)
