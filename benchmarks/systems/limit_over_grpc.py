"""The limit over gRPC: the same two processes, and a gradient's bytes there and back through gRPC at each step.

They come to a server that does nothing but wait for both and send each as many bytes. No sum, no update, no message to be read:
what a step takes here, no system can save whose payload travels over Python's gRPC. Both ends are gRPC's asynchronous ones, which
are the faster ones where messages are small, and no slower where they are not.
"""

import argparse
import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from queue import Queue
from typing import Any

import grpc
from threadpoolctl import threadpool_limits

from benchmarks.program import Rate, Window, run
from benchmarks.systems.limit import gradients, slower
from benchmarks.workloads import Workload
from thalweg.contract.endpoint import OPTIONS
from thalweg.contract.process import keep_freed

_SERVICE, _METHOD = "Limit", "Exchange"


def serve(told: Connection) -> None:
    """The server's process."""
    keep_freed()
    there, waiting = 0, list[grpc.aio.ServicerContext[bytes, bytes]]()

    async def exchange(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        nonlocal there
        there += 1
        data = b""
        async for data in requests:
            waiting.append(context)
            await answer(data)
        there -= 1
        await answer(data)

    async def answer(data: bytes) -> None:
        """The two need not begin and end at once: one that is alone does not wait."""
        if len(waiting) == there:
            everyone = waiting.copy()
            waiting.clear()
            for one in everyone:
                await one.write(data)

    async def forever() -> None:
        server = grpc.aio.server(options=list(OPTIONS))
        method: Any = grpc.stream_stream_rpc_method_handler(exchange)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: method}),))
        told.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    asyncio.run(forever())


def process(workload: Workload, seconds: float, port: int, worker: int, barrier: Barrier, told: "Queue[Rate]") -> None:
    """One of the two."""
    keep_freed()
    _, differentiate = gradients(workload, worker)

    async def steps() -> Rate:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=list(OPTIONS)) as channel:
            call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(f"/{_SERVICE}/{_METHOD}")()
            window, count = Window(seconds), 0
            while (rate := window.at(time.perf_counter(), count)) is None:
                await call.write(differentiate().tobytes())
                await call.read()
                count += 1
            await call.done_writing()
            await call.read()
            return rate

    with threadpool_limits(1, "blas"):
        barrier.wait()
        told.put(asyncio.run(steps()))


def measure(workload: Workload, options: argparse.Namespace) -> Rate:
    """The slower one's rate."""
    context = multiprocessing.get_context("spawn")
    told, tells = context.Pipe()
    context.Process(target=serve, args=(tells,), daemon=True).start()
    return slower(process, workload, options.seconds, told.recv())


if __name__ == "__main__":
    run(measure)
