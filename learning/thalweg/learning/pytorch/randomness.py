"""The random numbers that user code may draw: PyTorch's, NumPy's and Python's, seeded for as long as a context."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from thalweg.learning.randomness import Purpose, generator


@contextmanager
def seeded(seed: int, purpose: Purpose, *ids: int) -> Iterator[None]:
    """Random numbers that follow from a seed, a purpose and ids. Afterwards the generators are as they were before."""
    first, second, third = (int(value) for value in generator(seed, purpose, *ids).integers(0, 2**32, 3))
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(first << 32 | second)
        random.seed(second)
        np.random.seed(third)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
