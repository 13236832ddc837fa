"""The model kind `python`: an object of the user's, with arrays of NumPy's and a loss."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import Slab, views_of
from thalweg.contract.segments import Segment, elements
from thalweg.contract.sums import Sums
from thalweg.contract.text import visible
from thalweg.learning import entry_points
from thalweg.learning.batch import TARGET, Batch, in_double, inputs, size
from thalweg.learning.data.samples import Samples
from thalweg.learning.errors import MistakeError
from thalweg.learning.numerical import NumericalDifferentiator, central_step
from thalweg.learning.objective import Outputs, Progress, ignore
from thalweg.learning.outputs import named_outputs
from thalweg.learning.randomness import Draw, Purpose, generator, seeded
from thalweg.v1 import job_pb2

_FIELD = "model.python"
# The methods that an object may have.
_INITIAL, _LOSS, _GRADIENT, _PREDICT = (
    "initial(rng)",
    "loss(parameters, x, y)",
    "gradient(parameters, x, y)",
    "predict(parameters, x)",
)
# A gradient is held against differences on the first samples, at two coordinates of each of a few tensors.
_TRIED = 4
_MAX_TRIED_SEGMENTS = 32
# How far, of the largest value of a tensor's gradient, the gradient may be from the difference.
_TOLERANCE = 1e-2

Method = Callable[..., object]


class _Loss(NamedTuple):
    """The sum of the samples' losses; whether it was given as their mean; and the dtype in which it was given."""

    total: float
    mean: bool
    dtype: np.dtype[np.floating]


