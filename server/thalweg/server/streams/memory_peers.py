"""The server's end of shared memory: invites workers, hands them parameters, and maps the slabs in which they write gradients."""

import asyncio
import hashlib
import logging
import os
import secrets
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

import numpy as np

from thalweg.contract import codecs, shared_memory
from thalweg.contract.layout import Slab
from thalweg.server.deciding.values import WorkerId
from thalweg.v1 import job_pb2, parameter_service_pb2

_log = logging.getLogger(__name__)
# No honest worker has more slabs: it needs one for each task that it has at one version.
_MAX_SLABS = 256
# Callers that have not said anything yet, and how long they may take to.
_MAX_CALLERS = 256
_TOKEN_SECONDS = 10.0
# Messages that a worker has not read: several times as many as it can have tasks. How many of them its socket holds, the
# kernel's settings say.
_MAX_UNREAD = 4096
# How long nobody is let in after the process has run out of descriptors or memory.
_PAUSE_SECONDS = 1.0


def suits(spec: job_pb2.JobSpec) -> bool:
    """Whether a job's workers may read the parameters where the server writes them.

    With other policies a worker may still compute at a version when its buffer is being overwritten, and its answer counts.
    With a codec that rounds, workers are to read what travels, and not the parameters themselves.
    """
    return shared_memory.AVAILABLE and codecs.exact(spec) and spec.training.synchrony.WhichOneof("policy") in ("bulk", "local")


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
    """One worker that was invited. `attached` once it has come, `served` once it has the parameters and is spoken to here.

    `hear` is called with what it says, `lost` when nothing more can be said to it or heard of it.
    """

    def __init__(self, name: str, hear: Callable[[bytes], object], lost: Callable[[str], object]) -> None:
        self.token = secrets.token_bytes(shared_memory.TOKEN_BYTES)
        self.offer = parameter_service_pb2.SharedMemory(address=name, token=self.token)
        self.served = False
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


class Sharing:
    """Where workers on this machine ask for memory: at most `max_guests` at a time, the others use their streams.

    Belongs to the event loop in which it is made. Raises OSError.
    """

    def __init__(self, max_guests: int = sys.maxsize) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener, self._name = shared_memory.listen()
        self._listener.setblocking(False)
        self._max_guests = max_guests
        self._guests: dict[bytes, MemoryPeer] = {}  # by a digest of their tokens
        self._callers: dict[socket.socket, asyncio.TimerHandle] = {}
        self._resuming: asyncio.TimerHandle | None = None
        self._failing = False
        self._resume()

    def invite(self, hear: Callable[[bytes], object], lost: Callable[[str], object]) -> MemoryPeer | None:
        """A worker that may come; see MemoryPeer. None if there are as many as can be."""
        if len(self._guests) >= self._max_guests:
            return None
        guest = MemoryPeer(self._name, hear, lost)
        self._guests[_digest(guest.token)] = guest
        return guest

    def dismiss(self, guest: MemoryPeer) -> None:
        """A worker that was invited may not come any more, or has gone."""
        self._guests.pop(_digest(guest.token), None)
        guest.close()

    def _resume(self) -> None:
        self._resuming = None
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            caller, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            # The caller still waits, so the listener would be ready again at once.
            self._loop.remove_reader(self._listener)
            self._resuming = self._loop.call_later(_PAUSE_SECONDS, self._resume)
            if not self._failing:
                self._failing = True
                _log.warning("workers on this machine cannot share memory at the moment: %s", error)
            return
        self._failing = False
        caller.setblocking(False)
        if len(self._callers) >= _MAX_CALLERS or shared_memory.user_of(caller) != os.geteuid():
            caller.close()
            return
        self._callers[caller] = self._loop.call_later(_TOKEN_SECONDS, self._turn_away, caller)
        self._loop.add_reader(caller, self._hear, caller)

    def _turn_away(self, caller: socket.socket) -> None:
        """Ends a caller that has said nothing."""
        self._listened(caller)
        caller.close()

    def _listened(self, caller: socket.socket) -> None:
        """A caller is no longer listened to here."""
        self._loop.remove_reader(caller)
        self._callers.pop(caller).cancel()

    def _hear(self, caller: socket.socket) -> None:
        """A caller's first word: its token, or something that will not do."""
        self._listened(caller)
        try:
            guest = self._guests.get(_digest(caller.recv(shared_memory.TOKEN_BYTES + 1)))
            if guest and not guest.attached:
                guest.attach(caller)
                return
        except OSError as error:
            _log.info("a worker's socket broke: %s", error)
        caller.close()

    def close(self) -> None:
        """Nobody can come any more, and who has come is gone."""
        if self._resuming:
            self._resuming.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for caller in list(self._callers):
            self._turn_away(caller)
        for guest in self._guests.values():
            guest.close()


