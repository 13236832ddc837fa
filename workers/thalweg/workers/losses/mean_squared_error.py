"""The mean squared error."""

from thalweg.contract.layout import Slab
from thalweg.workers.losses.base import Loss, Targets, mean_of_sample


class MeanSquaredError(Loss):
    """The mean of (output - target)² over all outputs of a sample, as torch.nn.MSELoss."""

    def losses(self, output: Slab, targets: Targets) -> Slab:
        difference = output - self.fit(targets)
        return mean_of_sample(difference * difference)

    def gradient(self, output: Slab, targets: Targets) -> Slab:
        gradient: Slab = output - self.fit(targets)
        gradient *= 2 / max(1, output[:1].size)
        return gradient