class PythonObjective:
    """The objective of a job whose model is an object with these methods:

    - `initial(rng)`: the initial parameters by name, in the order of the slab. `rng` is a `numpy.random.Generator`.
    - `loss(parameters, x, y)`: a loss for each sample, of shape (samples), or their mean.
    - `gradient(parameters, x, y)`, if there is one: the gradient of `sum(loss(parameters, x, y))`, so of the sum of the samples'
      losses, or of their mean if the loss is that; for each parameter by name, an array of its shape. Without it, the loss is
      differentiated numerically.
    - `predict(parameters, x)`, if there is one: the outputs, with the samples on the first axis, or several in a dictionary.

    All arguments can only be read. In numerical differentiation they are in double precision whatever the model's dtype, and the
    loss should be, too. `spec` has its defaults filled in. Raises MistakeError, with the user's own lines, if the object cannot
    be made.
    """

    def __init__(self, spec: job_pb2.JobSpec, dtype: str | None = None) -> None:
        self._dtype: np.dtype[np.floating] = np.dtype(dtype or spec.model.dtype)
        self._seed = spec.seed
        made = self._made(spec.model.python)
        self._initial = _method(made, _INITIAL)
        self._loss = _method(made, _LOSS)
        self._gradient = _method_if_any(made, _GRADIENT)
        self._predict = _method_if_any(made, _PREDICT)
        self._segments = tuple(Segment(name, values.shape) for name, values in self._initial_values().items())
        self._size = elements(self._segments)
        self._bound: tuple[Slab, dict[str, Slab]] | None = None
        self._differences: NumericalDifferentiator | None = None
        self._checked = False

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The parameters, in the order in which `initial` gives them."""
        return self._segments

    @property
    def counters(self) -> tuple[Segment, ...]:
        """None."""
        return ()

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The dtype of parameters and gradients."""
        return self._dtype

    @property
    def size(self) -> int:
        """The number of parameters."""
        return self._size

    @property
    def metrics(self) -> tuple[str, ...]:
        """None: there is the loss."""
        return ()

    @property
    def activations(self) -> int:
        """0: it is not known how many numbers a gradient takes in between."""
        return 0

    @property
    def packages(self) -> frozenset[str]:
        """None: it is not known with which packages the object computes."""
        return frozenset()

    @property
    def numerical(self) -> bool:
        """Whether the object has no gradient of its own."""
        return self._gradient is None

    def check(self, samples: Samples) -> None:
        """Raises MistakeError if samples and object do not fit together, or if its gradient is not that of its loss.

        The first samples are evaluated at the initial parameters, twice: equal arguments must give equal bits.
        """
        if self._checked or not len(samples):
            return
        self._checked = True
        few = in_double(samples.take(slice(_TRIED)))
        at: Slab = np.empty(self._size, np.float64)
        self.initialize(at)
        found = self._evaluated(at, few, (0, 0))
        if not math.isfinite(found.total):
            raise MistakeError(f"{_FIELD}: the loss of the first samples is {found.total} with the initial parameters")
        if self._evaluated(at, few, (0, 0)) != found:
            raise MistakeError(
                f"{_FIELD}: {_LOSS} gave two results for the same arguments; it must follow from them alone, with random numbers "
                "from `random` or `numpy.random` only"
            )
        if self._gradient is None and found.dtype != np.float64:
            raise MistakeError(
                f"{_FIELD}: {_LOSS} gave {found.dtype} for arguments of type float64; without {_GRADIENT} it is differentiated "
                "numerically, which needs double precision"
            )
        if self._predict:
            self.predict(at, few)
        if self._gradient:
            # Where a parameter starts at 0, a kink, as of a relu, may be; so all are moved a little. By chance they may come to
            # a kink, but not at two places.
            moves = np.random.default_rng(0).normal(0, 0.01, (2, self._size))
            problems = [self._difference(at + move, few) for move in moves]
            if all(problems):
                raise MistakeError(f"{_FIELD}: {problems[0]}")

    def initialize(self, out: Slab) -> None:
        """Writes the initial parameters, a function of the object and the seed."""
        values = self._initial_values()
        if tuple(Segment(name, array.shape) for name, array in values.items()) != self._segments:
            raise MistakeError(f"{_FIELD}: {_INITIAL} gave other names or shapes when it was called again")
        for name, view in views_of(self._segments, out).items():
            view[...] = values[name]

    def gradient(self, at: Slab, batch: Batch, denominator: int, draw: Draw | None, out: Slab, done: Progress = ignore) -> Sums:
        """Writes the gradient of the sum of the samples' losses, divided by `denominator`; gives the sums.

        Without samples it is zero. `done` is called at the end.
        """
        samples = size(batch)
        if samples == 0:
            out[...] = 0
            sums = Sums()
        elif self._gradient is None:
            self._differences = self._differences or NumericalDifferentiator(self, "numerical")
            point = self._differences.at(at, batch, draw)
            self._differences.differentiate(point, denominator, slice(0, self._size), out)
            sums = point.sums
        else:
            loss = self._evaluated(at, batch, draw)
            found = self._gradients(self._gradient, at, batch, draw)
            factor = (samples if loss.mean else 1) / denominator
            for name, view in views_of(self._segments, out).items():
                np.multiply(found[name], factor, out=view, casting="same_kind")
            sums = Sums(loss.total, samples)
        done(self._size)
        return sums

    def measure(self, at: Slab, batch: Batch, draw: Draw | None = None) -> Sums:
        """The sums over samples. `at` may be in another precision than the model's."""
        return Sums(self._evaluated(at, batch, draw).total, size(batch)) if size(batch) else Sums()

    def predict(self, at: Slab, batch: Batch) -> Outputs:
        """The object's outputs for samples. Raises MistakeError if it has no `predict`."""
        if self._predict is None:
            raise MistakeError(f"{_FIELD}: the object has no method {_PREDICT}, which predictions need; add it")
        with self._calling(None):
            found = self._predict(self._parameters(at), inputs(_read_only(batch)))
        if isinstance(found, (Mapping, list, tuple)) or is_dataclass(found):
            return named_outputs(found, np.ndarray, self._output, size(batch), f"{_FIELD}: {_PREDICT}")
        values = _array(found, _PREDICT, (np.number, np.bool_))
        if values.shape[:1] != (size(batch),):
            raise MistakeError(
                f"{_FIELD}: {_PREDICT} gave the shape {values.shape} for {size(batch)} samples; the first axis must be theirs"
            )
        return Outputs(values.astype(self._dtype))

    def _output(self, values: NDArray[Any]) -> NDArray[Any]:
        """A copy of an array of outputs, real numbers in the model's dtype."""
        return np.array(values, self._dtype if values.dtype.kind == "f" else None)

    def _made(self, entry: job_pb2.EntryPoint) -> object:
        with self._creating():
            return entry_points.call(entry_points.load(entry.entrypoint, f"{_FIELD}.entrypoint"), entry, _FIELD)

    def _initial_values(self) -> dict[str, NDArray[Any]]:
        """What `initial` gives. Raises MistakeError if it is not parameters."""
        with self._creating():
            found = self._initial(generator(self._seed, Purpose.INITIALIZATION))
        if not isinstance(found, Mapping):
            raise MistakeError(f"{_FIELD}: {_INITIAL} gave {type(found).__name__}, not a dict of arrays by name")
        if not found:
            raise MistakeError(f"{_FIELD}: {_INITIAL} gave no parameters; give at least one array")
        values = {}
        for name, array in found.items():
            if not isinstance(name, str) or not name or visible(name) != name:
                raise MistakeError(f"{_FIELD}: {_INITIAL} gave a parameter with the name {name!r}; use visible text")
            values[name] = _array(array, f"{_INITIAL}, for {name},")
            if not np.isfinite(values[name]).all():
                raise MistakeError(f"{_FIELD}: {_INITIAL} gave values for {name} that are not finite")
        return values

    def _evaluated(self, at: Slab, batch: Batch, draw: Draw | None) -> _Loss:
        """The loss of samples. Raises MistakeError if it is not a loss."""
        samples, given = size(batch), _read_only(batch)
        with self._calling(draw):
            found = self._loss(self._parameters(at), inputs(given), given.get(TARGET))
        losses = _array(found, _LOSS)
        if losses.shape not in ((), (samples,)):
            raise MistakeError(
                f"{_FIELD}: {_LOSS} gave the shape {losses.shape} for {samples} samples; return a loss for each sample, of shape "
                f"({samples},), or their mean"
            )
        mean = losses.ndim == 0
        total = float(np.add.reduce(losses, axis=None, dtype=np.float64)) * (samples if mean else 1)
        return _Loss(total, mean, losses.dtype)

    def _gradients(self, method: Method, at: Slab, batch: Batch, draw: Draw | None) -> dict[str, NDArray[Any]]:
        """What `gradient` gives, by name. Raises MistakeError if that is not a gradient."""
        given = _read_only(batch)
        with self._calling(draw):
            found = method(self._parameters(at), inputs(given), given.get(TARGET))
        if not isinstance(found, Mapping):
            raise MistakeError(f"{_FIELD}: {_GRADIENT} gave {type(found).__name__}, not a dict of arrays by name")
        names = {segment.name for segment in self._segments}
        if found.keys() != names:
            missing, unknown = sorted(names - found.keys()), sorted(map(repr, found.keys() - names))
            wrong = f"nothing for {missing[0]}" if missing else f"an array for {unknown[0]}, which is not a parameter"
            raise MistakeError(f"{_FIELD}: {_GRADIENT} gave {wrong}; it must give an array for each parameter")
        values = {}
        for segment in self._segments:
            values[segment.name] = array = _array(found[segment.name], f"{_GRADIENT}, for {segment.name},")
            if array.shape != segment.shape:
                raise MistakeError(
                    f"{_FIELD}: {_GRADIENT} gave the shape {array.shape} for {segment.name}, which has the shape {segment.shape}"
                )
        return values

    def _difference(self, at: Slab, batch: Batch) -> str:
        """How the object's gradient differs from differences of its loss; empty if it does not.

        In each of a few tensors, at the coordinate where the gradient is largest, and at another one.
        """
        draw = (0, 0)
        out: Slab = np.empty(self._size, np.float64)
        self.gradient(at, batch, 1, draw, out)
        loss = self._evaluated(at, batch, draw)
        epsilon = float(np.finfo(loss.dtype).eps)
        factor = size(batch) if loss.mean else 1
        views = views_of(self._segments, out)
        if unfinished := [name for name, view in views.items() if not np.isfinite(view).all()]:
            return f"{_GRADIENT} gave values for {unfinished[0]} that are not finite"
        differences = NumericalDifferentiator(self, "numerical", epsilon)
        point = differences.at(at, batch, draw)
        # A loss is rounded, so that its difference is wrong by so much.
        noise = 64 * epsilon * max(1.0, abs(loss.total)) / central_step(epsilon)
        starts = np.cumsum([0, *(segment.size for segment in self._segments)])
        for index in np.unique(np.linspace(0, len(views) - 1, _MAX_TRIED_SEGMENTS).astype(np.intp)):
            segment, start = self._segments[index], int(starts[index])
            if not segment.size:
                continue
            values = np.abs(views[segment.name].ravel())
            for position in (int(values.argmax()), segment.size // 2):
                found = np.empty(1)
                differences.differentiate(point, 1, slice(start + position, start + position + 1), found)
                given = float(out[start + position])
                if abs(given - found[0]) > _TOLERANCE * max(values.max(), abs(found[0])) + noise:
                    where = ", ".join(map(str, np.unravel_index(position, segment.shape)))
                    return (
                        f"{_GRADIENT} gave {given / factor:.4g} for {segment.name}[{where}], but sum({_LOSS}) has the derivative "
                        f"{found[0] / factor:.4g} there, by differences, for the first {size(batch)} samples"
                    )
        return ""

    def _parameters(self, at: Slab) -> dict[str, Slab]:
        """The tensors of a slab, by name: views that can only be read."""
        if self._bound is None or self._bound[0] is not at:
            self._bound = at, _read_only(views_of(self._segments, at))
        return dict(self._bound[1])

    @contextmanager
    def _creating(self) -> Iterator[None]:
        with seeded(self._seed, Purpose.MODULE_CREATION), entry_points.running(_FIELD):
            yield

    @contextmanager
    def _calling(self, draw: Draw | None) -> Iterator[None]:
        with seeded(self._seed, Purpose.MODULE_CALL, *(draw or ())), entry_points.running(_FIELD):
            yield


def _method(made: object, signature: str) -> Method:
    """A method that an object must have. Raises MistakeError if it has none."""
    found = _method_if_any(made, signature)
    if found is None:
        raise MistakeError(f"{_FIELD}: the entry point gave {type(made).__name__}, which has no method {signature}")
    return found


def _method_if_any(made: object, signature: str) -> Method | None:
    found: object = getattr(made, signature.partition("(")[0], None)
    return found if callable(found) else None


def _array(found: object, subject: str, kinds: tuple[type[np.generic], ...] = (np.floating,)) -> NDArray[Any]:
    """What a method gives, as an array. Raises MistakeError, which begins with the subject, if it is not one, of these kinds."""
    if not isinstance(found, (np.ndarray, np.generic, float)):
        raise MistakeError(f"{_FIELD}: {subject} gave {type(found).__name__}, not an array of NumPy's")
    array = np.asarray(found)
    if not any(np.issubdtype(array.dtype, kind) for kind in kinds):
        raise MistakeError(f"{_FIELD}: {subject} gave an array of type {array.dtype}; it must hold floating-point numbers")
    return array


def _read_only(arrays: Batch) -> dict[str, NDArray[Any]]:
    """Views that can only be read."""
    views = {}
    for name, values in arrays.items():
        views[name] = view = values.view()
        view.flags.writeable = False
    return views
