"""Where a module computes: on the processor, in the memory of slabs, or on a device with memory of its own."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from thalweg.contract.layout import Slab
from thalweg.learning.errors import NodeError
from thalweg.learning.objective import Progress
from thalweg.learning.pytorch.parts import tensor_of
from thalweg.v1 import job_pb2

# Slabs whose tensors are remembered: one or two for each level of the tree, and the parameters at even and at odd versions.
MAX_SLABS = 18
# The elements that travel to or from a device at once.
_CHUNK = 1 << 20

Key = TypeVar("Key")
Value = TypeVar("Value")


class Remembered(Generic[Key, Value]):
    """What was made for the last few objects, each of which is known by its identity: the same few slabs come again and again."""

    def __init__(self, make: Callable[[Key], Value], most: int) -> None:
        self._make = make
        self._most = most
        # A key that is kept has its id for itself.
        self._known: dict[int, tuple[Key, Value]] = {}

    def __getitem__(self, key: Key) -> Value:
        known = self._known.get(id(key))
        if known is None:
            if len(self._known) >= self._most:
                del self._known[next(iter(self._known))]
            known = self._known[id(key)] = key, self._make(key)
        return known[1]


class Device(Protocol):
    """Where a module computes. Its tensors have a slab's layout. Belongs to one thread at a time."""

    @property
    def place(self) -> torch.device:
        """PyTorch's name for it."""

    @property
    def premises(self) -> Mapping[str, str]:
        """What results depend on there, beside the processor and PyTorch: names and values."""

    def values(self, at: Slab) -> Tensor:
        """The numbers of a slab of parameters, to be read until the next call. A slab always has the same tensor."""

    def gradient(self, out: Slab) -> Tensor:
        """Where the numbers are written that a slab is to have. A slab always has the same tensor."""

    def carrier(self, out: Slab, done: Progress) -> Progress:
        """Carries to a slab what is written for it.

        Is called with the number of first elements that are final, and calls `done` with the number of those that have arrived.
        Once it has been called with the slab's size, all have.
        """


class Processor:
    """The processor: tensors are views of slabs, and nothing is copied."""

    place = torch.device("cpu")
    premises: Mapping[str, str] = MappingProxyType({})

    def __init__(self) -> None:
        self._tensors = Remembered(tensor_of, MAX_SLABS)

    def values(self, at: Slab) -> Tensor:
        """A view."""
        return self._tensors[at]

    def gradient(self, out: Slab) -> Tensor:
        """A view."""
        return self._tensors[out]

    def carrier(self, out: Slab, done: Progress) -> Progress:  # noqa: ARG002 - what is written is there
        """What is final has arrived."""
        return done


class Ticket(Protocol):
    """A copy on its way. `torch.cuda.Event` is one."""

    def query(self) -> bool:
        """Whether it has arrived."""

    def synchronize(self) -> None:
        """Waits until it has."""


class Link(Protocol):
    """The way to a device and back."""

    @property
    def place(self) -> torch.device:
        """The device."""

    @property
    def premises(self) -> Mapping[str, str]:
        """As `Device.premises`."""

    def staging(self, size: int, kind: torch.dtype) -> Tensor:
        """Memory of this machine that the device can read and write."""

    def send(self, host: Tensor, device: Tensor) -> None:
        """Copies to the device, before what it computes next. Returns at once: `host` must stay as it is until `settle`."""

    def fetch(self, device: Tensor, host: Tensor) -> Ticket:
        """Copies from the device, after what it has been given to compute so far, and while it computes further."""

    def settle(self) -> None:
        """Waits until all copies have arrived."""


class Accelerator:
    """A device with memory of its own: slabs travel there and back by chunks, through memory that the device can read and write.

    Parameters travel at each call, since a slab's numbers change: the same slab holds every other version.
    """

    def __init__(self, link: Link, size: int, kind: torch.dtype, chunk: int = _CHUNK) -> None:
        self.place = link.place
        self.premises = link.premises
        self._link = link
        self._size = size
        self._chunk = chunk
        self._staging = link.staging(size, kind)
        self._values = torch.zeros(size, dtype=kind, device=link.place)
        self._gradient = torch.zeros(size, dtype=kind, device=link.place)

    def values(self, at: Slab) -> Tensor:
        """A copy. While one chunk travels, the next one is put into the staging memory."""
        # What an earlier call left on its way when it failed.
        self._link.settle()
        source = tensor_of(at)
        for where in self._chunks(0, self._size):
            self._staging[where].copy_(source[where])
            self._link.send(self._staging[where], self._values[where])
        return self._values

    def gradient(self, out: Slab) -> Tensor:  # noqa: ARG002 - all slabs are filled from the same memory
        """Memory of the device."""
        return self._gradient

    def carrier(self, out: Slab, done: Progress) -> Progress:
        """Sends chunks of several parameters on their way, and never waits for them before the end."""
        target = tensor_of(out)
        travelling: deque[tuple[slice, Ticket]] = deque()
        sent = 0

        def carry(final: int) -> None:
            nonlocal sent
            last = final == self._size
            if last or final - sent >= self._chunk:
                for where in self._chunks(sent, final):
                    travelling.append((where, self._link.fetch(self._gradient[where], self._staging[where])))
                sent = final
            while travelling and (last or travelling[0][1].query()):
                where, ticket = travelling.popleft()
                ticket.synchronize()
                target[where].copy_(self._staging[where])
                done(where.stop)

        return carry

    def _chunks(self, start: int, stop: int) -> Iterator[slice]:
        for first in range(start, stop, self._chunk):
            yield slice(first, min(first + self._chunk, stop))


class Cuda:
    """The way to this process's first GPU: page-locked memory, and a stream for what comes back."""

    def __init__(self) -> None:
        self.place = torch.device("cuda", torch.cuda.current_device())
        self._back = torch.cuda.Stream(self.place)

    @property
    def premises(self) -> Mapping[str, str]:
        """The GPU's model, and the releases of NVIDIA's libraries."""
        return {
            "GPU": torch.cuda.get_device_name(self.place),
            "CUDA": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),
        }

    def staging(self, size: int, kind: torch.dtype) -> Tensor:
        """Page-locked memory."""
        return torch.zeros(size, dtype=kind, pin_memory=True)

    def send(self, host: Tensor, device: Tensor) -> None:
        """On the stream of the computation."""
        device.copy_(host, non_blocking=True)

    def fetch(self, device: Tensor, host: Tensor) -> Ticket:
        """On a stream of its own, which waits for what has been computed so far."""
        computed = torch.cuda.Event()
        computed.record(torch.cuda.current_stream(self.place))
        self._back.wait_event(computed)
        with torch.cuda.stream(self._back):
            host.copy_(device, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(self._back)
        arrived: Ticket = copied
        return arrived

    def settle(self) -> None:
        """Waits for all streams."""
        torch.cuda.synchronize(self.place)


def link_to(resources: job_pb2.Resources, *, substitutes: bool) -> Link | None:
    """The way to the GPU that a job asks for; None if it asks for none, or if there is none and the processor may stand in.

    Raises NodeError if there is none.
    """
    if not resources.gpus:
        return None
    if torch.cuda.is_available():
        return Cuda()
    if substitutes:
        return None
    why = "is built without CUDA" if torch.version.cuda is None else "finds none"
    raise NodeError(f"training.resources.gpus: this machine has no GPU for this worker: its PyTorch {torch.__version__} {why}")
