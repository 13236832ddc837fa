"""Losses of a module's outputs: those with a name, the user's own, and the module's own. Each gives the samples' losses."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from thalweg.learning.errors import MistakeError

Shape = tuple[int, ...]
# The label that PyTorch passes over.
_IGNORED = -100


class Named(Protocol):
    """A loss that has a name in the contract: of outputs and targets that are tensors with the samples on the first axis."""

    def check(self, outputs: Shape, targets: NDArray[Any]) -> None:
        """Raises MistakeError if targets do not fit outputs whose samples have a shape."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each sample, shape (samples), of targets that were checked."""


@runtime_checkable
class Classifier(Named, Protocol):
    """The loss of a model that classifies."""

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The fraction of each sample's outputs that are right, shape (samples)."""

    def decide(self, outputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """The classes of samples, and the probabilities of the classes."""


class MeanSquaredError:
    """The mean of (output - target)² over all outputs of a sample, as torch.nn.MSELoss."""

    def check(self, outputs: Shape, targets: NDArray[Any]) -> None:
        _check_shapes(outputs, targets)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _of_sample(functional.mse_loss(outputs, _as(outputs, targets), reduction="none"))


class SoftmaxCrossEntropy:
    """The cross-entropy of logits, as torch.nn.CrossEntropyLoss.

    Classes are on the second axis, as PyTorch has them, or, where only that fits the targets, on the last one.
    """

    def check(self, outputs: Shape, targets: NDArray[Any]) -> None:
        """Labels may also have the shape (samples, 1) where outputs have one axis, and be -100, which PyTorch passes over."""
        if targets.dtype.kind == "f" and targets.shape[1:] == outputs:
            return
        axis = None if targets.dtype.kind == "f" else _class_axis(outputs, targets.shape[1:])
        if axis is None:
            labels = ", ".join(["samples", *map(str, outputs[1:])]) + ("," if len(outputs) < 2 else "")
            raise MistakeError(
                f"model.loss: softmax_cross_entropy needs labels, whole numbers of shape ({labels}), or probabilities of the "
                f"outputs' shape {outputs} for each sample, but the data's y is {targets.dtype} of shape {targets.shape[1:]} for "
                "each sample"
            )
        classes = outputs[axis]
        wrong = targets[((targets < 0) | (targets >= classes)) & (targets != _IGNORED)]
        if wrong.size:
            raise MistakeError(
                f"model.torch: the model has {classes} outputs, so labels must be 0 to {classes - 1}, but the data's y has "
                f"{wrong[0]}; give it one output for each class, or number the labels from 0"
            )

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs, targets = self._classes_second(outputs, targets)
        if not targets.is_floating_point():
            return _of_sample(functional.cross_entropy(outputs, targets.long(), reduction="none"))
        return _of_sample(functional.cross_entropy(outputs, targets, reduction="none"))

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs, targets = self._classes_second(outputs, targets)
        wanted = targets.argmax(1) if targets.is_floating_point() else targets
        return _of_sample((outputs.argmax(1) == wanted).double())

    def decide(self, outputs: Tensor) -> tuple[Tensor, Tensor | None]:
        axis = 1 if outputs.ndim == 2 else -1
        return outputs.argmax(axis), outputs.softmax(axis)

    def _classes_second(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs with the classes on the second axis, and the targets, of which labels have the outputs' other axes."""
        if targets.is_floating_point():
            return outputs, targets
        axis = _class_axis(tuple(outputs.shape[1:]), tuple(targets.shape[1:]))
        return outputs if axis == 0 else outputs.movedim(-1, 1), targets.reshape(-1) if outputs.ndim == 2 else targets


class BinaryCrossEntropy:
    """The mean of the cross-entropy of probabilities over all outputs of a sample, as torch.nn.BCELoss."""

    def check(self, outputs: Shape, targets: NDArray[Any]) -> None:
        _check_shapes(outputs, targets)
        wrong = targets[~((targets >= 0) & (targets <= 1))]
        if wrong.size:
            raise MistakeError(f"model.loss: binary_cross_entropy needs targets from 0 to 1, but the data's y has {wrong[0]:g}")

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        try:
            return _of_sample(functional.binary_cross_entropy(outputs, _as(outputs, targets), reduction="none"))
        except RuntimeError as error:
            wrong = outputs[(outputs < 0) | (outputs > 1)]
            if not wrong.numel() or not outputs.isfinite().all():
                raise
            raise MistakeError(
                f"model.loss: binary_cross_entropy needs outputs from 0 to 1, but the module gives {wrong[0].item():g}; end the "
                "module with a sigmoid, or give a loss of your own that takes logits"
            ) from error

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _of_sample(((outputs >= 0.5) == (_as(outputs, targets) >= 0.5)).double())

    def decide(self, outputs: Tensor) -> tuple[Tensor, Tensor | None]:
        classes = (outputs >= 0.5).long()
        flat = outputs.flatten(1)
        single = flat.shape[1] == 1
        return classes.flatten() if single else classes, torch.cat([1 - flat, flat], 1) if single else outputs


NAMED: dict[str, Named] = {
    "mean_squared_error": MeanSquaredError(),
    "softmax_cross_entropy": SoftmaxCrossEntropy(),
    "binary_cross_entropy": BinaryCrossEntropy(),
}


def total(losses: Any, samples: int, field: str) -> Tensor:
    """The sum of the samples' losses, from a loss for each sample or their mean. Raises MistakeError if it is neither."""
    if not isinstance(losses, Tensor):
        raise MistakeError(
            f"{field}: returned {type(losses).__name__}, not a tensor; return a loss for each sample or their mean"
        )
    if not losses.is_floating_point():
        kind = str(losses.dtype).removeprefix("torch.")
        raise MistakeError(
            f"{field}: returned a loss of type {kind}, which has no gradient; compute it from real numbers, without argmax(), "
            "comparisons and conversions to integers"
        )
    if losses.shape not in ((), (samples,)):
        raise MistakeError(
            f"{field}: returned a tensor of type {str(losses.dtype).removeprefix('torch.')} and shape {tuple(losses.shape)} for "
            f"{samples} samples; return a loss for each sample, of shape ({samples},), or their mean, of shape ()"
        )
    return losses * samples if losses.ndim == 0 else losses.sum()


def array_of(tensor: Tensor) -> NDArray[Any]:
    """A copy of a tensor. NumPy does not know bfloat16: its numbers become float32."""
    tensor = tensor.detach()
    return np.array((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy())


Loss = Callable[[Any, Any], Any]


def _of_sample(values: Tensor) -> Tensor:
    """The mean over all axes but the samples'."""
    return values.flatten(1).mean(1) if values.ndim > 1 else values


def _class_axis(outputs: Shape, labels: Shape) -> int | None:
    """The axis of a sample's outputs that the classes are on, None if labels of a shape do not fit. Raises MistakeError."""
    if len(outputs) == 1:
        return 0 if labels in ((), (1,)) else None
    first, last = outputs[1:] == labels, outputs[:-1] == labels
    if first and last and outputs:
        raise MistakeError(
            f"model.loss: softmax_cross_entropy cannot tell whether the classes are on the second or on the last axis of the "
            f"outputs, of shape {outputs} for each sample; give a loss of your own"
        )
    if outputs and (first or last):
        return 0 if first else len(outputs) - 1
    return None


def _check_shapes(outputs: Shape, targets: NDArray[Any]) -> None:
    """Raises MistakeError if targets have not the shape of outputs, where a single number may have an axis or none."""
    shape = targets.shape[1:]
    if outputs != shape and (outputs, shape) not in (((1,), ()), ((), (1,))):
        raise MistakeError(
            f"model.torch: the module's output has the shape {outputs} for each sample, but the data's y has {shape}; with "
            "model.loss they do not fit together"
        )


def _as(outputs: Tensor, targets: Tensor) -> Tensor:
    """The targets as numbers of the outputs' type, in their shape."""
    return targets.to(outputs.dtype).reshape(outputs.shape)
