"""What gRPC costs, with nothing computed: a server and workers that only send each other parameters and gradients.

    python benchmarks/transport.py [--workers N]

Prints the microseconds of a step with 10 kB of parameters, from the first message to the last worker's answer, and, for 80 MB of
them, the milliseconds of a step and the seconds of CPU time, all processes together, that 1 GB takes from one to another: with
the messages of `contract/payload.py`, and with protobuf's own. Times of steps are medians.
"""

import argparse
import asyncio
import queue
import resource
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import thalweg.contract  # noqa: F401 - first, because it prepares gRPC

# isort: split
import grpc
import numpy as np

from thalweg.contract import payload
from thalweg.contract.allocator import keep_freed
from thalweg.contract.channel import CHUNK_BYTES, OPTIONS
from thalweg.contract.payload import Parcel
from thalweg.v1 import parameter_service_pb2 as pb

SMALL, LARGE = 10_000, 80_000_000
SMALL_STEPS, LARGE_STEPS = 2000, 8


class Wire(NamedTuple):
    """How messages with `data` are written and read."""

    write: Callable[[Any, np.ndarray[Any, Any]], Any]
    serialize: Callable[[Any], bytes]
    parse: Callable[[Any, bytes], tuple[Any, Any]]


def _with_data(message: Any, values: np.ndarray[Any, Any]) -> Any:
    getattr(message, message.WhichOneof("message")).data = values.tobytes()
    return message


def _parse(kind: Any, raw: bytes) -> tuple[Any, Any]:
    message = kind.FromString(raw)
    part = message.gradient if kind is pb.WorkRequest else message.parameters
    return message, part.data


WIRES = {
    "payload": Wire(
        lambda message, values: payload.serialize(Parcel(message, values)),
        payload.serialize,
        lambda kind, raw: payload.request_of(raw) if kind is pb.WorkRequest else payload.response_of(raw),
    ),
    "protobuf": Wire(_with_data, lambda message: message.SerializeToString(), _parse),
}


def chunks(size: int) -> list[np.ndarray[Any, Any]]:
    """So many bytes of float32, in chunks."""
    values = np.random.default_rng(0).normal(size=size // 4).astype(np.float32)
    return np.split(values, range(CHUNK_BYTES // 4, values.size, CHUNK_BYTES // 4))


def cpu_seconds() -> float:
    """This process's CPU time so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def work(address: str, wire: Wire, size: int) -> None:
    """Answers versions of the parameters with gradients until told goodbye. Prints the CPU seconds from the first answer on."""
    keep_freed()
    gradient, kept, began = chunks(size), chunks(size), 0.0
    outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with grpc.insecure_channel(address, options=list(OPTIONS)) as channel:
        stream: Any = channel.stream_stream(payload.METHOD, wire.serialize, lambda raw: wire.parse(pb.WorkResponse, raw))
        outbox.put(pb.WorkRequest(hello=pb.Hello()))
        for message, data in stream(iter(outbox.get, None)):
            if message.HasField("goodbye"):
                break
            chunk = message.parameters.chunk
            kept[chunk][:] = np.frombuffer(data, np.float32)
            if chunk == len(gradient) - 1:
                began = began or cpu_seconds()
                for number, values in enumerate(gradient):
                    outbox.put(wire.write(pb.WorkRequest(gradient=pb.GradientChunk(chunk=number)), values))
        outbox.put(None)
    print(cpu_seconds() - began)


class Steps:
    """The server: sends all workers the parameters, waits for their gradients, and again."""

    def __init__(self, wire: Wire, size: int, steps: int, workers: int) -> None:
        self.seconds: list[float] = []
        self.cpu = 0.0
        self.done = asyncio.Event()
        self._wire, self._steps, self._workers = wire, steps, workers
        self._parameters, self._kept = chunks(size), chunks(size)
        self._outboxes: list[asyncio.Queue[Any]] = []
        self._missing = self._began = 0.0

    async def stream(self, requests: AsyncIterator[tuple[Any, Any]], context: Any) -> None:
        """One worker's stream."""
        outbox: asyncio.Queue[Any] = asyncio.Queue()
        reader = asyncio.create_task(self._read(requests, outbox))
        while (message := await outbox.get()) is not None:
            await context.write(message)
        await context.write(pb.WorkResponse(goodbye=pb.Goodbye()))
        await reader

    async def _read(self, requests: AsyncIterator[tuple[Any, Any]], outbox: asyncio.Queue[Any]) -> None:
        self._outboxes.append(outbox)
        async for message, data in requests:
            if message.HasField("gradient"):
                self._kept[message.gradient.chunk][:] = np.frombuffer(data, np.float32)
                self._missing -= 1
                if not self._missing:
                    self.seconds.append(time.perf_counter() - self._began)
                    self._step()
            elif len(self._outboxes) == self._workers:
                self._step()

    def _step(self) -> None:
        if len(self.seconds) == 1:
            self.cpu = cpu_seconds()
        if len(self.seconds) == self._steps + 1:
            self.cpu = cpu_seconds() - self.cpu
            self.done.set()
            for outbox in self._outboxes:
                outbox.put_nowait(None)
            return
        self._began, self._missing = time.perf_counter(), len(self._parameters) * self._workers
        for number, values in enumerate(self._parameters):
            message = self._wire.write(pb.WorkResponse(parameters=pb.ParametersChunk(chunk=number)), values)
            for outbox in self._outboxes:
                outbox.put_nowait(message)


async def measure(name: str, size: int, steps: int, workers: int) -> tuple[float, float]:
    """The median seconds of a step, and the CPU seconds of all steps in all processes."""
    wire = WIRES[name]
    run = Steps(wire, size, steps, workers)
    server = grpc.aio.server(options=list(OPTIONS))
    handler: Any = grpc.stream_stream_rpc_method_handler(run.stream, lambda raw: wire.parse(pb.WorkRequest, raw), wire.serialize)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(payload.SERVICE, {"Work": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    command = [sys.executable, __file__, "--work", f"127.0.0.1:{port}", name, str(size)]
    processes = [await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE) for _ in range(workers)]
    await run.done.wait()
    said = [(await process.communicate())[0] for process in processes]
    await server.stop(None)
    return statistics.median(run.seconds[1:]), run.cpu + sum(map(float, said)) * steps / (steps + 1)


def main() -> None:
    """Measures, and prints a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", nargs=3, metavar=("ADDRESS", "WIRE", "BYTES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        address, name, size = options.work
        work(address, WIRES[name], int(size))
        return
    keep_freed()
    gigabytes = 2 * LARGE * LARGE_STEPS * options.workers / 1e9
    for name in WIRES:
        small, _ = asyncio.run(measure(name, SMALL, SMALL_STEPS, options.workers))
        large, cpu = asyncio.run(measure(name, LARGE, LARGE_STEPS, options.workers))
        print(f"{name:8}  10 kB: {small * 1e6:4.0f} us   80 MB: {large * 1e3:4.0f} ms, {cpu / gigabytes:.2f} CPU s/GB")


if __name__ == "__main__":
    main()
