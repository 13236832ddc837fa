"""Workers that share memory with the server: they read the parameters there, and the server reads their gradients."""

import asyncio
import os
import secrets
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from thalweg.contract import shared_memory
from thalweg.contract.layout import Slab
from thalweg.v1 import parameter_service_pb2

# No honest worker has more slabs: it needs one for each task that it has at one version.
_MAX_SLABS = 256
# Messages that a worker has not read: several times as many as it can have tasks. How many of them its socket holds, the
# kernel's settings say.
_MAX_UNREAD = 4096


class SharedSlabs:
    """The two versions of the parameters, of shape (elements), in files that can be handed to workers. Raises OSError."""

    def __init__(self, elements: int, dtype: np.dtype[np.floating]) -> None:
        self._files: list[int] = []
        try:
            self.slabs = (self._slab(elements, dtype), self._slab(elements, dtype))
        except OSError:
            self.close()
            raise

    def _slab(self, elements: int, dtype: np.dtype[np.floating]) -> Slab:
        self._files.append(shared_memory.create(elements * dtype.itemsize))
        return shared_memory.slab(self._files[-1], elements, dtype, writable=True)

    def give(self, peer: socket.socket) -> None:
        """Lets a worker read them. Raises OSError."""
        files: list[int] = []
        try:
            files.extend(shared_memory.read_only(file) for file in self._files)
            shared_memory.give(peer, *files)
        finally:
            for file in files:
                os.close(file)

    def close(self) -> None:
        """Nobody else gets them. The arrays stay."""
        for file in self._files:
            os.close(file)
        self._files = []


class MemoryPeer:
    """One worker that was invited. `came` once it has come, `attached` until it is gone.

    `served` once it has the parameters and is spoken to here.

    `hear` is called with what it says, `lost` when nothing more can be said to it or heard of it.
    """

    def __init__(self, name: str, hear: Callable[[bytes], object], lost: Callable[[str], object]) -> None:
        self.token = secrets.token_bytes(shared_memory.TOKEN_BYTES)
        self.offer = parameter_service_pb2.SharedMemory(address=name, token=self.token)
        self.came = self.served = False
        self._hear = hear
        self._lost = lost
        self._peer: socket.socket | None = None
        self._unread: deque[bytes] = deque()
        self._given = 0
        self._files: dict[int, int] = {}  # those that are not mapped yet, by the numbers of their slabs
        self._slabs: dict[int, Slab] = {}

    @property
    def attached(self) -> bool:
        """Whether the worker has come, and not gone."""
        return self._peer is not None

    def attach(self, peer: socket.socket) -> None:
        """The worker has come. Raises OSError if it is gone again: then it has not come."""
        peer.send(shared_memory.OK)
        asyncio.get_running_loop().add_reader(peer, self._read)
        self._peer = peer
        self.came = True

    def serve(self, slabs: SharedSlabs) -> None:
        """Lets the worker read the parameters. Raises OSError if it is gone."""
        if self._peer is None:
            raise BrokenPipeError("the worker is gone")
        slabs.give(self._peer)
        self.served = True

    def say(self, data: bytes) -> None:
        """Sends a message, as soon as the worker's socket has room for it."""
        if self._peer is None:
            return
        if not self._unread:
            if self._sent(self._peer, data):
                return
            asyncio.get_running_loop().add_writer(self._peer, self._send)
        self._unread.append(data)
        if len(self._unread) > _MAX_UNREAD:
            self._end(f"it left {_MAX_UNREAD} messages unread")

    def _sent(self, peer: socket.socket, data: bytes) -> bool:
        """Whether nothing more is to be done about a message: it is sent, or nobody can hear it. False if there is no room."""
        try:
            peer.send(data)
        except BlockingIOError:
            return False
        except OSError as error:
            self._end(str(error))
        return True

    def _send(self) -> None:
        """Sends what waits, as far as there is room."""
        while self._peer and self._unread and self._sent(self._peer, self._unread[0]):
            if self._unread:
                self._unread.popleft()
        if self._peer and not self._unread:
            asyncio.get_running_loop().remove_writer(self._peer)

    def _read(self) -> None:
        """Takes what has come: a slab for gradients, or a message."""
        try:
            while self._peer is not None:
                data, files = shared_memory.take(self._peer, 1)
                for file in files:
                    self._files[self._given] = file
                    self._given += 1
                if not data or len(data) == shared_memory.MAX_BYTES or self._given > _MAX_SLABS:
                    self._end("the socket was closed" if not data else "a message that is too long")
                elif not files:
                    self._hear(data)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(str(error))

    def _end(self, problem: str) -> None:
        self.close()
        self._lost(problem)

    def slab(self, number: int, elements: int, dtype: np.dtype[np.floating]) -> Slab:
        """A slab of the worker's, read-only. Raises SharingError if there is none, or one of another size."""
        if number not in self._slabs:
            if number not in self._files:
                raise shared_memory.SharingError(f"there is no slab {number}")
            try:
                self._slabs[number] = shared_memory.slab(self._files[number], elements, dtype, writable=False)
            except OSError as error:
                raise shared_memory.SharingError(f"slab {number} cannot be read: {error.strerror}") from error
            os.close(self._files.pop(number))
        return self._slabs[number]

    def close(self) -> None:
        """The worker is gone. What has come of its gradients stays as long as it is needed."""
        if self._peer is not None:
            with suppress(RuntimeError):
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._peer)
                loop.remove_writer(self._peer)
            self._peer.close()
            self._peer = None
        for file in self._files.values():
            os.close(file)
        self._files = {}
        self._slabs = {}
        self._unread.clear()
