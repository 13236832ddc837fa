"""Losses of a module's outputs: those with a name, the user's own, and the module's own. Each gives the samples' losses."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from thalweg.learning.errors import MistakeError


class Named(Protocol):
    """A loss that has a name in the contract: of outputs and targets that are tensors with the samples on the first axis."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each sample, shape (samples). Raises MistakeError if the shapes do not fit together."""


@runtime_checkable
class Classifier(Named, Protocol):
    """The loss of a model that classifies."""

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The fraction of each sample's outputs that are right, shape (samples)."""

    def decide(self, outputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """The classes of samples, and the probabilities of the classes."""


class MeanSquaredError:
    """The mean of (output - target)² over all outputs of a sample, as torch.nn.MSELoss."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _of_sample(functional.mse_loss(outputs, _as(outputs, targets), reduction="none"))


class SoftmaxCrossEntropy:
    """The cross-entropy of logits, as torch.nn.CrossEntropyLoss.

    Classes are on the second axis, as PyTorch has them, or, where only that fits the targets, on the last one.
    """

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = self._classes_second(outputs, targets)
        if not targets.is_floating_point():
            return _of_sample(functional.cross_entropy(outputs, targets.long(), reduction="none"))
        return _of_sample(functional.cross_entropy(outputs, targets, reduction="none"))

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        found = self._classes_second(outputs, targets).argmax(1)
        wanted = targets.argmax(1) if targets.is_floating_point() else targets
        return _of_sample((found == wanted).double())

    def decide(self, outputs: Tensor) -> tuple[Tensor, Tensor | None]:
        axis = 1 if outputs.ndim == 2 else -1
        return outputs.argmax(axis), outputs.softmax(axis)

    def _classes_second(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The outputs with the classes on the second axis. Raises MistakeError."""
        if targets.is_floating_point():
            if outputs.shape != targets.shape:
                raise _unfit(outputs, targets)
            return outputs
        second = outputs.ndim > 1 and outputs.shape[2:] == targets.shape[1:]
        last = outputs.ndim > 1 and outputs.shape[1:-1] == targets.shape[1:]
        if second and last and outputs.ndim > 2:
            raise MistakeError(
                f"model.loss: softmax_cross_entropy cannot tell whether the classes are on the second or on the last axis of the "
                f"outputs, of shape {_shape(outputs)} for each sample; give a loss of your own, as an entry point"
            )
        if second:
            return outputs
        if last:
            return outputs.movedim(-1, 1)
        raise _unfit(outputs, targets)


class BinaryCrossEntropy:
    """The mean of the cross-entropy of probabilities over all outputs of a sample, as torch.nn.BCELoss."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _of_sample(functional.binary_cross_entropy(outputs, _as(outputs, targets), reduction="none"))

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
    if not losses.is_floating_point() or losses.shape not in ((), (samples,)):
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


def _as(outputs: Tensor, targets: Tensor) -> Tensor:
    """The targets as numbers of the outputs' type, in their shape. Raises MistakeError."""
    if outputs.shape[0] != targets.shape[0] or outputs.numel() != targets.numel():
        raise _unfit(outputs, targets)
    if outputs.shape != targets.shape and (outputs.shape[1:], targets.shape[1:]) not in (((1,), ()), ((), (1,))):
        raise _unfit(outputs, targets)
    return targets.to(outputs.dtype).reshape(outputs.shape)


def _unfit(outputs: Tensor, targets: Tensor) -> MistakeError:
    return MistakeError(
        f"model.torch: the module's output has the shape {_shape(outputs)} for each sample, but the data's y has "
        f"{_shape(targets)}; with model.loss they do not fit together"
    )


def _shape(values: Tensor) -> str:
    return str(tuple(values.shape[1:]))
