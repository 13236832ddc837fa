"""Settings of PyTorch for a whole process, which equal bits need."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic


@contextmanager
def settled(threads: int) -> Iterator[None]:
    """PyTorch computes with a number of threads, and with deterministic algorithms only, as long as the context.

    An operation that has none raises RuntimeError, which names it. On a GPU, float32 is float32: it is not rounded to TF32. What
    cuBLAS needs is in the environment, where `process.prepare` puts it before CUDA starts.
    """
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    gpu = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # What is read before it is written is a mistake that `thalweg doctor` finds; to fill all memory always would take time.
    deterministic.fill_uninitialized_memory = False
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = True, False, False, False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        deterministic.fill_uninitialized_memory = before[2]
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = gpu
