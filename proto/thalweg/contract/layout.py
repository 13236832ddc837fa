"""Slabs: all tensors of a model end to end in one contiguous array, each a view of a range of it."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.contract import segments
from thalweg.contract.segments import Kind, Segment, end_of
from thalweg.v1 import job_pb2

Slab = NDArray[np.floating]

# The metadata entry of a server's own safetensors files that holds the message that describes them, in base64.
HEADER = "thalweg.header"
# What the tensors of a layout that are not in the slab may have in all, and their types by name, little-endian.
MAX_FIXED_BYTES = 1 << 20
FIXED_DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        name: np.dtype(name).newbyteorder("<")
        for name in ("bool", *(f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)))
    }
)
_NOTHING: Mapping[str, Any] = MappingProxyType({})

_KINDS: dict[Kind, job_pb2.Tensor.Kind.ValueType] = {
    # As in layouts of earlier releases, which have no kinds.
    Kind.PARAMETER: job_pb2.Tensor.KIND_UNSPECIFIED,
    Kind.STATISTIC: job_pb2.Tensor.KIND_STATISTIC,
    Kind.CONSTANT: job_pb2.Tensor.KIND_CONSTANT,
}
_KIND_OF = {value: kind for kind, value in _KINDS.items()}


def layout_of(
    parts: Iterable[Segment],
    dtype: np.dtype[np.floating],
    counters: Iterable[Segment] = (),
    aliases: Mapping[str, str] = _NOTHING,
    fixed: Mapping[str, NDArray[Any]] = _NOTHING,
    order: Sequence[str] = (),
) -> job_pb2.Layout:
    """The layout of a slab of segments; with what is not in the slab: the model's counters and fixed tensors, and further names.

    `order` has all names in the order in which the model's author knows them, if that differs. Raises ValueError if it does not
    have each of them once, or if the segments are not in the order of their kinds.
    """
    parts = tuple(parts)
    end_of(Kind.CONSTANT, parts)
    layout = job_pb2.Layout(
        tensors=tensors_of(parts),
        dtype=dtype.name,
        counters=tensors_of(counters),
        aliases=[job_pb2.Alias(name=name, tensor=tensor) for name, tensor in aliases.items()],
        fixed=[_fixed(name, values) for name, values in fixed.items()],
    )
    names = names_of(layout)
    if order and list(order) != names:
        place = {name: index for index, name in enumerate(names)}
        if sorted(order) != sorted(names):
            raise ValueError("the order does not have each name once")
        layout.order.extend(place[name] for name in order)
    return layout


def _fixed(name: str, values: NDArray[Any]) -> job_pb2.Fixed:
    data = values.astype(FIXED_DTYPES[values.dtype.name]).tobytes()
    return job_pb2.Fixed(name=name, dtype=values.dtype.name, shape=values.shape, data=data)


def fixed_of(layout: job_pb2.Layout) -> dict[str, NDArray[Any]]:
    """The fixed tensors of a layout by name, for reading only. Raises ValueError if one is wrong, or they are too large."""
    if sum(len(fixed.data) for fixed in layout.fixed) > MAX_FIXED_BYTES:
        raise ValueError(f"fixed tensors have more than {MAX_FIXED_BYTES:,} bytes")
    found = {}
    for fixed in layout.fixed:
        dtype, shape = FIXED_DTYPES.get(fixed.dtype), tuple(fixed.shape)
        if dtype is None or math.prod(shape) * dtype.itemsize != len(fixed.data):
            raise ValueError(f"a fixed tensor of the type {fixed.dtype!r} and the shape {shape} has {len(fixed.data):,} bytes")
        if dtype.kind == "b" and fixed.data.strip(b"\0\1"):
            raise ValueError("a truth value is neither 0 nor 1")
        found[fixed.name] = np.frombuffer(fixed.data, dtype).reshape(shape)
    return found


def tensors_of(parts: Iterable[Segment]) -> list[job_pb2.Tensor]:
    """Segments as messages."""
    return [job_pb2.Tensor(name=segment.name, shape=segment.shape, kind=_KINDS[segment.kind]) for segment in parts]


def segments_of(tensors: Iterable[job_pb2.Tensor]) -> tuple[Segment, ...]:
    """The segments that messages describe. Raises ValueError if one is of a kind that this release does not know."""
    return tuple(Segment(tensor.name, tuple(tensor.shape), _kind(tensor)) for tensor in tensors)


def _kind(tensor: job_pb2.Tensor) -> Kind:
    if tensor.kind not in _KIND_OF:
        raise ValueError(f"{tensor.name}: there is no kind {tensor.kind} of tensors")
    return _KIND_OF[tensor.kind]


def names_beside(layout: job_pb2.Layout) -> list[str]:
    """The names of what is not in the slab: counters, fixed tensors and further names."""
    names = [counter.name for counter in layout.counters]
    names += [fixed.name for fixed in layout.fixed]
    return names + [alias.name for alias in layout.aliases]


def names_of(layout: job_pb2.Layout) -> list[str]:
    """All names: those in the slab, in its order, then the others."""
    return [tensor.name for tensor in layout.tensors] + names_beside(layout)


def ordered_names(layout: job_pb2.Layout) -> list[str]:
    """All names as the model's author knows them, as far as the layout says. Raises ValueError if its order makes no sense."""
    names = names_of(layout)
    if layout.order and sorted(layout.order) != list(range(len(names))):
        raise ValueError("the order of a layout does not have each name once")
    return [names[place] for place in layout.order] or names


