"""What metrics are made from: sums over samples, which, like gradients, are added along the tree."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sums:
    """The sum of the losses, the number of samples classified rightly, and the number of samples."""

    loss: float = 0.0
    correct: float = 0.0
    samples: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.loss + other.loss, self.correct + other.correct, self.samples + other.samples)
