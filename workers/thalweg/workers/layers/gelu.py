"""The Gaussian error linear unit."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.workers.layers.base import Layer, ModelError, Randomness, Shape

_CUBE = 0.044715


def _erf(path: str) -> Callable[[Slab], Any]:
    try:
        from scipy.special import erf  # noqa: PLC0415 - only this layer needs SciPy
    except ImportError as error:
        problem = "needs SciPy: pip install 'thalweg[workers]'; or choose approximate = \"tanh\""
        raise ModelError(f"{path}: {problem}") from error
    return erf


class Gelu(Layer):
    """x Φ(x), Φ the standard normal distribution function (Hendrycks and Gimpel 2016), as torch.nn.GELU.

    Its approximation is x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))).
    """

    def build(self, shape: Shape) -> Shape:
        self._exact = _erf(self.path) if self.spec.approximate == "none" else None
        return shape

    def forward(self, x: Slab, randomness: Randomness | None) -> Slab:
        # The input may lie in a buffer that is overwritten before backward.
        self._x: Slab = self.buffer("x", x.shape)
        self._x[...] = x
        if self._exact:
            self._distribution = 0.5 * (1 + self._exact(x * self.dtype.type(math.sqrt(0.5))))
        else:
            self._tanh = np.tanh(math.sqrt(2 / math.pi) * (x + _CUBE * x**3))
            self._distribution = 0.5 * (1 + self._tanh)
        out: Slab = self.buffer("out", x.shape)
        np.multiply(x, self._distribution, out=out)
        return out

    def backward(self, gradient: Slab) -> Slab:
        x = self._x
        if self._exact:
            slope = np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
        else:
            slope = 0.5 * (1 - self._tanh**2) * (math.sqrt(2 / math.pi) * (1 + 3 * _CUBE * x * x))
        out: Slab = self.buffer("in", gradient.shape)
        np.multiply(gradient, self._distribution + x * slope, out=out)
        return out
