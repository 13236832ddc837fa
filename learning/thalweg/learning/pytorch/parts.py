"""What a module is made of: parameters, statistics, constants and counters, and where they lie in a slab."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from thalweg.contract.layout import FIXED_DTYPES, MAX_FIXED_BYTES, Slab
from thalweg.contract.resources import size_text
from thalweg.contract.segments import Kind, Segment
from thalweg.learning.errors import MistakeError

# Modules whose buffers are statistics.
_NORMALIZATION = (nn.modules.batchnorm._NormBase,)
# Batch normalization's count of batches: known by its name where a module cannot be tried.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Parameter:
    """A parameter of a module, and its range of the slab."""

    segment: Segment
    where: slice
    tensor: nn.Parameter

    def of(self, slab: Tensor) -> Tensor:
        """Its values in a slab's tensor: a view."""
        return slab[self.where].view(self.segment.shape)


@dataclass(frozen=True)
class Buffer:
    """A buffer of a module, and its range of the slab. It is found by its name: a module may put another tensor in its place."""

    segment: Segment
    where: slice
    owner: nn.Module
    key: str

    @property
    def tensor(self) -> Tensor:
        """The buffer."""
        return self.owner.get_buffer(self.key)

    def put(self, tensor: Tensor) -> None:
        """Puts a tensor in its place."""
        self.owner._buffers[self.key] = tensor

    def of(self, slab: Tensor) -> Tensor:
        """Its values in a slab's tensor: a view."""
        return slab[self.where].view(self.segment.shape)


@dataclass(frozen=True)
class Parts:
    """The tensors of a module.

    Those with a range of the slab are in its order: trained parameters, the module's last ones first, since backpropagation
    finishes these first; statistics; frozen parameters; constants. Counters have none.
    """

    trained: tuple[Parameter, ...]
    statistics: tuple[Buffer, ...]
    frozen: tuple[Parameter, ...]
    constants: tuple[Buffer, ...]
    counters: tuple[Buffer, ...]
    # Further names of tensors, and integers and truth values that never change.
    aliases: Mapping[str, str]
    fixed: Mapping[str, NDArray[Any]]
    # All names, in the order of the module's state.
    order: tuple[str, ...]

    @property
    def in_slab(self) -> tuple[Parameter | Buffer, ...]:
        """Those that have a range of the slab, in its order."""
        return self.trained + self.statistics + self.frozen + self.constants

    @property
    def changing(self) -> tuple[Parameter | Buffer, ...]:
        """Those that training changes."""
        return self.trained + self.statistics + self.counters


def parts_of(module: nn.Module, attempt: Callable[[], bool]) -> Parts:
    """The tensors of a module.

    `attempt` runs the module once as in training, which shows what changes of it; it says whether the module could be run. A
    buffer that changes is a statistic, or, if it counts by ones, a counter. Raises MistakeError if a parameter cannot lie in a
    slab, or if the module changes its parameters, or integers in another way than by counting.
    """
    parameters, buffers = dict(module.named_parameters()), dict(_buffers(module))
    for name, parameter in parameters.items():
        _check(name, parameter)
    for name, (owner, key) in buffers.items():
        _check_buffer(name, owner.get_buffer(key))
    aliases = dict(_aliases(module, {*parameters, *buffers}))
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    old = {name: owner.get_buffer(key).detach().clone() for name, (owner, key) in buffers.items()}
    attempted = attempt()
    for name, parameter in parameters.items():
        if not _same(parameter, before[name]):
            raise MistakeError(
                f"model.torch: the module changes its parameter {name} when it is called; only updates may change it"
            )
    real, changing, counters, fixed = {}, set(), {}, {}
    for name, (owner, key) in buffers.items():
        new, changed = owner.get_buffer(key), not _same(owner.get_buffer(key), old[name])
        if new.is_floating_point():
            real[name] = (owner, key)
            changing |= {name} if changed or not attempted or isinstance(owner, _NORMALIZATION) else set()
        elif name.endswith(_COUNTER) or (changed and bool((new == old[name] + 1).all())):
            counters[name] = (owner, key)
        elif changed:
            raise MistakeError(f"model.torch: the module changes its buffer {name} of integers, other than by counting its calls")
        else:
            fixed[name] = old[name].cpu().numpy()
        owner._buffers[key] = old[name]
    if (size := sum(values.nbytes for values in fixed.values())) > MAX_FIXED_BYTES:
        largest = max(fixed, key=lambda name: fixed[name].nbytes)
        raise MistakeError(
            f"model.torch: the module's buffers of integers have {size_text(size)}, {largest} is the largest; at most "
            f"{size_text(MAX_FIXED_BYTES)} are kept: register those that follow from the module with persistent=False"
        )
    ranges = _Ranges()
    trained = [each for each in parameters.items() if each[1].requires_grad]
    frozen = [each for each in parameters.items() if not each[1].requires_grad]
    return Parts(
        tuple(Parameter(*ranges.next(name, tensor, Kind.PARAMETER), tensor) for name, tensor in reversed(trained)),
        tuple(Buffer(*ranges.next(name, old[name], Kind.STATISTIC), *real[name]) for name in real if name in changing),
        tuple(Parameter(*ranges.next(name, tensor, Kind.CONSTANT), tensor) for name, tensor in frozen),
        tuple(Buffer(*ranges.next(name, old[name], Kind.CONSTANT), *real[name]) for name in real if name not in changing),
        tuple(Buffer(Segment(name, tuple(old[name].shape)), slice(0, 0), *place) for name, place in counters.items()),
        aliases,
        fixed,
        tuple(_in_order(module, [*parameters, *buffers, *aliases])),
    )


