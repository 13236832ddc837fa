"""The loss over one weight, with the path of training along it, as textbooks draw gradient descent."""

import math
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.client.job import Job
from thalweg.client.models import Landscape
from thalweg.client.plotting.figures import BLUE, FAINT, INK, dress, new_figure, title
from thalweg.client.records import Trajectory
from thalweg.contract import layout as layouts
from thalweg.contract.errors import Violation, invalid
from thalweg.contract.segments import Kind, end_of
from thalweg.contract.text import closest
from thalweg.v1 import job_pb2

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ELEMENT = re.compile(r"([^\[\]]+)\[\s*(\d+(?:\s*,\s*\d+)*)\s*\]")
_POINTS = 81
# The number of points of the path, besides its end, for which a slice is drawn.
_FAINT_CURVES = 4
# By which fraction of the path's width the slice is wider on each side.
_MARGIN = 0.45
# The half-width of a slice over a weight that hardly moved.
_MIN_REACH = 0.25
# The distance of the curves' labels, as a fraction of the figure's height.
_MIN_GAP = 0.04
# A slice whose height is less than this fraction of the figure's looks like a level line.
_FLAT = 0.2
# A path whose height is at most this fraction of the loss, or of 1, is level.
_LEVEL = 1e-9


@dataclass(frozen=True)
class Element:
    """One element of one tensor."""

    tensor: str
    index: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.tensor}[{','.join(map(str, self.index))}]"


class Slice(NamedTuple):
    """The loss over one weight.

    `values` and `losses` are the path, shape (versions). `grid` has the shape (points), `curves` (curves, points). Curve i
    has the other weights fixed at `bases[i]`, an index of the path; the last one is the path's end.
    """

    versions: tuple[int, ...]
    values: NDArray[np.float64]
    losses: NDArray[np.float64]
    grid: NDArray[np.float64]
    bases: tuple[int, ...]
    curves: NDArray[np.float64]


def parse_element(text: str) -> Element:
    """Reads `0.weight[3,5]`. Raises ThalwegError if the text has another form."""
    match = _ELEMENT.fullmatch(text.strip())
    if match is None:
        raise invalid(Violation("--slice", f"{text!r} names no weight; write TENSOR[I,J], as in 0.weight[3,5]"))
    return Element(match[1].strip(), tuple(int(number) for number in match[2].split(",")))


def most_moved(trajectory: Trajectory) -> Element:
    """The weight that training moved the most, from the first version to the last; if none moved, the largest one.

    Statistics and constants are not weights.
    """
    weights = end_of(Kind.PARAMETER, layouts.segments_of(trajectory.layout.tensors))
    way = trajectory.slabs[:, :weights].astype(np.float64)
    moved = np.abs(way[-1] - way[0])
    position = int((moved if moved.any() else np.abs(way[-1])).argmax())
    return Element(*layouts.element_at(trajectory.layout, position))


def locate(layout: job_pb2.Layout, element: Element) -> int:
    """The position of an element in the slab. Raises ThalwegError, which lists the tensors, if it does not exist."""
    try:
        return layouts.locate(layout, element.tensor, element.index)
    except KeyError:
        shapes = {tensor.name: tuple(tensor.shape) for tensor in layout.tensors}
        close = closest(element.tensor, shapes)
        hint = f"; did you mean {close}?" if close else ""
        known = ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items())) or "none"
        raise invalid(Violation("--slice", f"there is no tensor {element.tensor!r}{hint} (tensors: {known})")) from None
    except IndexError as error:
        raise invalid(Violation("--slice", f"{element} is outside: {error}; indices count from 0")) from None


def loss_slice(job: Job, element: Element | None = None) -> "Figure":
    """The figure of the loss over one weight: by default the one that training moved the most.

    Raises ThalwegError if it cannot be drawn.
    """
    figure = new_figure(7.2, 5.0)
    trajectory = job.trajectory()
    element = element or most_moved(trajectory)
    position = locate(trajectory.layout, element)
    with tempfile.TemporaryDirectory(prefix="thalweg-") as folder:
        landscape = Landscape(job.spec, lambda sha256: job.download_data(sha256, Path(folder)))
    found = measure(landscape, trajectory, position)
    if _is_flat(found):
        figure.set_size_inches(7.2, 6.4)
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        _draw_bottom(below, found)
        dress(below, str(element), "loss")
    else:
        axes = figure.subplots()
    _draw(figure, axes, found, "" if _is_flat(found) else str(element))
    samples = f"loss over {landscape.samples:,} training samples"
    title(
        figure,
        axes,
        f"{job.id}: the loss over one weight, and the way downhill",
        f"{samples}; all other weights kept as they were",
    )
    return figure


