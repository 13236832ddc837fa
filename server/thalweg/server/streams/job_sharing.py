"""What one job shares in memory: its parameters, with those of its workers that run on this machine."""

import logging
from collections.abc import Callable, Iterable

import numpy as np

from thalweg.contract import codecs, shared_memory
from thalweg.contract.layout import Slab
from thalweg.server.deciding.values import WorkerId
from thalweg.server.streams.memory_listener import Sharing
from thalweg.server.streams.memory_peers import MemoryPeer, SharedSlabs
from thalweg.v1 import job_pb2, parameter_service_pb2

_log = logging.getLogger(__name__)


def suits(spec: job_pb2.JobSpec) -> bool:
    """Whether a job's workers may read the parameters where the server writes them.

    With other policies a worker may still compute at a version when its buffer is being overwritten, and its answer counts.
    With a codec that rounds, workers are to read what travels, and not the parameters themselves.
    """
    return shared_memory.AVAILABLE and codecs.exact(spec) and spec.training.synchrony.WhichOneof("policy") in ("bulk", "local")


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
            # It may be gone again: its socket and its stream end each at its time.
            return guest is not None and guest.came
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
        """Nothing will be shared, also not with workers that have connected already; they learn that when they are accepted."""
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
