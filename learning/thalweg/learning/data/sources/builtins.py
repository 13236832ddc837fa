"""Data sets that come with the package: each is one line of the registry. Sources and licences: README.md."""

from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.text import closest
from thalweg.learning.data.errors import DataError
from thalweg.learning.data.sources import npz
from thalweg.learning.data.sources.columns import Source
from thalweg.v1 import job_pb2

Arrays = tuple[NDArray[Any], NDArray[Any]]


def _digits() -> Arrays:
    """Handwritten digits: x of shape (1797, 64), shades from 0 to 1; y the digit."""
    with resources.as_file(resources.files(__package__) / "digits.npz") as path:
        x, y = npz.load(path, "data.builtin", path.name)
    return x / 16.0, y.astype(np.int64)


def _gate(*outputs: int) -> Callable[[], Arrays]:
    """A logic gate: x are all pairs of 0 and 1, y the gate's outputs for 00, 01, 10 and 11."""
    inputs = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    return lambda: (inputs.copy(), np.array(outputs, np.int64))


BUILTINS: dict[str, Callable[[], Arrays]] = {
    "digits": _digits,
    "and": _gate(0, 0, 0, 1),
    "or": _gate(0, 1, 1, 1),
    "nand": _gate(1, 1, 1, 0),
    "xor": _gate(0, 1, 1, 0),
}


def load(name: str) -> Arrays:
    """A data set by its name. Raises DataError if there is none."""
    if name not in BUILTINS:
        close = closest(name, BUILTINS)
        hint = f"; did you mean {close!r}?" if close else ""
        raise DataError(f"data.builtin: unknown data set {name!r}; expected one of {', '.join(BUILTINS)}{hint}")
    return BUILTINS[name]()


def source(data: job_pb2.Data, _: object) -> Source:
    """The data set that a job names. Raises DataError if there is none of that name."""
    return Source(*load(data.builtin))
