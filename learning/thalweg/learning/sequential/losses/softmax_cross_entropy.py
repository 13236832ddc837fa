"""The cross-entropy of a softmax."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.learning.sequential.layers.base import ModelError
from thalweg.learning.sequential.losses.base import Loss, Targets


class SoftmaxCrossEntropy(Loss):
    """-Σ target · log softmax(output), as torch.nn.CrossEntropyLoss: outputs are logits.

    Targets are labels, integers of shape (samples), or probabilities of shape (samples, classes).
    """

    classifies = True

    def check(self, targets: Targets) -> None:
        if len(self.output_shape) != 1:
            raise ModelError(
                f"model.loss: softmax_cross_entropy needs one axis of outputs, one for each class, not the shape "
                f"{self.output_shape}; a flatten layer may help"
            )
        classes = self.output_shape[0]
        if targets.ndim != 1:
            super().check(targets)
        elif targets.size and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
            wrong = int(targets.max()) if int(targets.max()) >= classes else int(targets.min())
            raise ModelError(
                f"model.layers: the model has {classes} outputs, so labels must be 0 to {classes - 1}, but the data's y has "
                f"{wrong}; give the last dense layer one unit for each class, or number the labels from 0"
            )

    def make_room(self, samples: int) -> None:
        super().make_room(samples)
        self._logarithms: Slab = self.buffer("logarithms", (samples, self.width))
        self._column: Slab = self.buffer("column", (samples, 1))
        # Where a sample begins, and where its label is, in an array of all outputs.
        self._first = self.buffer("first", (samples,), np.intp)
        self._first[...] = np.arange(samples) * self.width
        self._at = self.buffer("at", (samples,), np.intp)

    def losses(self, output: Slab, targets: Targets) -> Slab:
        self._targets = targets
        logarithms, column, losses = self._logarithms, self._column, self._each
        np.maximum.reduce(output, axis=1, keepdims=True, initial=-np.inf, out=column)
        np.subtract(output, column, out=logarithms)
        np.add.reduce(np.exp(logarithms, out=self._scratch), axis=1, keepdims=True, out=column)
        logarithms -= np.log(column, out=column)
        if targets.ndim == 1:
            np.add(self._first, targets, out=self._at)
            logarithms.reshape(-1).take(self._at, out=losses, mode="clip")
        else:
            np.add.reduce(np.multiply(logarithms, targets, out=self._scratch), axis=1, out=losses)
        return np.negative(losses, out=losses)

    def gradient(self) -> Slab:
        gradient, targets = np.exp(self._logarithms, out=self._gradient), self._targets
        if targets.ndim == 1:
            flat, at_label = gradient.reshape(-1), self._column.reshape(-1)
            flat.take(self._at, out=at_label, mode="clip")
            at_label -= 1
            flat[self._at] = at_label
            return gradient
        gradient *= np.add.reduce(targets, axis=1, keepdims=True, out=self._column)
        gradient -= targets
        return gradient

    def probabilities(self, output: Slab) -> Slab | None:
        """The softmax of the outputs."""
        powers = np.exp(output - output.max(axis=1, keepdims=True, initial=-np.inf))
        probabilities: Slab = powers / powers.sum(axis=1, keepdims=True)
        return probabilities

    def correct(self, output: Slab, targets: Targets) -> float:
        return self.agreeing(output, targets) if targets.ndim == 1 else super().correct(output, targets)
