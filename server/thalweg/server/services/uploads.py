"""Uploads that are under way: what arrives of a file is kept, and a later call continues it."""

import asyncio
import uuid
from collections.abc import AsyncIterator

from thalweg.contract.errors import Violation, invalid
from thalweg.server.driving.jobs import Jobs
from thalweg.server.services.guarding.permits import part_name
from thalweg.server.services.guarding.stalling import unless_stalled
from thalweg.v1 import training_service_pb2 as pb

# A call that sends nothing for so long ends when a client asks for its file: its connection may have died unnoticed. At the size
# of a chunk, an upload that makes 200 kB/s is never silent for as long.
_SILENT_SECONDS = 5.0


class Uploading:
    """Receives files. Belongs to the server's event loop."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        # The calls that write what they receive under a part's name, one for each.
        self._calls: dict[str, _Call] = {}

    async def state(self, sha256: str, readable: bool) -> pb.GetUploadResponse:
        """What the caller has uploaded of a file; all of it if the file is there and he may read it.

        A call that uploads it and is silent ends first, so that another one can continue it.
        """
        uploads, part = self._jobs.storage.uploads, part_name(sha256)
        while True:
            if readable and await asyncio.to_thread(uploads.whole, sha256):
                return pb.GetUploadResponse(whole=True)
            if part not in self._calls:
                return pb.GetUploadResponse(received=await self._jobs.journal.run_files(uploads.received, part))
            if not await self._calls[part].has_ended():
                return pb.GetUploadResponse()

    async def receive(self, header: pb.UploadHeader, requests: AsyncIterator[pb.UploadDataRequest]) -> None:
        """Makes what a call sends an upload. Raises ThalwegError if it is not what the header says, or the client is silent."""
        run, uploads = self._jobs.journal.run_files, self._jobs.storage.uploads
        # What arrives is kept under a name of its own if the call breaks off. Of several calls with one file, one writes there.
        part = part_name(header.sha256)
        kept = part not in self._calls
        name = part if kept else str(uuid.uuid4())
        self._calls[name] = call = _Call()
        try:
            if header.offset == 0:
                await run(uploads.discard, name)
            elif (there := await run(uploads.received, name)) != header.offset:
                raise invalid(Violation("header.offset", f"must be {there}, or 0; the server has that much (GetUpload)"))
            await run(uploads.receive, name, b"")
            received = header.offset
            while request := await call.next(requests):
                received += len(request.data)
                if received > header.size:
                    kept = False
                    raise invalid(Violation("data", f"exceeds the {header.size} bytes that the header declares"))
                await run(uploads.receive, name, request.data)
            if received < header.size:
                raise invalid(Violation("data", f"ended after {received} of {header.size} bytes"))
            kept = False
            call.is_complete = True
            # Not in the files' thread, in which others would wait while a large file is read.
            checking = asyncio.create_task(asyncio.to_thread(uploads.finish, name, header.sha256))
            try:
                is_right = await asyncio.shield(checking)
            finally:
                # Also if the client is gone: all that it had to send is there.
                await asyncio.wait([checking])
            if not is_right:
                raise invalid(Violation("header.sha256", "is not the SHA-256 of the bytes received"))
        except OSError as error:
            # On a full disk, the room is worth more than the bytes.
            kept = False
            raise self._jobs.answers.refusal(error, "The upload was discarded.") from error
        finally:
            try:
                if not kept:
                    # In the files' thread, after whatever a call that was cancelled left there to be done.
                    await asyncio.shield(run(uploads.discard, name))
            finally:
                del self._calls[name]
                call.ended.set()


class _Call:
    """A call that uploads a file. `is_complete` says that all of it has arrived."""

    def __init__(self) -> None:
        self.is_complete = False
        self.ended = asyncio.Event()
        # Set when the next message arrives.
        self._heard = asyncio.Event()
        self._silent_since = asyncio.get_running_loop().time()
        # While it waits for a message.
        self._wait: asyncio.Timeout | None = None
        self._is_given_up = False

    async def next(self, requests: AsyncIterator[pb.UploadDataRequest]) -> pb.UploadDataRequest | None:
        """The next message; None at the end. Raises ThalwegError if the client sends none for too long."""
        self._silent_since = asyncio.get_running_loop().time()
        try:
            async with unless_stalled() as self._wait:
                message = await anext(requests, None)
                if self._is_given_up:
                    # It came too late.
                    raise TimeoutError
                return message
        finally:
            self._wait = None
            self._heard.set()
            self._heard = asyncio.Event()

    async def has_ended(self) -> bool:
        """Whether it has ended. It ends here if it is silent, and is waited for if it is complete."""
        if self._wait:
            try:
                async with asyncio.timeout_at(self._silent_since + _SILENT_SECONDS):
                    await self._heard.wait()
            except TimeoutError:
                self._give_up()
        if self._is_given_up or self.is_complete:
            await self.ended.wait()
        return self.ended.is_set()

    def _give_up(self) -> None:
        """Receives nothing more, if it still waits for a message."""
        if self._wait and not self._wait.expired():
            self._wait.reschedule(asyncio.get_running_loop().time())
            self._is_given_up = True
