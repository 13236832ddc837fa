"""A damped oscillation, fitted to points."""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.floating]


class Curve:
    """y = amplitude · exp(-decay · x) · cos(frequency · x)."""

    def initial(self, rng: np.random.Generator) -> dict[str, Numbers]:
        """The parameters to start from."""
        return {"amplitude": rng.uniform(0.5, 1.5, 1), "decay": np.array([0.1]), "frequency": np.array([1.5])}

    def predict(self, parameters: dict[str, Numbers], x: Numbers) -> Numbers:
        """The curve at x, both of shape (samples, 1)."""
        envelope = parameters["amplitude"] * np.exp(-parameters["decay"] * x)
        return envelope * np.cos(parameters["frequency"] * x)

    def loss(self, parameters: dict[str, Numbers], x: Numbers, y: Numbers) -> Numbers:
        """The squared distance of each sample."""
        return (self.predict(parameters, x) - y.reshape(-1, 1))[:, 0] ** 2
