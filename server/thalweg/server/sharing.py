"""The server's end of shared memory: invites workers, hands them parameters, and maps the slabs in which they write gradients."""

import asyncio
import hmac
import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress

import numpy as np

from thalweg.contract import codecs, memory
from thalweg.contract.layout import Slab
from thalweg.server.messages import WorkerId
from thalweg.v1 import job_pb2, parameter_service_pb2

_log = logging.getLogger(__name__)
# No honest worker has more slabs: it needs one for each task that it has at one version.
_MOST_SLABS = 256
# Callers that have not said anything yet.
_MOST_CALLERS = 256


def suits(spec: job_pb2.JobSpec) -> bool:
    """Whether a job's workers may read the parameters where the server writes them.

    With other policies a worker may still compute at a version when its buffer is being overwritten, and its answer counts.
    With a codec that rounds, workers are to read what travels, and not the parameters themselves.
    """
    return memory.AVAILABLE and codecs.exact(spec) and spec.training.synchrony.WhichOneof("policy") in ("bulk", "local")


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
        self._files.append(memory.create(elements * dtype.itemsize))
        return memory.slab(self._files[-1], elements, dtype, writable=True)

    def give(self, peer: socket.socket) -> None:
        """Lets a worker read them. Raises OSError."""
        files: list[int] = []
        try:
            files.extend(memory.read_only(file) for file in self._files)
            memory.give(peer, *files)
        finally:
            for file in files:
                os.close(file)

    def close(self) -> None:
        """Nobody else gets them. The arrays stay."""
        for file in self._files:
            os.close(file)
        self._files = []


class Guest:
    """One worker that was invited. `attached` once it has come, `served` once it has the parameters and is spoken to here.

    `hear` is told what it says, `lost` that nothing more can be said to it or heard of it.
    """

    def __init__(self, name: str, hear: Callable[[bytes], object], lost: Callable[[str], object]) -> None:
        self.token = secrets.token_bytes(memory.TOKEN_BYTES)
        self.offer = parameter_service_pb2.SharedMemory(address=name, token=self.token)
        self.served = False
        self._hear = hear
        self._lost = lost
        self._peer: socket.socket | None = None
        self._files: list[int] = []
        self._slabs: dict[int, Slab] = {}

    @property
    def attached(self) -> bool:
        """Whether the worker has come, and not gone."""
        return self._peer is not None

    def attach(self, peer: socket.socket) -> None:
        """The worker has come."""
        self._peer = peer
        peer.send(memory.OK)
        asyncio.get_running_loop().add_reader(peer, self._read)

    def serve(self, slabs: SharedSlabs) -> None:
        """Lets the worker read the parameters. Raises OSError if it is gone."""
        if self._peer is None:
            raise BrokenPipeError("the worker is gone")
        slabs.give(self._peer)
        self.served = True

    def say(self, data: bytes) -> None:
        """Sends a message."""
        if self._peer is not None:
            try:
                # Never more than some tasks wait to be read: if there is no room, nobody reads.
                self._peer.send(data)
            except OSError as error:
                self._end(str(error))

    def _read(self) -> None:
        """Takes what has come: a slab for gradients, or a message."""
        try:
            while self._peer is not None:
                data, files = memory.take(self._peer, 1)
                self._files += files
                if not data or len(data) == memory.MOST_BYTES or len(self._files) > _MOST_SLABS:
                    self._end("the socket was closed" if not data else "more than there can be")
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
            if number >= len(self._files):
                raise memory.SharingError(f"there is no slab {number}")
            self._slabs[number] = memory.slab(self._files[number], elements, dtype, writable=False)
        return self._slabs[number]

    def close(self) -> None:
        """The worker is gone. What has come of its gradients stays as long as it is needed."""
        if self._peer is not None:
            with suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._peer)
            self._peer.close()
            self._peer = None
        for file in self._files:
            os.close(file)
        self._files = []
        self._slabs = {}


class Sharing:
    """Where workers on this machine ask for memory. Belongs to the event loop in which it is made. Raises OSError."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener, self._name = memory.listen()
        self._listener.setblocking(False)
        self._guests: list[Guest] = []
        self._callers: set[socket.socket] = set()
        self._loop.add_reader(self._listener, self._accept)

    def invite(self, hear: Callable[[bytes], object], lost: Callable[[str], object]) -> Guest:
        """Somebody who may come; see Guest."""
        guest = Guest(self._name, hear, lost)
        self._guests.append(guest)
        return guest

    def dismiss(self, guest: Guest) -> None:
        """Whoever was invited is not any more, or has gone."""
        if guest in self._guests:
            self._guests.remove(guest)
        guest.close()

    def _accept(self) -> None:
        try:
            caller, _ = self._listener.accept()
        except OSError as error:
            _log.warning("a worker cannot share memory: %s", error)
            return
        caller.setblocking(False)
        if len(self._callers) >= _MOST_CALLERS or memory.user_of(caller) != os.geteuid():
            caller.close()
            return
        self._callers.add(caller)
        self._loop.add_reader(caller, self._hear, caller)

    def _hear(self, caller: socket.socket) -> None:
        """A caller's first word: its token, or nothing that would do."""
        self._loop.remove_reader(caller)
        self._callers.discard(caller)
        try:
            token = caller.recv(memory.TOKEN_BYTES + 1)
            guest = next((each for each in self._guests if hmac.compare_digest(each.token, token)), None)
            if guest and not guest.attached:
                guest.attach(caller)
                return
        except OSError as error:
            _log.info("a worker's socket broke: %s", error)
        caller.close()

    def close(self) -> None:
        """Nobody can come any more, and who has come is gone."""
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for caller in self._callers:
            self._loop.remove_reader(caller)
            caller.close()
        for guest in self._guests:
            guest.close()


class JobSharing:
    """What one job shares with those of its workers that can. Without `sharing`, or where the job does not suit it, nothing."""

    def __init__(self, sharing: Sharing | None, spec: job_pb2.JobSpec) -> None:
        self._sharing = sharing if suits(spec) else None
        self._guests: dict[WorkerId, Guest] = {}
        self._slabs: SharedSlabs | None = None
        self._withdrawn = False

    def invite(
        self, worker: WorkerId, hear: Callable[[bytes], object], lost: Callable[[str], object]
    ) -> parameter_service_pb2.SharedMemory | None:
        """The offer for a worker, if there is one; see Guest."""
        if self._sharing is None:
            return None
        self._guests[worker] = guest = self._sharing.invite(hear, lost)
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
            raise memory.SharingError("the worker shares no memory")
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
        self._sharing = None
