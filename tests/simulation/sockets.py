"""Imaginary sockets between processes of one machine, over which the production code hands over real memory.

As with the kernel's, what is sent is at once in the receiver's queue, also if the sender dies then; the receiver wakes later. The
files are real, and so is what two processes see of them: each write at once.
"""

import array
import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from tests.simulation.network import Network

_NAME = "imaginary"
# More messages than ever wait.
_MANY = 1 << 20


class ImaginarySocket:
    """One end of a connection for messages and files. `busy` is the time until which its process stands still."""

    def __init__(self, network: Network, busy: Callable[[], float], room: int) -> None:
        self.on_readable: Callable[[], object] | None = None
        self.on_writable: Callable[[], object] | None = None
        self.other: ImaginarySocket | None = None
        self._network = network
        self._loop = network.loop
        self._busy = busy
        # How many messages its queue holds.
        self._room = room
        self._come: deque[tuple[bytes, list[int]]] = deque()
        self._closed = False

    @property
    def readable(self) -> bool:
        """Whether there is something to be read, or the end."""
        return bool(self._come) or self.other is None

    def wake(self) -> None:
        """Has the process that has this end see, some time, what there is to be done."""
        self._loop.at(self._network.seconds() / 10, self._look)

    def _look(self) -> None:
        until = self._busy()
        if until > self._loop.now:
            self._loop.at(until - self._loop.now, self._look)
            return
        if self.on_readable and self.readable:
            self.on_readable()
        if self.on_writable and not (self.other and self.other.full):
            self.on_writable()

    @property
    def full(self) -> bool:
        """Whether nothing more can be sent to it."""
        return len(self._come) >= self._room

    def send(self, data: bytes) -> int:
        self._send(bytes(data), [])
        return len(data)

    def sendmsg(self, buffers: Iterable[bytes], ancillary: Iterable[tuple[int, int, "array.array[int]"]]) -> None:
        self._send(b"".join(buffers), [file for _, _, files in ancillary for file in files])

    def _send(self, data: bytes, files: list[int]) -> None:
        if self._closed:
            raise OSError(errno.EBADF, "closed")
        if self.other is None:
            raise BrokenPipeError(errno.EPIPE, "the other end is closed")
        if self.other.full:
            raise BlockingIOError
        self.other._come.append((data, [os.dup(file) for file in files]))
        self.other.wake()

    def recv(self, size: int) -> bytes:
        data, _, _, _ = self.recvmsg(size, 0)
        return data

    def recvmsg(self, size: int, ancillary: int, flags: int = 0) -> tuple[bytes, list[Any], int, None]:
        if not self._come:
            if self.other:
                raise BlockingIOError
            return b"", [], 0, None
        data, files = self._come.popleft()
        if self.other:
            self.other.wake()
        if not ancillary:
            _close(files)
            return data[:size], [], 0, None
        return data[:size], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files).tobytes())], 0, None

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        return struct.pack("iII", 1, os.geteuid(), 0)

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""

    def close(self) -> None:
        """The end of this end, and of the other one when that has read what has come."""
        self._closed = True
        self.on_readable = self.on_writable = None
        for _, files in self._come:
            _close(files)
        self._come.clear()
        if self.other:
            self.other.other = None
            self.other.wake()
        self.other = None


def _close(files: Iterable[int]) -> None:
    for file in files:
        with suppress(OSError):
            os.close(file)


class ImaginaryListener:
    """Where workers of a machine call the server."""

    def __init__(self, network: Network, busy: Callable[[], float]) -> None:
        self.on_readable: Callable[[], object] | None = None
        self.on_writable: Callable[[], object] | None = None
        # Until when the server's process has no descriptors for callers.
        self.failing_until = 0.0
        self._network = network
        self._loop = network.loop
        self._busy = busy
        self._calling: deque[ImaginarySocket] = deque()
        self._closed = False

    def call(self, busy: Callable[[], float]) -> ImaginarySocket | None:
        """A worker's end of a connection; None if nobody listens."""
        if self._closed:
            return None
        room = self._network.random.choice([1, 3, _MANY])
        here, there = ImaginarySocket(self._network, busy, room), ImaginarySocket(self._network, self._busy, _MANY)
        here.other, there.other = there, here
        self._calling.append(there)
        self.wake()
        return here

    def wake(self) -> None:
        """Has the server see that somebody calls."""
        self._loop.at(self._network.seconds() / 10, self._look)

    def _look(self) -> None:
        if self._busy() > self._loop.now:
            self._loop.at(self._busy() - self._loop.now, self._look)
        elif self.on_readable and self._calling:
            self.on_readable()
            self.wake()

    def accept(self) -> tuple[ImaginarySocket, None]:
        if self._loop.now < self.failing_until:
            raise OSError(errno.EMFILE, "too many open files")
        if not self._calling:
            raise BlockingIOError
        return self._calling.popleft(), None

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""

    def close(self) -> None:
        """Nobody listens any more."""
        self._closed = True
        self.on_readable = None
        for caller in self._calling:
            caller.close()
        self._calling.clear()


class MemorySide:
    """What the processes of one machine have of its memory and sockets: `create` takes the place of `shared_memory.create`."""

    def __init__(self, network: Network, busy: Callable[[], float], create: Callable[[int], int]) -> None:
        self.listener: ImaginaryListener | None = None
        self.scarce = False
        self._network = network
        self._busy = busy
        self._create = create

    def listen(self) -> tuple[ImaginaryListener, str]:
        """In the place of `shared_memory.listen`."""
        self.listener = ImaginaryListener(self._network, self._busy)
        return self.listener, _NAME

    def create(self, size: int) -> int:
        """A file in memory, if there is memory."""
        if self.scarce:
            raise OSError(errno.ENOMEM, "no memory")
        return self._create(size)
