"""The cross-entropy of probabilities."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.workers.layers.base import ModelError
from thalweg.workers.losses.base import Loss, Targets, mean_of_sample


class BinaryCrossEntropy(Loss):
    """The mean of -(t log y + (1 - t) log(1 - y)) over all outputs of a sample, as torch.nn.BCELoss.

    Outputs are probabilities: end the model with a sigmoid. Logarithms are at least -100, and the gradient's denominator at least
    1e-12, as in PyTorch.
    """

    classifies = True

    def check(self, targets: Targets) -> None:
        super().check(targets)
        if targets.size and not 0 <= float(targets.min()) <= float(targets.max()) <= 1:
            wrong = float(targets.max()) if float(targets.max()) > 1 else float(targets.min())
            raise ModelError(f"model.loss: binary_cross_entropy wants targets from 0 to 1, and the data's y has {wrong:g}")

    def losses(self, output: Slab, targets: Targets) -> Slab:
        target = self.fit(targets)
        if output.size and not (output.min() >= 0 and output.max() <= 1) and np.isfinite(output).all():
            raise ModelError("model.loss: binary_cross_entropy wants outputs from 0 to 1; end the model with a sigmoid layer")
        with np.errstate(divide="ignore"):
            terms = target * np.maximum(np.log(output), -100) + (1 - target) * np.maximum(np.log1p(-output), -100)
        return -mean_of_sample(terms)

    def gradient(self, output: Slab, targets: Targets) -> Slab:
        gradient: Slab = output - self.fit(targets)
        gradient /= np.maximum(output * (1 - output), 1e-12) * max(1, output[:1].size)
        return gradient

    def correct(self, output: Slab, targets: Targets) -> float:
        """The share of outputs on the right side of one half, summed over samples."""
        if self.one_hot:
            return super().correct(output, targets)
        right = (output >= 0.5) == (self.fit(targets) >= 0.5)
        return float(np.count_nonzero(right)) / max(1, output[:1].size)
