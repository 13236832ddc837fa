"""A process that besieges a server: `besieger.py KIND ADDRESS NUMBER JOB`, until its stdin ends.

THALWEG_TOKEN may be the server's token. It prints a line when it has begun.
"""

import asyncio
import hashlib
import os
import resource
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from thalweg.contract.endpoint import Address, Metadata, authorization, connection_options, parse_address
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub

# The beginning of an HTTP/2 connection: the client's preface and its empty settings.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
# How many connections are opened again in a second, in place of those that the server has ended.
_AGAIN = 500
_UPLOADED = bytes(1 << 16)
# On one connection.
_CALLS = 250
_Options = list[tuple[str, int]]


class Besieger:
    """What is done to a server at an address, how often, and with which token, if any."""

    def __init__(self, address: str, number: int, job: str) -> None:
        self._address = address
        self._number = number
        self._job = job
        self._metadata: Metadata = authorization(os.environ.get("THALWEG_TOKEN"))
        # Each channel has a connection of its own.
        self._options: _Options = [*connection_options(), ("grpc.use_local_subchannel_pool", 1)]

    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self._address, options=self._options)

    async def connections(self) -> None:
        """Connections that say nothing, or that they speak HTTP/2 and nothing else. Those that end are opened again."""
        where = parse_address(self._address)
        held = [_connected(where, index) for index in range(self._number)]
        _begun()
        while True:
            await asyncio.sleep(1.0)
            ended = [index for index, connection in enumerate(held) if connection is None or _has_ended(connection)]
            for index in ended[:_AGAIN]:
                if connection := held[index]:
                    connection.close()
                held[index] = _connected(where, index)

    async def readers(self) -> None:
        """Streams of which nothing is read."""
        for index in range(self._number):
            if index % _CALLS == 0:
                stub: Any = TrainingServiceStub(self._channel())
            # The first half of a job's events takes more than what travels unasked.
            _KEPT.append(stub.WatchJob(pb.WatchJobRequest(job_id=self._job), metadata=self._metadata))
        await asyncio.sleep(1.0)
        _begun()
        await asyncio.Event().wait()

    async def uploads(self) -> None:
        """Uploads that stop halfway."""
        silence = asyncio.Event()

        async def half(index: int) -> AsyncIterator[pb.UploadDataRequest]:
            header = pb.UploadHeader(sha256=hashlib.sha256(str(index).encode()).hexdigest(), size=2 * len(_UPLOADED))
            yield pb.UploadDataRequest(header=header)
            yield pb.UploadDataRequest(data=_UPLOADED)
            await silence.wait()

        for index in range(self._number):
            if index % _CALLS == 0:
                stub: Any = TrainingServiceStub(self._channel())
            _KEPT.append(stub.UploadData(half(index), metadata=self._metadata))
        await asyncio.sleep(2.0)
        _begun()
        await silence.wait()

    async def silent(self) -> None:
        """Calls that say nothing, begun again when they end."""
        silence = asyncio.Event()

        async def nothing() -> AsyncIterator[bytes]:
            await silence.wait()
            yield b""

        async def call(channel: grpc.aio.Channel) -> None:
            method: Any = channel.stream_stream("/thalweg.v1.ParameterService/Work")
            while True:
                try:
                    async for _ in method(nothing(), metadata=self._metadata):
                        pass
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.5)

        channels = [self._channel() for _ in range(0, self._number, _CALLS)]
        _KEPT.extend(asyncio.create_task(call(channels[index // _CALLS])) for index in range(self._number))
        await asyncio.sleep(1.0)
        _begun()
        await silence.wait()

    async def refused(self) -> None:
        """So many calls in a second with a token that is wrong."""
        method: Any = self._channel().unary_unary("/thalweg.v1.TrainingService/ListJobs")
        _begun()
        loop = asyncio.get_running_loop()
        began, made = loop.time(), 0

        async def call() -> None:
            try:
                await method(b"", metadata=authorization("wrong"), timeout=10)
            except grpc.aio.AioRpcError:
                return

        while True:
            due = int((loop.time() - began) * self._number)
            _KEPT[:] = [asyncio.create_task(call()) for _ in range(due - made)]
            made = due
            await asyncio.sleep(0.05)


# Calls that are under way, which end with what refers to them.
_KEPT: list[object] = []


def _begun() -> None:
    sys.stdout.write("begun\n")
    sys.stdout.flush()


def _connected(where: Address, index: int) -> socket.socket | None:
    connection = socket.socket()
    connection.settimeout(5.0)
    try:
        connection.connect(where)
        if index % 2:
            connection.sendall(_HELLO)
    except OSError:
        connection.close()
        return None
    connection.setblocking(False)
    return connection


def _has_ended(connection: socket.socket) -> bool:
    try:
        while connection.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


async def _until_stdin_ends(besiege: Callable[[], Awaitable[None]]) -> None:
    besieging = asyncio.ensure_future(besiege())
    ending = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    await asyncio.wait({besieging, ending}, return_when=asyncio.FIRST_COMPLETED)
    if besieging.done():
        await besieging
    # What is open ends with the process.
    os._exit(0)


if __name__ == "__main__":
    kind, address, count, job = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_until_stdin_ends(getattr(Besieger(address, int(count), job), kind)))
