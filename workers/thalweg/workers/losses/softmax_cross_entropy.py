"""The cross-entropy of a softmax."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.workers.layers.base import ModelError
from thalweg.workers.losses.base import Loss, Targets


class SoftmaxCrossEntropy(Loss):
    """-Σ target · log softmax(output), as torch.nn.CrossEntropyLoss: outputs are logits.

    Targets are labels, integers of shape (samples), or probabilities of shape (samples, classes).
    """

    classifies = True

    def check(self, targets: Targets) -> None:
        if len(self.output_shape) != 1:
            raise ModelError(
                f"model.loss: softmax_cross_entropy wants one axis of outputs, one for each class, not the shape "
                f"{self.output_shape}; a flatten layer may help"
            )
        classes = self.output_shape[0]
        if targets.ndim != 1:
            super().check(targets)
        elif targets.size and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
            wrong = int(targets.max()) if int(targets.max()) >= classes else int(targets.min())
            raise ModelError(
                f"model.layers: the model has {classes} outputs, so labels are 0 to {classes - 1}, and the data's y has {wrong}; "
                "give the last dense layer as many units as there are classes, or number the labels from 0"
            )

    def losses(self, output: Slab, targets: Targets) -> Slab:
        logarithms = self._log_softmax(output)
        losses: Slab
        if targets.ndim == 1:
            losses = -logarithms[np.arange(len(targets)), targets]
        else:
            losses = -np.add.reduce(logarithms * targets, axis=1)
        return losses

    def gradient(self, output: Slab, targets: Targets) -> Slab:
        gradient: Slab = np.exp(self._log_softmax(output))
        if targets.ndim == 1:
            gradient[np.arange(len(targets)), targets] -= 1
            return gradient
        gradient *= np.add.reduce(targets, axis=1, keepdims=True)
        gradient -= targets
        return gradient

    @staticmethod
    def _log_softmax(output: Slab) -> Slab:
        shifted = output - np.max(output, axis=1, keepdims=True, initial=-np.inf)
        logarithms: Slab = shifted - np.log(np.add.reduce(np.exp(shifted), axis=1, keepdims=True))
        return logarithms

    def correct(self, output: Slab, targets: Targets) -> float:
        if targets.ndim == 1:
            return float(np.count_nonzero(output.argmax(1) == targets))
        return super().correct(output, targets)
