"""Parameters to start from: safetensors files, held against a model's layout."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from thalweg.contract import layout as layouts
from thalweg.contract.layout import Slab
from thalweg.contract.segments import Kind
from thalweg.contract.tensors import UNREAD
from thalweg.server.validation import shown
from thalweg.v1 import job_pb2

_DTYPES = {"float32": "F32", "float64": "F64"}
_MAX_NAMED = 5


def check(path: Path, dtype: str) -> None:
    """Looks whether a file can be what a model of this dtype starts from, as far as that can be told without the model's layout.

    Reads none of its values. Raises ValueError if it is not a whole safetensors file of such tensors.
    """
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 - the file is no dictionary
            found = file.get_slice(name).get_dtype()
            if found != _DTYPES[dtype] and found not in UNREAD:
                raise ValueError(f"{shown(name)} is of type {found}, but model.dtype is {dtype}, which needs {_DTYPES[dtype]}")


def read(path: Path) -> dict[str, Slab]:
    """The tensors of a file that was checked. Raises ValueError if it is not a whole safetensors file."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no dictionary


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"is not a whole safetensors file: {error}") from error


def initial_slab(layout: job_pb2.Layout, tensors: Mapping[str, Slab]) -> Slab:
    """The slab of a layout, filled from tensors by name, any name of those that have several.

    The layout's counters and fixed tensors may be among them, and are ignored.

    Raises ValueError if their names, shapes or dtype are not the layout's, or if a value that is no constant is not finite.
    """
    segments = layouts.segments_of(layout.tensors)
    wanted = [segment.name for segment in segments]
    tensors = {alias.tensor: tensors[alias.name] for alias in layout.aliases if alias.name in tensors} | {**tensors}
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise ValueError(f"the model's {_listed(missing)} is missing; found: {_listed(sorted(tensors))}")
    unknown = sorted(set(tensors).difference(wanted, layouts.names_beside(layout)))
    if unknown:
        raise ValueError(f"the model has no {_listed(unknown)}; it has {_listed(wanted)}")
    slab = np.empty(layouts.elements(layout), layouts.dtype_of(layout))
    for (name, _, kind), view in zip(segments, layouts.views(layout, slab).values(), strict=True):
        found = tensors[name]
        if found.dtype != view.dtype:
            raise ValueError(f"{shown(name)} is {found.dtype}, but the model's is {layout.dtype}")
        if found.shape != view.shape:
            raise ValueError(f"{shown(name)} has the shape {list(found.shape)}, but the model's has {list(view.shape)}")
        if kind is not Kind.CONSTANT and not np.isfinite(found).all():
            raise ValueError(f"{shown(name)} has values that are NaN or infinite")
        view[...] = found
    return slab


def _listed(names: Iterable[str]) -> str:
    given = list(names)
    more = f" and {len(given) - _MAX_NAMED} more" if len(given) > _MAX_NAMED else ""
    return (", ".join(map(shown, given[:_MAX_NAMED])) or "none") + more
