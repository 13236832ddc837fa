"""The cross-entropy of probabilities."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.layout import Slab
from thalweg.learning.sequential.layers.base import ModelError
from thalweg.learning.sequential.losses.base import Loss, Targets


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
            raise ModelError(f"model.loss: binary_cross_entropy needs targets from 0 to 1, but the data's y has {wrong:g}")

    def make_room(self, samples: int) -> None:
        super().make_room(samples)
        shape = (samples, *self.output_shape)
        self._one: Slab = self.buffer("one", shape)
        self._above, self._target_above = (self.buffer(name, shape, bool) for name in ("above", "target above"))

    def losses(self, output: Slab, targets: Targets) -> Slab:
        target = self._target = self.fit(targets)
        if output.size and not (output.min() >= 0 and output.max() <= 1) and np.isfinite(output).all():
            raise ModelError("model.loss: binary_cross_entropy needs outputs from 0 to 1; end the model with a sigmoid layer")
        self._output = output
        one, zero, scratch = self._one, self._gradient, self._scratch
        with np.errstate(divide="ignore"):
            np.log(output, out=one)
            np.log1p(np.negative(output, out=zero), out=zero)
        np.maximum(one, -100, out=one)
        one *= target
        np.maximum(zero, -100, out=zero)
        zero *= np.subtract(1, target, out=scratch)
        one += zero
        losses = self.mean_of_sample(one)
        return np.negative(losses, out=losses)

    def gradient(self) -> Slab:
        output, scratch = self._output, self._scratch
        np.subtract(1, output, out=scratch)
        scratch *= output
        np.maximum(scratch, 1e-12, out=scratch)
        scratch *= self.width
        gradient = np.subtract(output, self._target, out=self._gradient)
        gradient /= scratch
        return gradient

    def decide(self, output: Slab, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Whether each output reaches one half, in its shape; with one-hot targets, where the largest is."""
        if self.one_hot:
            return super().decide(output, out)
        above: NDArray[Any] = np.greater_equal(output, 0.5, out=out)
        return above

    def probabilities(self, output: Slab) -> Slab | None:
        """The outputs; of a single one, the probabilities of 0 and of 1."""
        flat = output.reshape(-1, self.width)
        return np.concatenate([1 - flat, flat], axis=1) if self.width == 1 and not self.one_hot else flat

    def correct(self, output: Slab, targets: Targets) -> float:
        """The share of outputs on the right side of one half, summed over samples."""
        if self.one_hot:
            return super().correct(output, targets)
        above, target_above = self.decide(output, self._above), self.decide(self.fit(targets), self._target_above)
        return float(np.count_nonzero(np.equal(above, target_above, out=self._above))) / self.width
