"""Weights as files for the browser. They pass through a temporary file: neither this process nor the browser waits for memory."""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from typing import IO

import numpy as np
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from thalweg.client.web.entrance import Entrance, Refusal
from thalweg.client.web.gateway import Credential, Gateway
from thalweg.client.weights import file_pieces
from thalweg.contract import layout as layouts
from thalweg.contract.errors import ThalwegError
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

# Each takes disk space for a whole model.
MAX_DOWNLOADS = 4


class _Sending(StreamingResponse):
    """A file that is sent piece by piece. `end` is called when it was sent, or could not be."""

    def __init__(self, pieces: Iterator[bytes | memoryview], headers: dict[str, str], end: Callable[[], None]) -> None:
        super().__init__(self._sent(pieces), media_type="application/octet-stream", headers=headers)
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()

    @staticmethod
    async def _sent(pieces: Iterator[bytes | memoryview]) -> AsyncIterator[bytes]:
        while piece := await asyncio.to_thread(next, pieces, None):
            yield bytes(piece)


class Downloads:
    """The weights of jobs, for those who may have them."""

    def __init__(self, gateway: Gateway, entrance: Entrance) -> None:
        self._gateway = gateway
        self._entrance = entrance
        self._running = 0

    async def weights(self, request: Request) -> Response:
        """A job's parameters as a safetensors file, as `thalweg weights` writes it."""
        session = self._entrance.session(request)
        job = await self._gateway.job(session.credential, request.path_params["job"])
        if self._running >= MAX_DOWNLOADS:
            raise Refusal(429, "Too many downloads at a time. Try again later.")
        self._running += 1
        file = tempfile.TemporaryFile(prefix="thalweg-weights-")  # noqa: SIM115 - closed when it has been sent
        try:
            header = await self._fetch(session.credential, job.id, file)
            return await self._answer(job, header, file)
        except BaseException:
            self._end(file)
            raise

    async def _fetch(self, credential: Credential, job_id: str, file: IO[bytes]) -> pb.ParametersHeader:
        """Writes the parameters' bytes to a file. Raises ThalwegError if they arrive damaged."""
        header, digest = pb.ParametersHeader(), hashlib.sha256()
        async for part in self._gateway.parameters(credential, job_id):
            if part.HasField("header"):
                header = part.header
            else:
                await asyncio.to_thread(file.write, part.data)
                await asyncio.to_thread(digest.update, part.data)
        await asyncio.to_thread(file.flush)
        if digest.hexdigest() != header.sha256:
            raise ThalwegError("INTERNAL", {"problem": "the parameters arrived damaged; try again"})
        return header

    async def _answer(self, job: job_pb2.Job, header: pb.ParametersHeader, file: IO[bytes]) -> Response:
        dtype, size = layouts.dtype_of(header.layout), layouts.elements(header.layout)
        slab = np.memmap(file, dtype, "r", shape=(size,)) if size else np.empty(0, dtype)
        pieces = file_pieces(job, header, slab)
        # The header of the file says how long the rest is, but only its writer knows how to read that.
        total = await asyncio.to_thread(lambda: sum(map(len, file_pieces(job, header, slab))))
        headers = {
            "Content-Disposition": f'attachment; filename="{job.id}.safetensors"',
            "Content-Length": str(total),
        }
        return _Sending(pieces, headers, lambda: self._end(file))

    def _end(self, file: IO[bytes]) -> None:
        self._running -= 1
        file.close()
