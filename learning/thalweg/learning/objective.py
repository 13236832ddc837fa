"""What training minimises: a model together with its loss, as a function of one slab of parameters.

`registry.py` lists the kinds of models.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import Slab, layout_of
from thalweg.contract.segments import Segment
from thalweg.contract.sums import Sums
from thalweg.learning.batch import Batch
from thalweg.learning.data.samples import Samples
from thalweg.learning.randomness import Draw
from thalweg.v1 import job_pb2

# What `model.dtype` may be.
_TRAINED = ("float64", "float32")

# Called with the number of final elements at the beginning of the slab, which grows until it is the slab's size.
Progress = Callable[[int], object]


def ignore(_: int) -> None:
    """The progress of a gradient that is used only when it is complete."""


class Outputs(NamedTuple):
    """A model's outputs for samples: arrays with the samples on the first axis.

    `values` are the outputs, in the model's dtype: logits, if the loss takes them. A classifier has `classes`: the class of each
    sample, int64 of shape (samples), or, for several yes-or-no outputs, 0 or 1 for each. If the outputs give probabilities,
    `probabilities` has the shape (samples, classes): one for each class, or, for yes-or-no outputs, that of each 1.

    Of a model that returns several arrays, `named` has all that have the samples on the first axis, by name; `values` is the
    first of them, and `left_out` are the names of all else that it returns.
    """

    values: Slab
    classes: NDArray[np.int64] | None = None
    probabilities: Slab | None = None
    named: Mapping[str, NDArray[Any]] | None = None
    left_out: tuple[str, ...] = ()


class Objective(Protocol):
    """A model with its loss. An object belongs to one thread.

    All methods are pure functions of their arguments: of `at`, a slab of parameters with the segments end to end, of a batch, and
    of a draw, from which random numbers such as dropout follow, and which is None outside training. Sums are over samples, so
    that the sums of parts can be added.
    """

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The tensors, in the order of the slab: parameters, then statistics, then constants."""

    @property
    def counters(self) -> tuple[Segment, ...]:
        """Tensors of integers that are not in the slab: each element is the number of updates applied."""

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The dtype of a slab."""

    @property
    def size(self) -> int:
        """The number of elements of a slab."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics whose sums `gradient` and `measure` return, in their order."""

    @property
    def activations(self) -> int:
        """The number of intermediate numbers that a gradient needs for each sample."""

    @property
    def packages(self) -> frozenset[str]:
        """The packages beside NumPy that it computes with, by the names of their distributions."""

    @property
    def numerical(self) -> bool:
        """Whether `gradient` takes differences of the loss: then workers better share out the coordinates."""

    def check(self, samples: Samples) -> None:
        """Raises MistakeError if samples do not fit the model. Some kinds look at all of them, others at the first few."""

    def initialize(self, out: Slab) -> None:
        """Writes the initial parameters, a function of the model and the job's seed."""

    def gradient(self, at: Slab, batch: Batch, denominator: int, draw: Draw | None, out: Slab, done: Progress = ignore) -> Sums:
        """Writes the gradient of the sum of the samples' losses, divided by `denominator`; returns the sums.

        In a statistic's range it writes (value at `at` - value after the batch) · samples / denominator, exactly 0 for one that
        does not change; in a constant's 0. Without samples all is zero. `done` is called while `out` is filled, and at the end,
        unless there are no parameters.
        """

    def measure(self, at: Slab, batch: Batch, draw: Draw | None = None) -> Sums:
        """The sums over samples."""

    def predict(self, at: Slab, batch: Batch) -> Outputs:
        """The outputs for samples, which need no target, in new arrays."""


@runtime_checkable
class Named(Protocol):
    """An objective of a model whose author knows more than its segments and counters by name."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """Further names of tensors: the name of the segment, counter or fixed tensor, by the further one."""

    @property
    def fixed(self) -> Mapping[str, NDArray[Any]]:
        """Tensors of integers or truth values that follow from the model and never change, by name."""


@runtime_checkable
class Ordered(Protocol):
    """An objective of a model whose author knows its tensors in another order than the slab's."""

    @property
    def order(self) -> tuple[str, ...]:
        """All names of the model's tensors, further ones included, in that order."""


@runtime_checkable
class Noticing(Protocol):
    """An objective of code, of which its author should know something besides."""

    @property
    def notices(self) -> tuple[str, ...]:
        """What the author should know. Each begins with the field of the job."""


@runtime_checkable
class Converting(Protocol):
    """An objective that converts tensors which its author's code makes of another dtype than the slab's."""

    @property
    def converted(self) -> Mapping[str, str]:
        """The dtypes of these tensors as the code makes them, by their names."""


def notices(objective: Objective) -> tuple[str, ...]:
    """What an objective's author should know of it."""
    others = objective.notices if isinstance(objective, Noticing) else ()
    return tuple(filter(None, (conversions(objective), *others)))


def conversions(objective: Objective) -> str:
    """What an objective's author should know of tensors that it converts; empty if it converts none."""
    made = objective.converted if isinstance(objective, Converting) else {}
    to, told = objective.dtype.name, []
    for dtype in sorted(set(made.values())):
        names = [name for name, each in made.items() if each == dtype]
        more = f" and {len(names) - 1} more tensors" if len(names) > 2 else f" and {names[1]}" if names[1:] else ""
        told.append(f"the code makes {names[0]}{more} of type {dtype}, which the job converts to {to}")
    if not told:
        return ""
    wanted = [dtype for dtype in _TRAINED if dtype in made.values()]
    advice = f'; to train with {wanted[0]}, set model.dtype = "{wanted[0]}"' if wanted else ""
    return f"model.dtype: {'; '.join(told)}{advice}"


def layout(objective: Objective) -> job_pb2.Layout:
    """The layout of an objective's slab, with all that is to be known of its tensors."""
    aliases, fixed = (objective.aliases, objective.fixed) if isinstance(objective, Named) else ({}, {})
    order = objective.order if isinstance(objective, Ordered) else ()
    return layout_of(objective.segments, objective.dtype, objective.counters, aliases, fixed, order)


@runtime_checkable
class Staged(Protocol):
    """An objective that is computed in stages: a parameter changes no stage before its own.

    Numerical differentiation by that parameter begins there.
    """

    @property
    def stages(self) -> NDArray[np.intp]:
        """The stage of each element of the slab."""

    def trace(self, at: Slab, batch: Batch, draw: Draw | None) -> tuple[list[Slab], Sums]:
        """A copy of the input of each stage; and the sums."""

    def loss_from(self, stage: int, value: Slab, at: Slab, batch: Batch, draw: Draw | None) -> float:
        """The sum of the samples' losses, from the input of a stage."""


@runtime_checkable
class Dependent(Protocol):
    """An objective whose results may depend on more than the processor and the releases of packages."""

    @property
    def premises(self) -> Mapping[str, str]:
        """What else they depend on, such as an accelerator's model or a compiler's release: names and values."""


# Is called with a name and a value, for each value that is computed on the way, in order.
Record = Callable[[str, NDArray[Any]], object]


@runtime_checkable
class Traced(Protocol):
    """An objective that can show what it computes on the way."""

    def traced(self, record: Record) -> AbstractContextManager[None]:
        """A context in which values that are computed on the way are recorded."""
