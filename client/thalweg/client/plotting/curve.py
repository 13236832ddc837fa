"""The learning curve: training loss, validation loss and accuracy."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.client.errors import LocalError
from thalweg.client.job import Job
from thalweg.client.plotting.figures import BLUE, GREEN, ORANGE, dress, new_figure, title
from thalweg.client.records import EpochEnded, Event, StepsTaken

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = NDArray[np.float64]

# With more points, the range of neighbouring points is drawn.
_MAX_POINTS = 4000
# A loss that falls by more than this factor is drawn on a logarithmic scale.
_LOGARITHMIC = 30.0


class History(NamedTuple):
    """A job's course. `steps` has the shape (2, n): epochs, as fractions, and the loss of each step, or the mean of several steps
    in their middle. The others are by epoch.
    """

    steps: Curve
    train: Curve
    validation: Curve
    accuracy: Curve


def learning_curve(job: Job) -> "Figure":
    """The figure of a job's course up to now. Raises ThalwegError if there is nothing to draw, or matplotlib is missing."""
    figure = new_figure(7.2, 4.2)
    history = course(job.history())
    if not history.steps.size:
        raise LocalError(f"job {job.id} has taken no steps, so it has no learning curve")
    if history.accuracy.size:
        figure.set_size_inches(7.2, 6.0)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        _draw_accuracy(lower, history)
    else:
        upper = lower = figure.subplots()
    _draw_loss(upper, history)
    dress(upper, "", f"loss ({job.spec.model.loss.replace('_', ' ')})")
    lower.set_xlabel("epoch")
    done = job.last_result()
    lower.set_xlim(0, max(1.0, history.steps[0, -1], *history.accuracy[0], *history.validation[0]))
    title(
        figure,
        upper,
        f"{job.id}: learning curve",
        f"{job.state.lower()} after {_count(done.epochs, 'epoch')} and {_count(done.steps, 'step')}",
    )
    return figure


def course(events: Sequence[Event]) -> History:
    """The course of a job from its events; for steps that were repeated, the last report."""
    # The first steps of losses, in rising order, and the middles of their steps with the losses.
    firsts: list[int] = []
    points: list[tuple[float, float]] = []
    epochs: dict[int, EpochEnded] = {}
    per_epoch = 1.0
    for event in events:
        if isinstance(event, StepsTaken):
            # A step that is reported again, by a resumed job or in a merged event, replaces the earlier report.
            known = bisect_left(firsts, event.first_step)
            del firsts[known:], points[known:]
            for span, loss in zip(event.spans(), event.losses, strict=True):
                firsts.append(span.start)
                points.append(((span.start + span.stop - 1) / 2, loss))
            if event.progress.total_epochs:
                per_epoch = event.progress.total_steps / event.progress.total_epochs
        elif isinstance(event, EpochEnded):
            epochs[event.epoch] = event
    ends = [epochs[number] for number in sorted(epochs)]
    return History(
        # The loss of a step was measured before its update.
        steps=_curve((step / per_epoch, loss) for step, loss in points),
        train=_curve((end.epoch - 0.5, end.train_loss) for end in ends),
        validation=_curve((end.epoch, end.validation.loss) for end in ends if end.validation),
        accuracy=_curve(
            (end.epoch, end.validation.accuracy) for end in ends if end.validation and end.validation.accuracy is not None
        ),
    )


def _curve(points: Iterable[tuple[float, float]]) -> Curve:
    return np.array(list(points), np.float64).reshape(-1, 2).T


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _draw_loss(axes: "Axes", history: History) -> None:
    steps = _thinned(history.steps)
    axes.plot(*steps, color=BLUE, alpha=0.28, linewidth=0.8, label="training, each step")
    # A mean over an epoch is drawn in the middle of the epoch.
    if history.train.size:
        marker = "o" if history.train.shape[1] <= 40 else ""
        axes.plot(*history.train, color=BLUE, linewidth=2, marker=marker, markersize=3.5, label="training, mean of the epoch")
    if history.validation.size:
        axes.plot(*history.validation, color=ORANGE, linewidth=2, label="validation")
    values = np.concatenate([curve[1] for curve in (history.steps, history.train, history.validation) if curve.size])
    if values.min() > 0 and values.max() / values.min() > _LOGARITHMIC:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0 if values.min() >= 0 else None)
    axes.legend(frameon=False, fontsize=9, loc="upper right")


def _draw_accuracy(axes: "Axes", history: History) -> None:
    axes.plot(*history.accuracy, color=GREEN, linewidth=2)
    dress(axes, "epoch", "validation accuracy")
    low = float(history.accuracy[1].min())
    # The interesting part is near the top.
    axes.set_ylim(max(0.0, math.floor(low * 20) / 20 - 0.05), 1.005)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share * 100:g} %")
    best = int(history.accuracy[1].argmax())
    epoch, accuracy = history.accuracy[:, best]
    axes.plot([epoch], [accuracy], "o", color=GREEN, markersize=5, label=f"best {accuracy * 100:.1f} %, epoch {epoch:.0f}")
    # The curve rises, so the lower right is free.
    axes.legend(frameon=False, fontsize=9, loc="lower right", labelcolor=GREEN)


def _thinned(curve: Curve) -> Curve:
    """A curve of at most `_MAX_POINTS` points that covers the same range as the whole curve."""
    if curve.shape[1] <= _MAX_POINTS:
        return curve
    groups = np.array_split(np.arange(curve.shape[1]), _MAX_POINTS // 2)
    points = [(curve[0, group[0]], extreme) for group in groups for extreme in (curve[1, group].min(), curve[1, group].max())]
    return np.array(points).T
