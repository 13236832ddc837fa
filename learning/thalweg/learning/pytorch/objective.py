"""PyTorch modules as objectives."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from thalweg.contract.code import title
from thalweg.contract.layout import Slab
from thalweg.contract.segments import Segment
from thalweg.contract.sums import ACCURACY, Sums
from thalweg.learning import entry_points, randomness
from thalweg.learning.batch import TARGET, Batch, Schema, size
from thalweg.learning.data.samples import Arrays, Samples, blocks
from thalweg.learning.errors import MistakeError
from thalweg.learning.metrics import METRICS
from thalweg.learning.objective import Outputs, Progress, Record, ignore
from thalweg.learning.outputs import leaves_of, named_outputs
from thalweg.learning.pytorch import losses
from thalweg.learning.pytorch.advice import advice
from thalweg.learning.pytorch.compilation import CompiledModule, compiling
from thalweg.learning.pytorch.devices import Accelerator, Device, Link, Processor, Remembered
from thalweg.learning.pytorch.gradients import Gradients
from thalweg.learning.pytorch.keeping import Kept
from thalweg.learning.pytorch.parts import parts_of, tensor_of
from thalweg.learning.pytorch.randomness import CPU, seeded
from thalweg.learning.pytorch.registration import registering_nothing
from thalweg.learning.pytorch.sharing import check_apart, overlaps, tensors_of_attributes
from thalweg.learning.randomness import Draw, Purpose
from thalweg.v1 import job_pb2

# The loss that is the module's own.
_OWN = "model"
_FIELD = "model.torch"
# Slabs whose constants are remembered: the parameters at even and at odd versions.
_MAX_SLABS = 2
# Samples with which the module is tried.
_TRIED = 2


class TorchObjective:
    """The objective of a job whose model is a PyTorch module.

    `spec` has its defaults filled in. Without a `link` to a device, the processor computes: parameters are views of the slab, and
    gradients are written to one as backpropagation finds them. With `compiled`, gradients are those of the compiled module; all
    else is computed by the module as it is. Raises MistakeError, with the user's own lines, if the module cannot be made, and
    NodeError if this machine cannot compile.
    """

    def __init__(
        self,
        spec: job_pb2.JobSpec,
        schema: Schema,
        dtype: str | None = None,
        link: Link | None = None,
        *,
        compiled: bool = False,
    ) -> None:
        self._dtype: np.dtype[np.floating] = np.dtype(dtype or spec.model.dtype)
        self._type = getattr(torch, self._dtype.name)
        # Where another dtype is given, exact numbers are wanted.
        self._rounding = spec.model.precision == "bfloat16" and dtype in (None, spec.model.dtype)
        self._seed = spec.seed
        self._place = link.place if link else CPU
        self._converted: dict[str, str] = {}
        self._notices: list[str] = []
        self._module = self._made(spec.model.torch)
        self._compiled = CompiledModule(self._module, spec.training.threads_per_worker) if compiled else None
        self._named = losses.NAMED.get(spec.model.loss)
        self._classifier = self._named if isinstance(self._named, losses.Classifier) else None
        self._loss = self._loss_of(spec.model.loss)
        self._further = {name: METRICS[name] for name in spec.model.metrics}
        # Parts of the module that its maker left in evaluation mode stay in it.
        self._modes = [(each, each.training) for each in self._module.modules()]
        self._training = True
        self._activations = 0
        attempted = False

        def attempt() -> bool:
            nonlocal attempted
            attempted = self._attempt(schema)
            return attempted

        self._parts = parts_of(self._module, attempt)
        changing = {part.segment.name for part in self._parts.changing}
        # Some hooks put another tensor in an attribute's place at each call, as that of spectral norm.
        check_apart(self._overlaps, changing, tensors_of_attributes(self._module) if attempted else ())
        self._initial = [losses.array_of(part.tensor) for part in self._parts.in_slab]
        self._size = sum(part.segment.size for part in self._parts.in_slab)
        self._constants = slice(sum(part.segment.size for part in self._parts.trained + self._parts.statistics), self._size)
        self._gradients = Gradients(self._parts.trained)
        self._device: Device = Accelerator(link, self._size, self._type) if link else Processor()
        self._bound: Slab | None = None
        self._constants_of: Remembered[Slab, list[Tensor]] = Remembered(self._copied_constants, _MAX_SLABS)
        # The shape of a sample's outputs, as the first samples show it.
        self._outputs: tuple[int, ...] | None = None

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The module's tensors: parameters from the last to the first, then its floating-point buffers, then what is frozen."""
        return tuple(part.segment for part in self._parts.in_slab)

    @property
    def counters(self) -> tuple[Segment, ...]:
        """The module's buffers that count updates."""
        return tuple(counter.segment for counter in self._parts.counters)

    @property
    def aliases(self) -> Mapping[str, str]:
        """The names of tied weights besides their first ones."""
        return self._parts.aliases

    @property
    def fixed(self) -> Mapping[str, NDArray[Any]]:
        """The module's buffers of integers and truth values that it does not change."""
        return self._parts.fixed

    @property
    def order(self) -> tuple[str, ...]:
        """All names, in the order of the module's `state_dict`."""
        return self._parts.order

    @property
    def converted(self) -> Mapping[str, str]:
        """The dtypes of parameters and buffers that were converted."""
        return self._converted

    @property
    def notices(self) -> tuple[str, ...]:
        """What the module keeps that is no tensor, or that is no part of it."""
        return tuple(self._notices)

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The dtype of parameters and gradients."""
        return self._dtype

    @property
    def size(self) -> int:
        """The number of elements of a slab."""
        return self._size

    @property
    def metrics(self) -> tuple[str, ...]:
        """The accuracy, if the loss is one of classifiers, then those that the job asks for."""
        return ((ACCURACY,) if self._classifier else ()) + tuple(self._further)

    @property
    def activations(self) -> int:
        """How many numbers autograd keeps for each sample, as measured on two samples; 0 if the module could not be tried."""
        return self._activations

    @property
    def packages(self) -> frozenset[str]:
        """PyTorch."""
        return frozenset({"torch"})

    @property
    def premises(self) -> Mapping[str, str]:
        """The GPU and its libraries, if one computes; the compiler, if the module is compiled."""
        return {**self._device.premises, **(self._compiled.premises if self._compiled else {})}

    @property
    def numerical(self) -> bool:
        """False: there is backpropagation."""
        return False

    def check(self, samples: Samples) -> None:
        """Raises MistakeError if samples and module do not fit together.

        The first samples are evaluated. Targets of a loss with a name are all looked at where samples are in memory, the others
        when they are computed with.
        """
        if not len(samples):
            return
        few = samples.take(slice(_TRIED))
        if self._outputs is None:
            with torch.no_grad(), self._mode(training=False):
                outputs, _ = self._forward(few)
            if self._compiled:
                self._check_draws(few)
            self._outputs = tuple(outputs.shape[1:]) if isinstance(outputs, Tensor) else ()
            for name, metric in self._further.items():
                if problem := metric.problem(tuple(self._tensor(outputs).shape[1:]), few[TARGET]):
                    raise MistakeError(f"model.metrics: {name} {problem}")
        if self._named and isinstance(samples, Arrays) and samples.in_memory:
            for where in blocks(samples):
                self._named.check(self._outputs, samples.take(where)[TARGET])

    def initialize(self, out: Slab) -> None:
        """Writes the parameters and buffers with which the user's callable makes the module, given the job's seed."""
        for part, values in zip(self._parts.in_slab, self._initial, strict=True):
            out[part.where] = values.ravel()

    def gradient(self, at: Slab, batch: Batch, denominator: int, draw: Draw | None, out: Slab, done: Progress = ignore) -> Sums:
        """Writes the gradient of the sum of the samples' losses, divided by `denominator`; gives the sums.

        A statistic's range gets the negative of what the samples change of it, times their share of the denominator. `done` is
        called while backpropagation runs, as soon as the slab's first parameters are final.
        """
        samples = size(batch)
        if samples == 0:
            out[...] = 0
            done(self._size)
            return Sums()
        values, found, carried = self._bind(at, draw), self._device.gradient(out), self._device.carrier(out, done)
        with self._drawing(draw), self._mode(training=True):
            outputs, loss = self._forward(batch, self._compiled)
            if not loss.requires_grad:
                advice = "compute it from the outputs, without detach() and torch.no_grad()"
                raise MistakeError(f"{_FIELD}: the loss does not depend on any parameter that is trained; {advice}")
            # A part of what is compiled may be so only when it is needed.
            whole = compiling() if self._compiled else nullcontext()
            with self._running(_FIELD, batch), whole, self._gradients.written(found, carried):
                (loss / denominator).backward()
        self._write_changes(at, values, samples / denominator, found)
        carried(self._size)
        return self._sums(outputs, loss, batch)

    def measure(self, at: Slab, batch: Batch, draw: Draw | None = None) -> Sums:
        """The sums over samples: as in training, with a draw; else in evaluation mode."""
        if not size(batch):
            return Sums()
        self._bind(at, draw)
        with torch.no_grad(), self._drawing(draw), self._mode(training=draw is not None):
            outputs, loss = self._forward(batch)
        return self._sums(outputs, loss, batch)

    def predict(self, at: Slab, batch: Batch) -> Outputs:
        """The outputs for samples, and what they mean where the loss says so. With a loss of the user's, there may be several."""
        self._bind(at, None)
        with torch.no_grad(), self._mode(training=False), self._running(_FIELD, batch):
            with self._rounded():
                outputs = self._called(self._module, batch)
            if self._named is None and not isinstance(outputs, Tensor):
                return named_outputs(outputs, Tensor, self._array, size(batch), f"{_FIELD}: the module")
            outputs = self._tensor(outputs)
            if self._classifier is None:
                return Outputs(losses.array_of(outputs))
            classes, probabilities = self._classifier.decide(outputs)
        values = losses.array_of(outputs)
        return Outputs(values, losses.array_of(classes), None if probabilities is None else losses.array_of(probabilities))

    @contextmanager
    def traced(self, record: Record) -> Iterator[None]:
        """Records the output of each of the module's modules, but for those of TorchScript, by its name and class.

        Of a compiled module, that of the whole.
        """
        handles = []
        modules = [("", self._compiled.module)] if self._compiled else self._module.named_modules()
        for name, module in modules:
            if isinstance(module, torch.jit.ScriptModule):
                continue
            title = f"{name or 'the module'} ({type(module if name else self._module).__name__})"
            handles.append(module.register_forward_hook(_recorder(title, record)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _made(self, entry: job_pb2.EntryPoint) -> nn.Module:
        field = f"{_FIELD}.entrypoint"
        with seeded(self._seed, Purpose.MODULE_CREATION, place=self._place), entry_points.running(_FIELD):
            make = entry_points.load(entry.entrypoint, field)
            if isinstance(make, nn.Module):
                raise MistakeError(f"{field}: {entry.entrypoint} is a module; name a class, or a function that makes it")
            made = entry_points.call(make, entry, _FIELD)
            if not isinstance(made, nn.Module):
                raise MistakeError(f"{field}: {title(entry.entrypoint)} returned {type(made).__name__}, not a torch.nn.Module")
            for name, tensor in (*made.named_parameters(), *made.named_buffers()):
                if tensor.is_complex():
                    raise MistakeError(
                        f"{_FIELD}: {name} has complex numbers; keep them as pairs of real ones (torch.view_as_real)"
                    )
                if tensor.is_meta:
                    raise MistakeError(f"{_FIELD}: {name} has no values, as it was made on the device meta")
                if tensor.is_floating_point() and tensor.dtype != self._type:
                    self._converted[name] = str(tensor.dtype).removeprefix("torch.")
            # Before they are converted, which separates them.
            self._overlaps = overlaps(made)
            return made.to(self._place, self._type)

    def _loss_of(self, loss: str) -> losses.Loss | None:
        """The function of outputs and targets that gives the loss; None if the module itself does."""
        if loss == _OWN:
            return None
        return self._named.losses if self._named else entry_points.load(loss, "model.loss")

    def _check_draws(self, few: Batch) -> None:
        """Raises MistakeError if the module draws random numbers that it would not draw when it is compiled."""
        with torch.no_grad(), self._drawing((0, 0)), self._mode(training=True):
            before = randomness.states()
            self._forward(few)
            if randomness.states() != before:
                raise MistakeError(
                    "model.compile: the module draws from Python's or NumPy's generators, which is not compiled; "
                    "draw from PyTorch's, or set model.compile = false"
                )

    def _attempt(self, schema: Schema) -> bool:
        """Runs the module as in training, on random numbers and on integers that are 0; says whether it could be run."""
        saved = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal saved
            saved += 0 if isinstance(tensor, nn.Parameter) else tensor.numel()
            return tensor

        rng = np.random.default_rng(0)
        shapes = {name: (_TRIED, *field.shape) for name, field in schema.items()}
        # Of zeros a running mean would be what it was before.
        batch = {
            name: rng.random(shapes[name]).astype(field.dtype) if field.dtype.kind == "f" else np.zeros(shapes[name], field.dtype)
            for name, field in schema.items()
        }
        kept = Kept(self._module)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)

        def call() -> Tensor:
            with self._drawing((0, 0)), self._mode(training=True):
                return self._forward(batch)[1]

        try:
            with hooks:
                loss = call()
        except MistakeError:
            # It may not take such samples. What is wrong with it, real ones show.
            return False
        self._notices = kept.notices(loss, call)
        self._activations = -(-saved // _TRIED)
        return True

    def _bind(self, at: Slab, draw: Draw | None) -> Tensor:
        """Gives the module the values of a slab, which it returns: parameters are views of them, buffers copies."""
        parts, values = self._parts, self._device.values(at)
        if self._bound is not at:
            self._bound = at
            for parameter in parts.trained + parts.frozen:
                parameter.tensor.data = parameter.of(values)
            for constant, tensor in zip(parts.constants, self._constants_of[at], strict=True):
                constant.put(tensor)
        for statistic in parts.statistics:
            statistic.put(statistic.of(values).clone())
        for counter in parts.counters:
            updates = draw[0] if draw else 0
            counter.put(torch.full(counter.segment.shape, updates, dtype=torch.int64, device=self._place))
        return values

    def _copied_constants(self, at: Slab) -> list[Tensor]:
        """The constant buffers in a slab, as copies: a module that changes one must find memory that it can write."""
        values = tensor_of(at)
        return [constant.of(values).to(self._place, copy=True) for constant in self._parts.constants]

    def _write_changes(self, at: Slab, values: Tensor, share: float, out: Tensor) -> None:
        """Writes what samples have changed of the buffers, as gradients are written: so that it is to be subtracted."""
        with torch.no_grad():
            for statistic in self._parts.statistics:
                old, new = statistic.of(values), statistic.tensor.detach()
                # Equal infinities have no difference.
                torch.mul(torch.where(new == old, torch.zeros_like(old), old - new), share, out=statistic.of(out))
        for constant, kept in zip(self._parts.constants, self._constants_of[at], strict=True):
            tensor = constant.tensor
            if tensor._version or tensor is not kept:
                raise MistakeError(
                    f"{_FIELD}: the module changes its buffer {constant.segment.name}, but did not when it was tried; "
                    "change it in each training step"
                )
        out[self._constants] = 0

    def _forward(self, batch: Batch, compiled: CompiledModule | None = None) -> tuple[Any, Tensor]:
        """The outputs, and the sum of the samples' losses. Of a module with a loss of its own, the outputs are None.

        They are computed by the compiled module, if one is given.
        """
        module = compiled or self._module
        target = self._here(batch[TARGET]) if TARGET in batch else None
        if self._loss is None:
            with self._running(_FIELD, batch), self._rounded():
                outputs, found = None, self._called(module, batch, target)
            return outputs, losses.total(self._exact(found), size(batch), _FIELD)
        with self._running(_FIELD, batch), self._rounded():
            outputs = self._called(module, batch)
        field = "model.loss"
        # Losses with a name are computed exactly; the user's own, as the module is.
        with self._running(field, batch, outputs), nullcontext() if self._named else self._rounded():
            if self._named:
                outputs = self._tensor(outputs)
                if outputs.shape[:1] != (size(batch),):
                    problem = f"the module gave the shape {tuple(outputs.shape)} for {size(batch)} samples"
                    raise MistakeError(f"{_FIELD}: {problem}; the first axis must be theirs")
                if not outputs.is_floating_point():
                    raise MistakeError(f"{_FIELD}: {_not_real(outputs)}")
                # What is wrong would be found on a GPU only later, and not be named.
                self._named.check(tuple(outputs.shape[1:]), batch[TARGET])
            found = self._loss(outputs, target)
        return outputs, losses.total(self._exact(found), size(batch), field)

    @contextmanager
    def _running(self, field: str, batch: Batch, outputs: Any = None) -> Iterator[None]:
        """Around calls of the user's code with samples, and outputs that the module gave for them."""

        def told(error: BaseException) -> str:
            if isinstance(outputs, Tensor) and not outputs.is_floating_point():
                return f"; {_not_real(outputs)}"
            return advice(error, batch)

        with entry_points.running(field, told), registering_nothing(field):
            yield

    def _rounded(self) -> AbstractContextManager[None]:
        """A context in which operations for which that does little harm round to bfloat16, if the job says so."""
        return torch.autocast(self._place.type, torch.bfloat16) if self._rounding else nullcontext()

    def _exact(self, found: Any) -> Any:
        """A tensor of rounded numbers as one of the model's type."""
        rounded = self._rounding and isinstance(found, Tensor) and found.is_floating_point()
        return found.to(self._type) if rounded else found

    def _called(self, module: Callable[..., Any], batch: Batch, *more: Any) -> Any:
        """What the module gives for samples: it is called with x, or, of several inputs, with each by its name."""
        inputs = {name: self._input(values) for name, values in batch.items() if name != TARGET}
        if len(inputs) == 1:
            return module(*inputs.values(), *more)
        return module(**inputs, **({TARGET: more[0]} if more else {}))

    def _input(self, values: Any) -> Tensor:
        tensor = self._here(values)
        return tensor.to(self._type) if tensor.is_floating_point() else tensor

    def _here(self, values: Any) -> Tensor:
        """An array, where the module computes."""
        return tensor_of(values).to(self._place)

    def _tensor(self, outputs: Any) -> Tensor:
        """Outputs that must be a tensor. Raises MistakeError if they are not."""
        if not isinstance(outputs, Tensor):
            kind = type(outputs).__name__
            advice = "give a loss of your own" if self._named else "without one, model.metrics must be empty"
            raise MistakeError(f"{_FIELD}: the module returned {kind}, not a tensor; {advice}")
        exact: Tensor = self._exact(outputs)
        return exact

    def _array(self, output: Tensor) -> NDArray[Any]:
        """A copy of a tensor of outputs."""
        return losses.array_of(self._exact(output))

    def _sums(self, outputs: Any, loss: Tensor, batch: Batch) -> Sums:
        metrics: list[float] = []
        if self._classifier:
            with torch.no_grad():
                metrics.append(float(self._classifier.correct(outputs, self._here(batch[TARGET])).sum()))
        if self._further:
            values = losses.array_of(self._tensor(outputs))
            metrics += [metric.sum(values, batch[TARGET]) for metric in self._further.values()]
        return Sums(float(loss.detach()), size(batch), tuple(metrics))

    def _drawing(self, draw: Draw | None) -> AbstractContextManager[None]:
        """Random numbers of a task, where there is one."""
        return seeded(self._seed, Purpose.MODULE_CALL, *draw, place=self._place) if draw else nullcontext()

    @contextmanager
    def _mode(self, *, training: bool) -> Iterator[None]:
        """The module in training or in evaluation mode."""
        if self._training != training:
            self._training = training
            for each, mode in self._modes:
                each.training = training and mode
        yield


def _not_real(outputs: Tensor) -> str:
    """What is wrong with outputs that are not real numbers."""
    kind = str(outputs.dtype).removeprefix("torch.")
    return (
        f"the module returned numbers of type {kind}, which have no gradient; return real ones, such as logits without argmax()"
    )


def _recorder(title: str, record: Record) -> Callable[[nn.Module, Any, Any], None]:
    """A hook that records the tensors that a module gives."""

    def found(_: nn.Module, __: Any, outputs: Any) -> None:
        for _, output in leaves_of(outputs):
            if isinstance(output, Tensor):
                record(title, losses.array_of(output))

    return found
