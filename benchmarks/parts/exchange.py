"""How fast a stream is that has gRPC and the contract's messages in it, and nothing else: the bound of every exchange over gRPC.

A server in one event loop, in a process of its own, as Thalweg's; a worker's blocking stream. A small message goes there and
back, then chunks go one way: the server answers after the last one, or with as many. Processor time is that of both ends.
"""

import argparse
import asyncio
import multiprocessing
import queue
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import grpc
import psutil

from benchmarks.parts import Cell, Table, run
from thalweg.contract import frames
from thalweg.contract.endpoint import CHUNK_BYTES, OPTIONS
from thalweg.contract.frames import Parcel
from thalweg.contract.process import keep_freed
from thalweg.v1 import parameter_service_pb2 as pb

_SMALL = 200
_CHUNKS = 64


async def echo(requests: AsyncIterator[Parcel[pb.WorkRequest]], context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """A stream: an evaluation is answered at once, `prepared` with a number of chunks; chunks of gradients are taken."""
    message = pb.WorkResponse(parameters=pb.ParametersChunk(version=1))
    parameters = frames.serialize(Parcel(message, bytes(CHUNK_BYTES)))
    async for request, _ in requests:
        match request.WhichOneof("message"):
            case "evaluation":
                await context.write(pb.WorkResponse(evaluate=pb.EvaluateTask()))
            case "prepared":
                for _ in range(request.prepared.train_samples):
                    await context.write(parameters)


def serve(told: Connection) -> None:
    """The server's process."""

    keep_freed()

    async def forever() -> None:
        server = grpc.aio.server(options=list(OPTIONS))
        work: Any = grpc.stream_stream_rpc_method_handler(echo, frames.request_of, frames.serialize)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(frames.SERVICE, {"Work": work}),))
        told.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    asyncio.run(forever())


class Stream:
    """The worker's end."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._outbox: queue.SimpleQueue[Parcel[pb.WorkRequest] | pb.WorkRequest | None] = queue.SimpleQueue()
        method: Any = channel.stream_stream(frames.METHOD, frames.serialize, frames.response_of)
        self._inbox: Iterator[Parcel[pb.WorkResponse]] = method(iter(self._outbox.get, None))

    def small(self) -> float:
        """Seconds that a small message takes there and back."""
        began = time.perf_counter()
        self._outbox.put(pb.WorkRequest(evaluation=pb.Evaluation()))
        next(self._inbox)
        return time.perf_counter() - began

    def chunks(self, sent: int, wanted: int) -> float:
        """Seconds until a number of chunks have been taken, and another number have come."""
        data = bytes(CHUNK_BYTES)
        began = time.perf_counter()
        if wanted:
            self._outbox.put(pb.WorkRequest(prepared=pb.Prepared(train_samples=wanted)))
        for _ in range(sent):
            self._outbox.put(Parcel(pb.WorkRequest(gradient=pb.GradientChunk(version=1)), data))
        for _ in range(wanted):
            next(self._inbox)
        self.small()
        return time.perf_counter() - began


def measure(options: argparse.Namespace) -> Table:
    """Medians."""
    keep_freed()
    context = multiprocessing.get_context("spawn")
    told, tells = context.Pipe()
    server = context.Process(target=serve, args=(tells,), daemon=True)
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{told.recv()}", options=list(OPTIONS)) as channel:
        stream = Stream(channel)
        both = psutil.Process(), psutil.Process(server.pid)

        def median(act: Callable[[], float], times: int) -> tuple[float, float]:
            """The seconds that it takes, and the processor time."""
            act()
            before = _cpu(*both)
            taken = [act() for _ in range(times)]
            return statistics.median(taken), (_cpu(*both) - before) / times

        latency, cpu = median(stream.small, _SMALL * (options.repeats + 1))
        rows: list[tuple[Cell, ...]] = [("a small message there and back", latency * 1000, cpu * 1000, 1 / latency, 0.0)]
        for title, sent, wanted in (
            ("1 MiB chunks to the server", _CHUNKS, 0),
            ("1 MiB chunks from the server", 0, _CHUNKS),
            ("1 MiB chunks, first from it, then to it", _CHUNKS, _CHUNKS),
        ):
            seconds, cpu = median(partial(stream.chunks, sent, wanted), options.repeats)
            each = seconds / (sent + wanted)
            rows.append((title, each * 1000, cpu / (sent + wanted) * 1000, 1 / each, CHUNK_BYTES / each / 1e9))
        return Table(("what", "ms each", "CPU ms each", "each s", "GB/s"), rows)


def _cpu(*processes: psutil.Process) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


if __name__ == "__main__":
    run(measure)
