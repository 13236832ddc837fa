"""The style of all figures, and how they are written to files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.client.errors import LocalError
from thalweg.client.extras import needs
from thalweg.client.files import write_whole
from thalweg.contract.errors import Violation, invalid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = (".png", ".svg", ".pdf")
INK = "#1f2933"
FAINT = "#8a95a3"
GRID = "#e4e8ed"
BLUE = "#2a6fbb"
ORANGE = "#d9772b"
GREEN = "#2f9e6e"


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of a size in inches, independent of other figures of this process."""
    with needs("plot", "matplotlib is"):
        try:
            from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
        except OSError as error:
            # matplotlib needs a folder for its cache.
            raise LocalError(str(error)) from error
    return Figure(figsize=(width, height), dpi=160, layout="constrained", facecolor="white")


def dress(axes: "Axes", x: str, y: str) -> None:
    """Removes lines that do not help to read the axes, and labels the axes."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(x, color=INK, fontsize=10)
    axes.set_ylabel(y, color=INK, fontsize=10)


def title(figure: "Figure", axes: "Axes", text: str, below: str) -> None:
    """Adds a title, and a line in a smaller font over the uppermost axes."""
    axes.set_title(below, loc="left", color=FAINT, fontsize=9)
    figure.suptitle(text, x=0.01, ha="left", color=INK, fontsize=12, fontweight="bold")


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure in the format of the file's suffix, completely or not at all. Raises ThalwegError."""
    if path.suffix.lower() not in PICTURES:
        raise invalid(Violation("path", f"{path.name}: the name of a picture must end in one of {', '.join(PICTURES)}"))
    write_whole(path, figure.savefig)
