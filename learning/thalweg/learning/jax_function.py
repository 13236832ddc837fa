"""The model kind `jax`: functions of the user's, which JAX differentiates. Imported only where a job has one."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from numpy.typing import NDArray

from thalweg.contract.layout import Slab, views_of
from thalweg.contract.segments import Segment, elements
from thalweg.contract.sums import Sums
from thalweg.contract.text import visible
from thalweg.learning import entry_points
from thalweg.learning.batch import TARGET, Batch, inputs, size
from thalweg.learning.data.samples import Samples
from thalweg.learning.errors import MistakeError, NodeError
from thalweg.learning.objective import Outputs, Progress, ignore
from thalweg.learning.outputs import leaves_of, named_outputs
from thalweg.learning.randomness import Draw, Purpose, generator, seeded
from thalweg.v1 import job_pb2

_FIELD = "model.jax"
_INIT, _LOSS, _PREDICT = "init(key)", "loss(parameters, x, y, key)", "predict(parameters, x)"
# Samples with which functions are traced first.
_TRIED = 2
# What a tree that is one array has for a name.
_SINGLE = "parameters"
# Named, so that a process's settings change no bits.
_GENERATOR = "threefry2x32"
# XLA reads it when it makes its threads: how many compute. How sums are split, and so their bits, depends on it.
_THREADS = "NPROC"

Function = Callable[..., Any]


class _Functions(NamedTuple):
    """What an entry point gives."""

    init: Function
    loss: Function
    predict: Function | None


class _Initial(NamedTuple):
    """The structure of the tree of initial parameters, its leaves by name, and the dtypes of those that were converted."""

    structure: Any
    leaves: dict[str, NDArray[Any]]
    converted: dict[str, str]


class _Threads:
    """The threads that XLA computes with: of a process, once and for all."""

    def __init__(self) -> None:
        self.number = 0
        self._lock = threading.Lock()

    def make(self, number: int) -> None:
        """Makes them, unless there are some. JAX computes with the processor alone then."""
        with self._lock:
            if not self.number:
                self._make(number)

    def _make(self, number: int) -> None:
        before = os.environ.get(_THREADS)
        os.environ[_THREADS] = str(number)
        try:
            jax.config.update("jax_platforms", "cpu")
            jax.devices()
        finally:
            del os.environ[_THREADS]
            if before is not None:
                os.environ[_THREADS] = before
        self.number = number


_threads = _Threads()


@contextmanager
def settled(threads: int) -> Iterator[None]:
    """JAX computes with a number of threads as long as the context, and in fact as long as the process.

    Raises NodeError if it computes with another number already.
    """
    _threads.make(threads)
    if _threads.number != threads:
        problem = f"JAX computes with {_threads.number} threads in this process, which cannot be changed"
        raise NodeError(f"training.threads_per_worker: {problem}; start the worker in a process of its own")
    yield


class JaxObjective:
    """The objective of a job whose model is functions that JAX can trace, `init`, `loss` and, if there is one, `predict`:

    - `init(key)`: the initial parameters: a pytree of arrays. The tensors are named by their paths, as `layers.0.w`, and lie in
      the slab in JAX's order: gradients come all at once, so that no order would send some earlier.
    - `loss(parameters, x, y, key)`: a loss for each sample, of shape (samples), or their mean. `key` is None where the model does
      not train.
    - `predict(parameters, x)`: the outputs, with the samples on the first axis, or several in a dictionary.

    All are compiled, once for each number of samples. `spec` has its defaults filled in. Raises MistakeError, with the user's own
    lines, if the functions cannot be made.
    """

    def __init__(self, spec: job_pb2.JobSpec, dtype: str | None = None) -> None:
        self._dtype: np.dtype[np.floating] = np.dtype(dtype or spec.model.dtype)
        self._seed = spec.seed
        # Those who only predict may have made others before.
        _threads.make(spec.training.threads_per_worker)
        entry = spec.model.jax
        with self._creating():
            made = entry_points.call(entry_points.load(entry.entrypoint, f"{_FIELD}.entrypoint"), entry, _FIELD)
        self._functions = _functions(made)
        self._tree, leaves, self._converted = self._initial()
        self._segments = tuple(Segment(name, leaf.shape) for name, leaf in leaves.items())
        self._size = elements(self._segments)
        self._differentiated: Function = jax.jit(jax.value_and_grad(self._total, has_aux=True))
        self._measured: Function = jax.jit(self._total)
        self._predicted: Function = jax.jit(self._outputs)
        self._checked = False

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The leaves of the tree, in its order."""
        return self._segments

    @property
    def counters(self) -> tuple[Segment, ...]:
        """None."""
        return ()

    @property
    def converted(self) -> Mapping[str, str]:
        """The dtypes of parameters that were converted, other than as JAX itself does."""
        return self._converted

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The dtype of parameters, gradients and samples."""
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
        """0: it is not known how many numbers XLA keeps."""
        return 0

    @property
    def packages(self) -> frozenset[str]:
        """JAX and its compiler."""
        return frozenset({"jax", "jaxlib"})

    @property
    def numerical(self) -> bool:
        """False: JAX differentiates."""
        return False

    def check(self, samples: Samples) -> None:
        """Raises MistakeError if samples and functions do not fit together. They are traced for the first few."""
        if self._checked or not len(samples):
            return
        self._checked = True
        few = samples.take(slice(_TRIED))
        at: Slab = np.empty(self._size, self._dtype)
        with self._computing():
            for draw in ((0, 0), None):
                jax.eval_shape(self._total, *self._arguments(at, few, draw))
            if self._functions.predict:
                jax.eval_shape(self._outputs, self._leaves(at), inputs(self._given(few)))

    def initialize(self, out: Slab) -> None:
        """Writes the initial parameters, a function of `init` and the seed."""
        leaves = self._initial().leaves
        if tuple(Segment(name, leaf.shape) for name, leaf in leaves.items()) != self._segments:
            raise MistakeError(f"{_FIELD}: {_INIT} gave other names or shapes when it was called again")
        for name, view in views_of(self._segments, out).items():
            view[...] = leaves[name]

    def gradient(self, at: Slab, batch: Batch, denominator: int, draw: Draw | None, out: Slab, done: Progress = ignore) -> Sums:
        """Writes the gradient of the sum of the samples' losses, divided by `denominator`; gives the sums.

        Without samples it is zero. `done` is called as the slab is filled.
        """
        if not size(batch):
            out[...] = 0
            done(self._size)
            return Sums()
        with self._computing():
            (_, losses), gradients = self._differentiated(*self._arguments(at, batch, draw))
            sums = _sums(losses, size(batch))
        written = 0
        for view, gradient in zip(views_of(self._segments, out).values(), gradients, strict=True):
            np.divide(np.asarray(gradient), denominator, out=view)
            written += view.size
            if view.size:
                done(written)
        return sums

    def measure(self, at: Slab, batch: Batch, draw: Draw | None = None) -> Sums:
        """The sums over samples."""
        if not size(batch):
            return Sums()
        with self._computing():
            _, losses = self._measured(*self._arguments(at, batch, draw))
            return _sums(losses, size(batch))

    def predict(self, at: Slab, batch: Batch) -> Outputs:
        """The outputs for samples. Raises MistakeError if there is no `predict`."""
        if self._functions.predict is None:
            raise MistakeError(f"{_FIELD}: there is no function {_PREDICT}, which predictions need; add it")
        with self._computing():
            found = self._predicted(self._leaves(at), inputs(self._given(batch)))
            if isinstance(found, OrderedDict):
                return named_outputs(found, jax.Array, self._output, size(batch), f"{_FIELD}: {_PREDICT}")
            return Outputs(np.array(found, self._dtype))

    def _initial(self) -> _Initial:
        """What `init` gives. Raises MistakeError if that is not parameters."""
        with self._creating():
            tree = self._functions.init(self._key(self._words(Purpose.INITIALIZATION)))
            leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
            found: dict[str, NDArray[Any]] = {}
            converted: dict[str, str] = {}
            for path, leaf in leaves:
                name = jax.tree_util.keystr(path, simple=True, separator=".") or _SINGLE
                if name in found or visible(name) != name:
                    raise MistakeError(f"{_FIELD}: {_INIT} gave two parameters, or one that is not visible, by the name {name!r}")
                _check_array(leaf, f"{_INIT}, for {name},")
                found[name] = np.asarray(leaf, self._dtype)
                # To JAX, NumPy's float64 is float32 unless double precision is switched on.
                if (made := jnp.asarray(leaf).dtype.name) != self._dtype.name:
                    converted[name] = made
                if not np.isfinite(found[name]).all():
                    raise MistakeError(f"{_FIELD}: {_INIT} gave values for {name} that are not finite")
        if not found:
            raise MistakeError(f"{_FIELD}: {_INIT} gave no parameters; give at least one array")
        return _Initial(structure, found, converted)

    def _total(self, leaves: list[Any], x: Any, y: Any, words: Any) -> tuple[Any, Any]:
        """The sum of the samples' losses; and these, or their mean. Is traced, and so called once for each shape."""
        samples = len(jax.tree_util.tree_leaves(x)[0])
        # What is drawn here, other than by the key, is a constant, which must not depend on the task that comes first.
        with seeded(self._seed, Purpose.MODULE_CREATION):
            key = None if words is None else self._key(words)
            losses = self._functions.loss(jax.tree_util.tree_unflatten(self._tree, leaves), x, y, key)
        _check_array(losses, _LOSS)
        losses = jnp.asarray(losses)
        if losses.shape not in ((), (samples,)):
            raise MistakeError(
                f"{_FIELD}: {_LOSS} gave the shape {losses.shape} for {samples} samples; return a loss for each sample, of shape "
                f"({samples},), or their mean"
            )
        return (losses.sum() if losses.ndim else losses * samples), losses

    def _outputs(self, leaves: list[Any], x: Any) -> Any:
        """What `predict` gives: an array, or several by their names. Is traced."""
        samples = len(jax.tree_util.tree_leaves(x)[0])
        if self._functions.predict is None:
            raise RuntimeError("there is nothing to predict with")
        with seeded(self._seed, Purpose.MODULE_CREATION):
            found = self._functions.predict(jax.tree_util.tree_unflatten(self._tree, leaves), x)
        if isinstance(found, (Mapping, list, tuple)) or is_dataclass(found):
            # In the author's order, which JAX keeps of this kind of dictionary.
            return OrderedDict((name, jnp.asarray(leaf)) for name, leaf in leaves_of(found))
        if not isinstance(found, jax.Array) or found.shape[:1] != (samples,):
            what = f"the shape {found.shape}" if isinstance(found, jax.Array) else type(found).__name__
            raise MistakeError(
                f"{_FIELD}: {_PREDICT} gave {what} for {samples} samples; give an array with the samples on the first axis"
            )
        return found

    def _output(self, values: jax.Array) -> NDArray[Any]:
        """A copy of an array of outputs, real numbers in the model's dtype."""
        return np.array(values, self._dtype if jnp.issubdtype(values.dtype, jnp.floating) else None)

    def _arguments(self, at: Slab, batch: Batch, draw: Draw | None) -> tuple[Any, ...]:
        given = self._given(batch)
        words = self._words(Purpose.MODULE_CALL, *draw) if draw else None
        return self._leaves(at), inputs(given), given.get(TARGET), words

    def _leaves(self, at: Slab) -> list[Slab]:
        """The tensors of a slab: views, which XLA copies, if it has to, when it is called."""
        return list(views_of(self._segments, at).values())

    def _given(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """The samples, real numbers in the model's dtype."""
        return {name: each.astype(self._dtype, copy=False) if each.dtype.kind == "f" else each for name, each in batch.items()}

    def _words(self, purpose: Purpose, *ids: int) -> NDArray[np.uint32]:
        """The two words of a key."""
        return generator(self._seed, purpose, *ids).integers(0, 2**32, 2, dtype=np.uint32)

    def _key(self, words: Any) -> Any:
        return jax.random.wrap_key_data(jnp.asarray(words), impl=_GENERATOR)

    @contextmanager
    def _creating(self) -> Iterator[None]:
        with seeded(self._seed, Purpose.MODULE_CREATION), self._computing():
            yield

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Around everything that JAX computes for the user."""
        with jax.enable_x64(self._dtype == np.float64), entry_points.running(_FIELD):
            yield


def _functions(made: Any) -> _Functions:
    """The functions that an entry point gives. Raises MistakeError if they are not there."""
    names = _Functions._fields
    found = {name: getattr(made, name) for name in names if hasattr(made, name)}
    if not found and isinstance(made, tuple) and len(made) <= len(names):
        found = dict(zip(names, made, strict=False))
    for name, signature in (("init", _INIT), ("loss", _LOSS)):
        if not callable(found.get(name)):
            problem = f"the entry point gave {type(made).__name__}, which has no function {signature}"
            raise MistakeError(f"{_FIELD}: {problem}; give (init, loss), (init, loss, predict), or an object with these names")
    predict = found.get("predict")
    return _Functions(found["init"], found["loss"], predict if callable(predict) else None)


def _check_array(found: Any, subject: str) -> None:
    """Raises MistakeError, which begins with the subject, if something is not an array of real numbers."""
    if not isinstance(found, (jax.Array, np.ndarray, np.generic, float)):
        raise MistakeError(f"{_FIELD}: {subject} gave {type(found).__name__}, not an array")
    if not isinstance(found, float) and not jnp.issubdtype(found.dtype, jnp.floating):
        raise MistakeError(f"{_FIELD}: {subject} gave an array of type {found.dtype}; it must hold floating-point numbers")


def _sums(losses: Any, samples: int) -> Sums:
    """The sums, from the samples' losses or their mean. Waits until these are computed."""
    values = np.asarray(losses)
    return Sums(float(np.add.reduce(values, axis=None, dtype=np.float64)) * (1 if values.ndim else samples), samples)
