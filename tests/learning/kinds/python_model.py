"""Objects in plain Python."""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.floating]
Labels = NDArray[np.int64]


class Numerical:
    """Logistic regression with noisy inputs, without a gradient."""

    def __init__(self, inputs: int = 4, classes: int = 3) -> None:
        self.shape = inputs, classes

    def initial(self, rng: np.random.Generator) -> dict[str, Numbers]:
        return {"weights": rng.normal(0, 0.5, self.shape), "biases": np.zeros(self.shape[1])}

    def predict(self, parameters: dict[str, Numbers], x: Numbers) -> Numbers:
        return x @ parameters["weights"] + parameters["biases"]

    def loss(self, parameters: dict[str, Numbers], x: Numbers, y: Labels) -> Numbers:
        return -np.log(self._probabilities(parameters, self._noisy(x))[np.arange(len(y)), y])

    def _noisy(self, x: Numbers) -> Numbers:
        return (x + np.random.normal(0, 0.1, x.shape)).astype(x.dtype)

    def _probabilities(self, parameters: dict[str, Numbers], x: Numbers) -> Numbers:
        logits = self.predict(parameters, x)
        powers = np.exp(logits - logits.max(1, keepdims=True))
        quotient: Numbers = powers / powers.sum(1, keepdims=True)
        return quotient


class Differentiated(Numerical):
    """The same with a gradient."""

    def gradient(self, parameters: dict[str, Numbers], x: Numbers, y: Labels) -> dict[str, Numbers]:
        x = self._noisy(x)
        error = self._probabilities(parameters, x)
        error[np.arange(len(y)), y] -= 1
        return {"biases": error.sum(0), "weights": x.T @ error}


class Mean(Differentiated):
    """The same, where the loss is the mean of the samples'."""

    def loss(self, parameters: dict[str, Numbers], x: Numbers, y: Labels) -> Numbers:
        return np.asarray(super().loss(parameters, x, y).mean())

    def gradient(self, parameters: dict[str, Numbers], x: Numbers, y: Labels) -> dict[str, Numbers]:
        return {name: each / len(x) for name, each in super().gradient(parameters, x, y).items()}