def _digest(token: bytes) -> bytes:
    """By which a token is looked up: how long that takes tells nothing of the tokens."""
    return hashlib.sha256(token).digest()


class JobSharing:
    """What one job shares with those of its workers that can. Without `sharing`, or where the job does not suit it, nothing."""

    def __init__(self, sharing: Sharing | None, spec: job_pb2.JobSpec) -> None:
        self._sharing = sharing if suits(spec) else None
        self._guests: dict[WorkerId, MemoryPeer] = {}
        self._slabs: SharedSlabs | None = None
        self._withdrawn = False

    def invite(
        self, worker: WorkerId, hear: Callable[[bytes], object], lost: Callable[[str], object]
    ) -> parameter_service_pb2.SharedMemory | None:
        """The offer for a worker, if there is one; see MemoryPeer."""
        guest = self._sharing.invite(hear, lost) if self._sharing else None
        if guest is None:
            return None
        self._guests[worker] = guest
        return guest.offer

    def leave(self, worker: WorkerId) -> None:
        """A worker is gone, or shares nothing."""
        guest = self._guests.pop(worker, None)
        if guest and self._sharing:
            self._sharing.dismiss(guest)

    def settle(self, worker: WorkerId, took: bool) -> bool:
        """A worker says whether it took the offer. False if that is not true."""
        guest = self._guests.get(worker)
        if took and not self._withdrawn:
            return guest is not None and guest.attached
        self.leave(worker)
        return True

    def allocate(self, elements: int, dtype: np.dtype[np.floating]) -> tuple[Slab, Slab] | None:
        """The two versions of the parameters, if they are to be shared. Without enough memory for that, they are not."""
        if self._sharing is None:
            return None
        try:
            self._slabs = SharedSlabs(elements, dtype)
        except OSError as error:
            _log.warning("parameters cannot be shared: %s", error)
            self.withdraw()
            return None
        return self._slabs.slabs

    def withdraw(self) -> None:
        """Nothing will be shared, also with those who have come already; they are told so when they are accepted."""
        self._withdrawn = True
        self.close()

    def accept(self, worker: WorkerId) -> bool:
        """Lets a worker read the parameters, if it shares memory; says whether it does. Raises OSError."""
        if worker not in self._guests or self._slabs is None:
            return False
        self._guests[worker].serve(self._slabs)
        return True

    def say(self, worker: WorkerId, message: parameter_service_pb2.WorkResponse) -> bool:
        """Sends a message to a worker beside its stream; False if it is to be sent on the stream."""
        guest = self._guests.get(worker)
        if guest is None or not guest.served:
            return False
        guest.say(message.SerializeToString())
        return True

    def slab(self, worker: WorkerId, number: int, elements: int, dtype: np.dtype[np.floating]) -> Slab:
        """A slab of a worker's. Raises SharingError if there is none, or one of another size."""
        if worker not in self._guests:
            raise shared_memory.SharingError("the worker shares no memory")
        return self._guests[worker].slab(number, elements, dtype)

    def remote(self, workers: Iterable[WorkerId]) -> list[WorkerId]:
        """Those of the workers to which parameters are to be sent."""
        return [worker for worker in workers if worker not in self._guests]

    def close(self) -> None:
        """Nothing is shared any more."""
        for worker in list(self._guests):
            self.leave(worker)
        if self._slabs:
            self._slabs.close()
        self._slabs = self._sharing = None
