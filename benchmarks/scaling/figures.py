"""The charts of the page."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.scaling.model import Model
from benchmarks.scaling.scenarios import COUNTS, ROUNDS, SHARDED, Scenarios
from benchmarks.scaling.simulator import simulate

_MAX_SIMULATED = 256
# Codecs whose lines can be told apart.
_SHOWN = ("float32", "bfloat16")
_COMPUTES = "part of the time in which a worker computes"


def check(found: Scenarios, axes: Any) -> None:
    """Measured steps as dots, simulated ones as lines; float32, one server, bulk."""
    plain = [
        one for one in found.checked() if (one.training.codec, one.training.servers, one.training.steps) == ("float32", 1, 1)
    ]
    for place, size in enumerate(sorted({one.training.elements for one in plain})):
        some = [one for one in plain if one.training.elements == size]
        workers = [one.training.workers for one in some]
        axes.plot(workers, [1000 * one.simulated for one in some], color=f"C{place}", label=f"{size:,} parameters")
        axes.plot(workers, [1000 * one.measured for one in some], "o", color=f"C{place}")
    axes.set(xlabel="workers", ylabel="ms a step", xscale="log", yscale="log")
    axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axes.set_yticks([20, 50, 100, 200], ["20", "50", "100", "200"])
    axes.set_title("dots: measured; lines: simulated", fontsize=9)


def workers(found: Scenarios, axes: Any) -> None:
    """The part of the time in which workers compute, on a fast network, by their number."""

    def line(label: str, colour: str, style: str, model: Callable[[int], Model]) -> None:
        models = [model(count) for count in COUNTS]
        axes.plot(COUNTS, [one.efficiency for one in models], style, color=colour, label=label)
        some = [one for one in models if one.training.workers <= _MAX_SIMULATED]
        shares = [one.compute / simulate(one) for one in some]
        axes.plot([one.training.workers for one in some], shares, "o", markersize=3, color=colour)

    line("tiny", "C0", "-", lambda count: found.lan("tiny", count))
    line("small", "C1", "-", lambda count: found.lan("small", count))
    for servers, style in zip(SHARDED, ("-", "--", ":"), strict=True):
        label = "wide" if servers == 1 else f"wide, {servers} servers"
        line(label, "C2", style, lambda count, servers=servers: found.lan("wide", count, servers=servers))  # type: ignore[misc]
    axes.set(xlabel="workers, a microbatch each", ylabel=_COMPUTES, xscale="log", yscale="log")
    _share(axes)
    axes.set_title("10 Gbit/s; lines: formula, dots: simulated", fontsize=9)


def wan(found: Scenarios, axes: Any) -> None:
    """The same over a slow network, by the steps of a round."""
    for workload, style in (("tiny", ":"), ("small", "-"), ("wide", "--")):
        for place, codec in enumerate(_SHOWN):
            shares = [found.wan(workload, steps, codec).efficiency for steps in ROUNDS]
            axes.plot(ROUNDS, shares, style, color=f"C{place}", marker="o", markersize=3, label=f"{workload}, {codec}")
    axes.set(xlabel="steps of a round; 1 is bulk", xscale="log", yscale="log", ylabel=_COMPUTES)
    axes.set_xticks(ROUNDS, [str(steps) for steps in ROUNDS])
    _share(axes)
    axes.set_title("8 workers, 100 Mbit/s, 50 ms", fontsize=9)


def _share(axes: Any) -> None:
    axes.set_ylim(1e-4, 1)
    axes.set_yticks([1e-4, 1e-3, 1e-2, 1e-1, 1], ["0.01%", "0.1%", "1%", "10%", "100%"])


FIGURES = {"scaling-check": check, "scaling-workers": workers, "scaling-wan": wan}


def draw(found: Scenarios, folder: Path) -> None:
    """Writes all charts into a folder, as PNG."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    for name, fill in FIGURES.items():
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        fill(found, axes)
        axes.grid(alpha=0.3, which="major")
        axes.minorticks_off()
        axes.legend(fontsize=8)
        figure.savefig(folder / f"{name}.png", dpi=150)
        plt.close(figure)
