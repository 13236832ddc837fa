"""The sums over samples from which metrics are made. Like gradients, they are added along the tree."""

from dataclasses import dataclass

# The metric of classifiers: the fraction of samples that are classified correctly.
ACCURACY = "accuracy"


@dataclass(frozen=True, slots=True)
class Sums:
    """The sum of the losses, the number of samples, and the sum of each metric, in the objective's order of them."""

    loss: float = 0.0
    samples: int = 0
    metrics: tuple[float, ...] = ()

    def __add__(self, other: "Sums") -> "Sums":
        if self.metrics and other.metrics:
            metrics = tuple(a + b for a, b in zip(self.metrics, other.metrics, strict=True))
        else:
            # Without samples there are no sums.
            metrics = self.metrics or other.metrics
        return Sums(self.loss + other.loss, self.samples + other.samples, metrics)
