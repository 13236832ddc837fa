"""Tensors of a module that are views of the same memory: in a slab each has a range of its own."""

from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from thalweg.learning.errors import MistakeError
from thalweg.learning.pytorch.attributes import parts_of_attributes


class _Named(NamedTuple):
    """A tensor of a module: what it is, with its name."""

    name: str
    kind: str
    tensor: Tensor

    def __str__(self) -> str:
        return f"the {self.kind} {self.name}"


class Overlap(NamedTuple):
    """Two tensors that are not one, and have elements in common. What is no attribute comes first."""

    one: _Named
    other: _Named


def overlaps(module: nn.Module) -> list[Overlap]:
    """Pairs of parameters, buffers and plain attributes that have elements in common."""
    by_storage: dict[int, list[_Named]] = defaultdict(list)
    known: set[int] = set()
    for named in _tensors(module):
        tensor = named.tensor
        if is_lazy(tensor) or id(tensor) in known or tensor.layout is not torch.strided or tensor.is_meta or not tensor.numel():
            continue
        known.add(id(tensor))
        by_storage[tensor.untyped_storage().data_ptr()].append(named)
    return [Overlap(*pair) for group in by_storage.values() if len(group) > 1 for pair in _meeting(group)]


def check_apart(found: Collection[Overlap], changing: Collection[str], attributes: Collection[int]) -> None:
    """Raises MistakeError if one of two tensors that overlap is among those that training changes.

    `attributes` are the identities of the tensors that still are plain attributes.
    """
    for one, other in found:
        if {one.name, other.name}.isdisjoint(changing) or (other.kind == "attribute" and id(other.tensor) not in attributes):
            continue
        first, view = sorted((one, other), key=lambda each: each.name not in changing)
        raise MistakeError(
            f"model.torch: {first} and {view} share memory, and would not when {first.name} is trained; compute {view.name} "
            f"from {first.name} in forward, or, if they are to be one, assign it itself, module.{view.name} = module.{first.name}"
        )


def tensors_of_attributes(module: nn.Module, hooked: bool = True) -> set[int]:
    """The identities of tensors that are in a module's plain attributes, as `parts_of_attributes` finds them."""
    return {id(part) for _, part in parts_of_attributes(module, hooked) if isinstance(part, Tensor)}


def _tensors(module: nn.Module) -> Iterator[_Named]:
    yield from (_Named(name, "parameter", tensor) for name, tensor in module.named_parameters())
    yield from (_Named(name, "buffer", tensor) for name, tensor in module.named_buffers())
    for name, part in parts_of_attributes(module):
        if isinstance(part, Tensor):
            yield _Named(name, "attribute", part)


def _meeting(group: list[_Named]) -> Iterator[tuple[_Named, _Named]]:
    """The pairs of tensors of one storage that have elements in common."""
    order = {id(each.tensor): index for index, each in enumerate(group)}
    open_ones: list[_Named] = []
    for each in sorted(group, key=lambda named: _extent(named.tensor)[0]):
        start = _extent(each.tensor)[0]
        open_ones = [before for before in open_ones if _extent(before.tensor)[1] > start]
        for before in open_ones:
            if _meet(before.tensor, each.tensor):
                one, other = sorted((before, each), key=lambda named: order[id(named.tensor)])
                yield one, other
        open_ones.append(each)


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The first byte of a tensor in its storage, and the one after its last."""
    start = tensor.storage_offset() * tensor.element_size()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def _meet(one: Tensor, other: Tensor) -> bool:
    """Whether tensors whose extents overlap have elements in common: columns of one matrix have not."""
    if one.element_size() != other.element_size() or (one.is_contiguous() and other.is_contiguous()):
        return True
    elements = max(_extent(each)[1] for each in (one, other)) // one.element_size()
    positions, used = torch.arange(elements), torch.zeros(elements, dtype=torch.bool)
    of_one, of_other = (torch.as_strided(positions, each.shape, each.stride(), each.storage_offset()) for each in (one, other))
    used[of_one] = True
    return bool(used[of_other].any())
