"""PyTorch's DistributedDataParallel over Gloo: two processes of one thread each.

With `--tuned yes`, with what makes it faster here than its defaults: gradients are views of its buckets, and the optimizer is
PyTorch's fused one.
"""

import argparse
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from benchmarks.peers import torch_model
from benchmarks.program import Rate, Window, run
from benchmarks.workloads import WORKERS, Workload


def process(rank: int, workload: Workload, seconds: float, tuned: bool, port: int, told: Any) -> None:
    """One of the two."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=WORKERS)
    model = DistributedDataParallel(torch_model.model(workload), gradient_as_bucket_view=tuned)
    optimizer = torch_model.optimizer(workload, model.parameters(), tuned)
    source = torch_model.tensors(workload, rank)

    def step() -> None:
        x, y = next(source)
        optimizer.zero_grad()
        torch_model.loss(model(x), y).backward()
        optimizer.step()

    rate = _both(step, seconds)
    if rank == 0:
        told.put(rate)
    # One that leaves while the other still hears from it takes that down with it.
    dist.barrier()
    # PyTorch's own threads at times abort a process that is torn down; there is nothing left to do in it.
    os._exit(0)


def _both(step: Callable[[], None], seconds: float) -> Rate:
    """The rate of both. They agree now and then on whether the window is over: about every tenth of a second, for that costs."""
    window, steps, every = Window(seconds), 0, 1
    over = torch.zeros(1)
    began = time.perf_counter()
    while True:
        for _ in range(every):
            step()
        steps += every
        rate = window.at(time.perf_counter(), steps)
        # The first one's word counts, and its pace says how often to ask.
        over[0] = -1 if rate else max(1, round(0.1 * steps / (time.perf_counter() - began)))
        dist.broadcast(over, 0)
        if over[0] < 0:
            break
        every = int(over[0])
    return rate or Rate(0, 1)


def measure(workload: Workload, options: argparse.Namespace) -> Rate:
    """Steps of both together."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = mp.get_context("spawn").SimpleQueue()
    mp.spawn(process, (workload, options.seconds, options.tuned == "yes", port, told), WORKERS)
    return told.get()  # type: ignore[no-any-return]


if __name__ == "__main__":
    run(measure, "--tuned")
