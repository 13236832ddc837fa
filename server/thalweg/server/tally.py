"""What has happened in this process since it started, added up: for those who watch a server, not one job."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

# Seconds. A step of a tiny model takes less than a millisecond, one of a large model on few machines minutes.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


@dataclass
class Durations:
    """A histogram of durations. `counts[i]` is the number of those of at most `BOUNDS[i]` and more than the bound before it.

    The last count is that of durations above all bounds. `seconds` is the sum of all.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0

    def observe(self, seconds: float) -> None:
        """Counts one."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    def add(self, other: Self) -> None:
        """Counts those of another histogram."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.seconds += other.seconds


@dataclass
class Tally:
    """The steps of one run or of several, and what was counted besides, by its name."""

    steps: Durations = field(default_factory=Durations)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, other: Self) -> None:
        """Adds what others have counted."""
        self.steps.add(other.steps)
        self.counts.update(other.counts)
