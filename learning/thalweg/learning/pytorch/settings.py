"""Settings of PyTorch for a whole process, which equal bits need."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic


@contextmanager
def settled(threads: int) -> Iterator[None]:
    """PyTorch computes with a number of threads, and with deterministic algorithms only, as long as the context.

    An operation that has none raises RuntimeError, which names it.
    """
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # What is read before it is written is a mistake that `thalweg doctor` finds; to fill all memory always would take time.
    deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        deterministic.fill_uninitialized_memory = before[2]
