"""All randomness of a job, as a pure function of its seed and purpose."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
    MODULE_CALL = 5  # (step, microbatch), or () where a model does not train


def generator(seed: int, purpose: Purpose, *ids: int) -> np.random.Generator:
    """A generator of its own for each seed, purpose and ids: streams do not overlap, in whatever order they are made."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(purpose, *ids))))


def states() -> tuple[object, ...]:
    """The states of Python's and NumPy's generators. Two are equal if nothing was drawn between them."""
    name, key, *further = np.random.get_state(legacy=True)
    return random.getstate(), name, np.asarray(key).tobytes(), *further


# The generators of Python and NumPy are the process's: of several threads that call user code, one at a time has them.
_lock = threading.RLock()


@contextmanager
def seeded(seed: int, purpose: Purpose, *ids: int) -> Iterator[np.random.Generator]:
    """Around calls of user code: what it draws from `random` and `numpy.random` follows from a seed, a purpose and ids.

    Afterwards these generators are as they were before. Gives a generator, for the seeds of further libraries.
    """
    further = generator(seed, purpose, *ids)
    first, second = (int(value) for value in further.integers(0, 2**32, 2))
    with _lock:
        python, numpy = random.getstate(), np.random.get_state()
        random.seed(first)
        np.random.seed(second)
        try:
            yield further
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
