"""All randomness of a job, as a pure function of its seed and purpose."""

from enum import IntEnum

import numpy as np

# (step, microbatch): what the random numbers of a training task depend on.
Draw = tuple[int, int]


class Purpose(IntEnum):
    """The purpose of random numbers, and, in parentheses, what else they depend on."""

    INITIALIZATION = 0  # (layer)
    SPLIT = 1  # ()
    PERMUTATION = 2  # (epoch)
    DROPOUT = 3  # (step, microbatch, layer)
    MODULE_CREATION = 4  # ()
    MODULE_CALL = 5  # (step, microbatch)


def generator(seed: int, purpose: Purpose, *ids: int) -> np.random.Generator:
    """A generator of its own for each seed, purpose and ids: streams do not overlap, in whatever order they are made."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(purpose, *ids))))