def agree(one: job_pb2.Layout, other: job_pb2.Layout) -> bool:
    """Whether layouts are equal. Orders are compared only if both have one: layouts of earlier releases have none."""
    if one.order and other.order:
        return one == other
    alike = job_pb2.Layout()
    alike.CopyFrom(one)
    alike.order[:] = other.order
    return alike == other


def dtype_of(layout: job_pb2.Layout) -> np.dtype[np.floating]:
    """The little-endian NumPy type of the layout's elements."""
    return np.dtype({"float32": "<f4", "float64": "<f8"}[layout.dtype])


def elements(layout: job_pb2.Layout) -> int:
    """The number of elements of a slab of this layout."""
    return segments.elements(segments_of(layout.tensors))


def views(layout: job_pb2.Layout, slab: Slab) -> dict[str, Slab]:
    """The slab's tensors by name: views, not copies, each of its own shape, in the order of the slab.

    Raises ValueError if the slab does not have the layout's number of elements.
    """
    return views_of(segments_of(layout.tensors), slab)


def views_of(parts: Sequence[Segment], slab: Slab) -> dict[str, Slab]:
    """As `views`, by the slab's segments."""
    size = segments.elements(parts)
    if slab.shape != (size,):
        raise ValueError(f"a slab of {size} elements was expected, not one of shape {slab.shape}")
    tensors: dict[str, Slab] = {}
    start = 0
    for segment in parts:
        end = start + segment.size
        tensors[segment.name] = slab[start:end].reshape(segment.shape)
        start = end
    return tensors


def locate(layout: job_pb2.Layout, name: str, index: tuple[int, ...]) -> int:
    """The position in the slab of one element of one tensor.

    Raises KeyError if there is no such tensor, IndexError if it has no such element.
    """
    start = 0
    for tensor in layout.tensors:
        if tensor.name == name:
            shape = tuple(tensor.shape)
            if len(index) != len(shape) or any(not 0 <= i < n for i, n in zip(index, shape, strict=True)):
                raise IndexError(f"{name} has the shape {shape}")
            return start + int(np.ravel_multi_index(index, shape)) if shape else start
        start += math.prod(tensor.shape)
    raise KeyError(name)


def element_at(layout: job_pb2.Layout, position: int) -> tuple[str, tuple[int, ...]]:
    """The tensor's name and the index of the element at a position in the slab. Raises IndexError if it is outside."""
    start = 0
    for tensor in layout.tensors:
        shape = tuple(tensor.shape)
        if 0 <= position - start < math.prod(shape):
            return tensor.name, tuple(int(i) for i in np.unravel_index(position - start, shape))
        start += math.prod(shape)
    raise IndexError(f"position {position} is outside a slab of {start} elements")


def digest(slab: Slab) -> str:
    """The SHA-256, in hexadecimal, of the slab's bytes."""
    return hashlib.sha256(slab.data).hexdigest()


def ranges(size: int, block: int) -> Iterator[slice]:
    """Cuts `size` elements into blocks of `block`, the last one shorter."""
    for start in range(0, size, block):
        yield slice(start, min(start + block, size))