def measure(landscape: Landscape, trajectory: Trajectory, position: int) -> Slice:
    """The loss over the weight at a position of the slab, along the path of training and around it."""
    slabs = trajectory.slabs.astype(np.float64)
    values = slabs[:, position]
    low, high = float(values.min()), float(values.max())
    middle = (low + high) / 2
    # For a weight that did not move, the range from it to 0, and somewhat beyond, is shown.
    least = _MIN_REACH * max(1.0, abs(middle)) if high > low else max(1.0, 1.5 * abs(middle))
    reach = max((high - low) * (0.5 + _MARGIN), least)
    grid = np.linspace(middle - reach, middle + reach, _POINTS)
    last = len(values) - 1
    bases = tuple(dict.fromkeys(round(last * share / _FAINT_CURVES) for share in range(_FAINT_CURVES + 1)))
    return Slice(
        versions=trajectory.versions,
        values=values,
        losses=np.array([landscape.loss(slab) for slab in slabs]),
        grid=grid,
        bases=bases,
        curves=np.array([landscape.along(slabs[base], position, grid) for base in bases]),
    )


def _draw(figure: "Figure", axes: "Axes", found: Slice, name: str) -> None:
    low, high = _limits(found)
    labelled: list[float] = []
    for base, curve in zip(found.bases[:-1], found.curves[:-1], strict=True):
        axes.plot(found.grid, curve, color=FAINT, alpha=0.45, linewidth=1)
        apart = all(abs(curve[-1] - other) > _MIN_GAP * (high - low) for other in labelled)
        if apart and low < curve[-1] < high:
            labelled.append(float(curve[-1]))
            axes.annotate(
                f"step {found.versions[base]:,}",
                (found.grid[-1], curve[-1]),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                color=FAINT,
                annotation_clip=False,
            )
    axes.plot(found.grid, found.curves[-1], color=INK, linewidth=2.4, label="the slice at the end of training")
    axes.plot(found.values, found.losses, color=FAINT, linewidth=1, zorder=3)
    points = axes.scatter(
        found.values, found.losses, c=found.versions, cmap="viridis", s=26, zorder=4, edgecolors="white", linewidths=0.5
    )
    moved = len(found.versions) > 1
    for index, words in ((0, "start"), (-1, "end")) if moved else ():
        axes.annotate(
            words,
            (found.values[index], found.losses[index]),
            xytext=(8, 8),
            textcoords="offset points",
            fontsize=9,
            color=INK,
            fontweight="bold",
        )
    dress(axes, name, "loss")
    if moved:
        bar = figure.colorbar(points, ax=axes, pad=0.09, aspect=35)
        bar.set_label("step", color=INK, fontsize=10)
        bar.outline.set_visible(False)
        bar.ax.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)
    axes.set_ylim(low, high)
    axes.legend(frameon=False, fontsize=9, loc="best")


def _is_flat(found: Slice) -> bool:
    """Whether the slice at the end looks like a level line beside the whole path."""
    low, high = _limits(found)
    return float(np.ptp(found.curves[-1])) < _FLAT * (high - low)


def _draw_bottom(axes: "Axes", found: Slice) -> None:
    """Shows the slice at the end only: the valley in which the path ends."""
    axes.plot(found.grid, found.curves[-1], color=INK, linewidth=2.4)
    axes.plot([found.values[-1]], [found.losses[-1]], "o", color=BLUE, markersize=7, zorder=4)
    axes.set_title("the slice at the end of training, seen closely", loc="left", color=FAINT, fontsize=9)
    axes.ticklabel_format(axis="y", useOffset=False)


def _limits(found: Slice) -> tuple[float, float]:
    """Shows the whole path, and the parts of the curves that are not far above it."""
    finite = found.losses[np.isfinite(found.losses)]
    if np.ptp(finite) <= _LEVEL * max(1.0, abs(finite[-1])):
        # Nothing was learnt, as in a job without epochs: only the slice is shown.
        last = found.curves[-1][np.isfinite(found.curves[-1])]
        room = 0.06 * max(float(np.ptp(last)), _LEVEL * max(1.0, abs(finite[-1])))
        return float(last.min()) - room, float(last.max()) + room
    top, bottom = float(finite.max()), float(min(finite.min(), np.nanmin(found.curves)))
    room = max(top - bottom, 1e-12 * max(1.0, abs(top)), math.ulp(1.0))
    highest = float(np.nanmax(np.where(np.isfinite(found.curves), found.curves, -np.inf)))
    return bottom - 0.06 * room, min(highest + 0.06 * room, top + 0.6 * room)
