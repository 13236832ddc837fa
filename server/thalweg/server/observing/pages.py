"""A small HTTP server for machines: a few pages to be read, one a connection."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import NamedTuple, TypeAlias

from thalweg.server.observing.https import Https

# What is asked for takes one line and a few headers.
_MAX_HEAD_BYTES = 8 << 10
# Of one connection, from its beginning to its end; and how many there may be at a time.
_SECONDS, _MAX_CONNECTIONS = 10.0, 64
_TEXT = "text/plain; charset=utf-8"


class Request(NamedTuple):
    """What is asked for. Names of headers are in lower case."""

    path: str
    headers: Mapping[str, str]


class Response(NamedTuple):
    """An answer."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    kind: str = _TEXT


Page: TypeAlias = Callable[[Request], Awaitable[Response]]


def text(line: str, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """An answer of one line."""
    return Response(f"{line}\n".encode(), status)


class Pages:
    """Answers GET and HEAD with the page of a path. Belongs to an event loop.

    A connection is closed after its answer, or when it has taken too long; those that are too many are closed at once.
    """

    def __init__(self, pages: Mapping[str, Page], https: Https | None = None) -> None:
        self._pages = pages
        self._https = https
        self._servers: list[asyncio.Server] = []
        self._open: set[asyncio.Task[None]] = set()

    async def listen(self, host: str, port: int) -> int:
        """Listens at an IP address too, and gives the port. Raises OSError if it cannot."""
        tls = self._https.context if self._https else None
        patience = _SECONDS if tls else None
        server = await asyncio.start_server(
            self._connected, host, port, limit=_MAX_HEAD_BYTES, ssl=tls, ssl_handshake_timeout=patience
        )
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Ends all connections."""
        if self._https:
            self._https.close()
        for server in self._servers:
            server.close()
        for task in self._open:
            task.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._open) >= _MAX_CONNECTIONS:
            writer.close()
            return
        self._open.add(task)
        try:
            # Whoever is too slow, is gone, or says what is no request gets no answer.
            with suppress(TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
                async with asyncio.timeout(_SECONDS):
                    await self._exchange(reader, writer)
        finally:
            self._open.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *lines = head.rstrip("\r\n").split("\r\n")
        method, target, _ = line.split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
        response = await self._answer(method, Request(target.partition("?")[0], headers))
        told = (
            f"HTTP/1.1 {response.status.value} {response.status.phrase}\r\nContent-Type: {response.kind}\r\n"
            f"Content-Length: {len(response.body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        writer.write(told.encode() + (b"" if method == "HEAD" else response.body))
        await writer.drain()

    async def _answer(self, method: str, request: Request) -> Response:
        page = self._pages.get(request.path)
        if page is None:
            return text(f"the pages are {', '.join(self._pages)}", HTTPStatus.NOT_FOUND)
        if method not in ("GET", "HEAD"):
            return text("pages can only be read", HTTPStatus.METHOD_NOT_ALLOWED)
        return await page(request)
