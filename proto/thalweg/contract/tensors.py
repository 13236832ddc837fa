"""safetensors files as streams: written piece by piece, and read in place, so that neither takes memory for a whole file.

The bytes are those that the safetensors library writes (https://github.com/huggingface/safetensors, "Format").
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import FIXED_DTYPES, Slab, fixed_of, ordered_names, views
from thalweg.v1 import job_pb2

# A tensor, or the rows of one, each an array.
Tensor: TypeAlias = Slab | NDArray[np.integer | np.bool_] | Sequence[Slab]

_DTYPES: dict[str, np.dtype[np.floating]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
_COUNTER = np.dtype("<i8")
# The types of counters and fixed tensors.
UNREAD = {
    ("BOOL" if dtype.kind == "b" else f"{dtype.kind}{8 * dtype.itemsize}".upper()): dtype for dtype in FIXED_DTYPES.values()
}
_NAMES: dict[np.dtype[Any], str] = {dtype: name for name, dtype in (_DTYPES | UNREAD).items()}
# In a file, tensors lie in this order of their types, so that all are aligned.
_ORDER = {name: place for place, name in enumerate(("U64", "I64", "F64", "F32", "U32", "I32", "U16", "I16", "I8", "U8", "BOOL"))}
_METADATA = "__metadata__"
_PIECE_BYTES = 1 << 20
# The library's own limit.
_MAX_HEADER_BYTES = 100_000_000


def of_model(layout: job_pb2.Layout, slab: Slab, version: int) -> dict[str, Tensor]:
    """What a server's file of a model has by name when `version` updates are applied: views of its slab, and its counters."""
    return {**views(layout, slab), **counters_of(layout, version)}


def state(layout: job_pb2.Layout, slab: Slab, version: int) -> dict[str, NDArray[Any]]:
    """All of a model's tensors under all of their names, as its author knows them: views of its slab, counters, fixed tensors.

    They are in the order in which the author knows them, as far as the layout says.
    Raises ValueError if the layout makes no sense.
    """
    found: dict[str, NDArray[Any]] = {**views(layout, slab), **counters_of(layout, version), **fixed_of(layout)}
    for alias in layout.aliases:
        if alias.tensor not in found:
            raise ValueError(f"{alias.name} is another name of {alias.tensor}, which does not exist")
    found |= {alias.name: found[alias.tensor] for alias in layout.aliases}
    return {name: found[name] for name in ordered_names(layout)}


def counters_of(layout: job_pb2.Layout, version: int) -> dict[str, NDArray[np.int64]]:
    """A model's counters by name, when `version` updates are applied."""
    return {counter.name: np.full(tuple(counter.shape), version, _COUNTER) for counter in layout.counters}


def pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The bytes of a file, in order, in pieces of at most 1 MiB: the header, and views of the tensors.

    Tensors are float32, float64, integers or truth values, and contiguous. Rows are written as one tensor with one
    more dimension, the first.
    """
    rows = {name: [tensor] if isinstance(tensor, np.ndarray) else list(tensor) for name, tensor in tensors.items()}
    header: dict[str, object] = {_METADATA: dict(metadata)} if metadata else {}
    start = 0
    names = sorted(rows, key=lambda name: (_ORDER[_NAMES[rows[name][0].dtype]], name))
    for name in names:
        first, count = rows[name][0], len(rows[name])
        shape = first.shape if isinstance(tensors[name], np.ndarray) else (count, *first.shape)
        end = start + first.nbytes * count
        header[name] = {"dtype": _NAMES[first.dtype], "shape": shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        for row in rows[name]:
            data = row.reshape(-1).view(np.uint8).data
            for offset in range(0, len(data), _PIECE_BYTES):
                yield data[offset : offset + _PIECE_BYTES]


def read(data: memoryview) -> tuple[dict[str, Slab], dict[str, str]]:
    """The tensors of a file's bytes, as read-only views, and its metadata. Integers and truth values are left out.

    Raises ValueError if it is not a complete safetensors file, or has tensors of other types than these, float32 and float64.
    """
    size = int.from_bytes(data[:8], "little")
    if not len(data) >= 8 + size or not 0 < size <= _MAX_HEADER_BYTES:
        raise ValueError("not a whole safetensors file")
    header = json.loads(bytes(data[8 : 8 + size]))
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    body = data[8 + size :].toreadonly()
    metadata = header.pop(_METADATA, {})
    try:
        return {name: _tensor(entry, body) for name, entry in header.items() if entry["dtype"] not in UNREAD}, metadata
    except (KeyError, TypeError) as error:
        raise ValueError(f"its header does not describe tensors: {error!r}") from error


def _tensor(entry: Mapping[str, Any], body: memoryview) -> Slab:
    kind, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    dtype = _DTYPES.get(kind)
    fits = dtype is not None and 0 <= start <= end <= len(body) and all(extent >= 0 for extent in shape)
    if dtype is None or not fits or math.prod(shape) * dtype.itemsize != end - start:
        raise ValueError(f"a tensor cannot be of type {kind} and shape {shape} at {start} to {end} of {len(body)}")
    return np.frombuffer(body[start:end], dtype).reshape(shape)
