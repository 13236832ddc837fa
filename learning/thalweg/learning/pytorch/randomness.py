"""The random numbers that user code may draw: PyTorch's, too, seeded for as long as a context."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from thalweg.learning import randomness
from thalweg.learning.randomness import Purpose

CPU = torch.device("cpu")


@contextmanager
def seeded(seed: int, purpose: Purpose, *ids: int, place: torch.device = CPU) -> Iterator[None]:
    """As `randomness.seeded`. `place` is where the module computes: the generator there is seeded, too."""
    devices = [] if place.type == CPU.type else [place.index]
    with randomness.seeded(seed, purpose, *ids) as further, torch.random.fork_rng(devices=devices):
        value = int(further.integers(0, 2**63))
        # `torch.manual_seed` would note for each kind of device that is not there where it was called from.
        torch.default_generator.manual_seed(value)
        if devices:
            torch.cuda.manual_seed_all(value)
        yield
