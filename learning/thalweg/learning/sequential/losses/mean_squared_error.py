"""The mean squared error."""

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.learning.sequential.losses.base import Loss, Targets


class MeanSquaredError(Loss):
    """The mean of (output - target)² over all outputs of a sample, as torch.nn.MSELoss."""

    def losses(self, output: Slab, targets: Targets) -> Slab:
        difference = np.subtract(output, self.fit(targets), out=self._gradient)
        return self.mean_of_sample(np.multiply(difference, difference, out=self._scratch))

    def gradient(self) -> Slab:
        self._gradient *= 2 / self.width
        return self._gradient
