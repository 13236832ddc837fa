"""Slabs: all tensors of a model end to end in one contiguous array, each a view of a range of it."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from thalweg.contract import segments
from thalweg.contract.segments import Kind, Segment, end_of
from thalweg.v1 import job_pb2

Slab = NDArray[np.floating]

# The metadata entry of a server's own safetensors files that holds the message that describes them, in base64.
HEADER = "thalweg.header"


_KINDS: dict[Kind, job_pb2.Tensor.Kind.ValueType] = {
    # As in layouts of earlier releases, which have no kinds.
    Kind.PARAMETER: job_pb2.Tensor.KIND_UNSPECIFIED,
    Kind.STATISTIC: job_pb2.Tensor.KIND_STATISTIC,
    Kind.CONSTANT: job_pb2.Tensor.KIND_CONSTANT,
}
_KIND_OF = {value: kind for kind, value in _KINDS.items()}


def layout_of(parts: Iterable[Segment], dtype: np.dtype[np.floating], counters: Iterable[Segment] = ()) -> job_pb2.Layout:
    """The layout of a slab of segments, with the model's counters, which are not in the slab.

    Raises ValueError if the segments are not in the order of their kinds.
    """
    parts = tuple(parts)
    end_of(Kind.CONSTANT, parts)
    return job_pb2.Layout(tensors=tensors_of(parts), dtype=dtype.name, counters=tensors_of(counters))


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