class _Ranges:
    """Cuts a slab."""

    def __init__(self) -> None:
        self._end = 0

    def next(self, name: str, tensor: Tensor, kind: Kind) -> tuple[Segment, slice]:
        """The segment of a tensor, and the range that follows the one before."""
        segment, start = Segment(name, tuple(tensor.shape), kind), self._end
        self._end += segment.size
        return segment, slice(start, self._end)


def _buffers(module: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    """The buffers that are kept with the module's parameters, each once: their names, where they are, and the names there."""
    kept, seen = module.state_dict(), set()
    for prefix, owner in module.named_modules():
        for key, buffer in owner.named_buffers(recurse=False):
            name = f"{prefix}.{key}" if prefix else key
            if name in kept and buffer is not None and id(buffer) not in seen:
                seen.add(id(buffer))
                yield name, (owner, key)


def _aliases(module: nn.Module, names: Collection[str]) -> Iterator[tuple[str, str]]:
    """The names in a module's state that are not among `names`, each with the one of the same tensor."""
    state = {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)}
    first = {id(tensor): name for name, tensor in state.items() if name in names}
    for name, tensor in state.items():
        # What a module of the user's adds to its state by itself is its own.
        if name not in names and id(tensor) in first:
            yield name, first[id(tensor)]


def _in_order(module: nn.Module, names: Sequence[str]) -> Iterator[str]:
    """Names in the order of a module's state, then those that it lacks, as where a hook of the user's leaves them out."""
    state, known = module.state_dict(), set(names)
    yield from (name for name in state if name in known)
    yield from (name for name in names if name not in state)


def _check_buffer(name: str, buffer: Tensor) -> None:
    kind = str(buffer.dtype).removeprefix("torch.")
    if not buffer.is_floating_point() and kind not in FIXED_DTYPES:
        raise MistakeError(
            f"model.torch: the buffer {name} has the type {kind}; buffers must be real numbers, integers or truth values, "
            "or be registered with persistent=False"
        )


def _check(name: str, parameter: nn.Parameter) -> None:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise MistakeError(
            f"model.torch: the parameter {name} has no shape yet; call lazy modules with a batch where they are made"
        )
    if not parameter.is_floating_point():
        kind = str(parameter.dtype).removeprefix("torch.")
        raise MistakeError(f"model.torch: the parameter {name} has the type {kind}; parameters must be real numbers")


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, where NaN equals itself."""
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())  # noqa: PLR0124 - NaN


def tensor_of(values: Slab) -> Tensor:
    """A tensor with the memory of an array. PyTorch knows no memory that is only read: nothing may write to it then."""
    return torch.from_numpy(values if values.flags.writeable else np.asarray(_Writable(values)))


class _Writable:
    """The memory of an array that is only read, for a library that knows no such memory."""

    def __init__(self, values: Slab) -> None:
        interface: dict[str, Any] = dict(values.__array_interface__)
        self._kept = values
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}
