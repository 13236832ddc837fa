"""Curves with a bounded number of points, however many steps a job has: what is drawn, and what is sent."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from thalweg.contract import strides
from thalweg.v1 import training_service_pb2 as pb

# A screen shows no more.
MAX_POINTS = 400


class Point:
    """The values of neighbouring steps: their last step, how many steps there are, the sum of the values and their extremes."""

    __slots__ = ("high", "low", "step", "steps", "total")

    def __init__(self, step: int, value: float, steps: int) -> None:
        self.step = step
        self.steps = steps
        self.total = value * steps
        self.low = self.high = value

    @property
    def mean(self) -> float:
        """The mean of the values."""
        return self.total / self.steps

    def merge(self, later: "Point") -> None:
        """Takes the values of the point after it."""
        self.step = later.step
        self.steps += later.steps
        self.total += later.total
        # Once a value is not a number, so are the extremes: comparisons alone would forget it.
        if not later.low >= self.low:
            self.low = later.low if later.low < self.low else math.nan
        if not later.high <= self.high:
            self.high = later.high if later.high > self.high else math.nan


@dataclass
class Seen:
    """What one viewer has of a curve: its stride and the number of its points when it was sent, and its last step."""

    stride: int = 0
    points: int = 0
    step: int = -1


def losses(taken: pb.StepsTaken) -> Iterator[tuple[int, float, int]]:
    """The losses of an event: for each, the steps taken at its end, its value, and of how many steps it is the mean."""
    starts, counts = strides.spans(taken.first_step, taken.steps or len(taken.losses), taken.stride or 1)
    return zip((starts + counts).tolist(), taken.losses, counts.tolist(), strict=True)


class Curve:
    """A curve of at most `limit` points. Each stands for the steps from one multiple of `stride` to before the next.

    When there are too many points, `stride` doubles: the resolution is the same over the whole curve, and adding a value takes
    constant time on average.
    """

    def __init__(self, limit: int = MAX_POINTS) -> None:
        self.points: list[Point] = []
        self.stride = 1
        self._limit = limit

    @property
    def last_step(self) -> int:
        """The last step with a value; -1 if there is none."""
        return self.points[-1].step if self.points else -1

    def add(self, step: int, value: float, steps: int = 1) -> None:
        """Adds a value, the mean over `steps` steps of which `step` is the last. Steps that were added before are ignored."""
        if step <= self.last_step:
            return
        self._append(Point(step, value, steps))
        while len(self.points) > self._limit:
            self.stride *= 2
            points, self.points = self.points, []
            for point in points:
                self._append(point)

    def _append(self, point: Point) -> None:
        if self.points and self.points[-1].step // self.stride == point.step // self.stride:
            self.points[-1].merge(point)
        else:
            self.points.append(point)

    def news(self, seen: Seen) -> dict[str, Any] | None:
        """What a viewer lacks, who is taken to have it then; None if there is nothing.

        `from` is the index of the first point that is given: it replaces what the viewer has there and after it. The extremes
        are left out where each point stands for one value.
        """
        if seen == (now := Seen(self.stride, len(self.points), self.last_step)):
            return None
        # The last point that the viewer has may have grown.
        start = max(0, seen.points - 1) if seen.stride == self.stride else 0
        fresh = self.points[start:]
        seen.stride, seen.points, seen.step = now.stride, now.points, now.step
        told: dict[str, Any] = {
            "from": start,
            "steps": [point.step for point in fresh],
            "values": [rounded(point.mean) for point in fresh],
        }
        if self.stride > 1:
            told["low"] = [rounded(point.low) for point in fresh]
            told["high"] = [rounded(point.high) for point in fresh]
        return told


def rounded(value: float) -> float | None:
    """A number with the precision of a screen. JSON has no numbers that are not finite: they are None."""
    return float(f"{value:.7g}") if math.isfinite(value) else None
