"""The random numbers that user code may draw: PyTorch's, too, seeded for as long as a context."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from thalweg.learning import randomness
from thalweg.learning.randomness import Purpose


@contextmanager
def seeded(seed: int, purpose: Purpose, *ids: int) -> Iterator[None]:
    """As `randomness.seeded`."""
    with randomness.seeded(seed, purpose, *ids) as further, torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(further.integers(0, 2**63)))
        yield
