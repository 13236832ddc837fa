"""The steps of losses that are means over several steps."""

import numpy as np
from numpy.typing import NDArray

Steps = NDArray[np.int64]


def spans(first: int, steps: int, stride: int) -> tuple[Steps, Steps]:
    """For each loss of an event about `steps` steps from `first` on, its first step, and its number of steps.

    Both have the shape (losses). Each goes from one multiple of `stride` to before the next, within the event.
    """
    starts = np.arange(first // stride, -(-(first + steps) // stride), dtype=np.int64)[:steps] * stride
    starts[:1] = first
    return starts, np.diff(starts, append=first + steps)
