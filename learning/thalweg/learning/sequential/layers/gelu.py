"""The Gaussian error linear unit."""

import math
from typing import Protocol

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.learning.errors import NodeError
from thalweg.learning.randomness import Draw
from thalweg.learning.sequential.layers.base import Layer, Shape
from thalweg.v1 import job_pb2

_CUBE = 0.044715


class _Function(Protocol):
    def __call__(self, x: Slab, /, *, out: Slab) -> Slab: ...


def _erf(path: str) -> _Function:
    try:
        from scipy.special import erf  # noqa: PLC0415 - only this layer needs SciPy
    except ImportError as error:
        problem = "needs SciPy: pip install 'thalweg[workers]'; or choose approximate = \"tanh\""
        raise NodeError(f"{path}: {problem}") from error
    return erf


def _slow_erf(x: Slab, /, *, out: Slab) -> Slab:
    """The C library's error function, number by number. Its last bits may differ from SciPy's."""
    out[...] = np.reshape([math.erf(each) for each in x.ravel().tolist()], x.shape)
    return out


class Gelu(Layer[job_pb2.Gelu]):
    """x Φ(x), Φ the standard normal distribution function (Hendrycks and Gimpel 2016), as torch.nn.GELU.

    Its approximation is x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))).

    Φ is computed with SciPy's error function. Where SciPy is missing and substitutes are allowed, as for predictions, with the C
    library's: the same formula, more slowly, and the last bits may differ.
    """

    @property
    def packages(self) -> frozenset[str]:
        return frozenset({"SciPy"} if self.spec.approximate == "none" else ())

    def build(self, shape: Shape) -> Shape:
        self._exact = self._error_function() if self.spec.approximate == "none" else None
        return shape

    def _error_function(self) -> _Function:
        try:
            return _erf(self.path)
        except NodeError:
            if self.substitutes:
                return _slow_erf
            raise

    def make_room(self, shape: Shape) -> None:
        super().make_room(shape)
        self._x: Slab = self.buffer("x", shape)
        self._inner: Slab = self.buffer("inner", shape)
        self._distribution: Slab = self.buffer("distribution", shape)

    def forward(self, x: Slab, draw: Draw | None) -> Slab:
        # The input may be a buffer that is overwritten before `backward`.
        self._x[...] = x
        # Φ, twice, less 1.
        inner = self._inner
        if self._exact:
            np.multiply(x, math.sqrt(0.5), out=inner)
            self._exact(inner, out=inner)
        else:
            np.multiply(x, x, out=inner)
            inner *= _CUBE
            inner += 1
            inner *= x
            inner *= math.sqrt(2 / math.pi)
            np.tanh(inner, out=inner)
        np.add(inner, 1, out=self._distribution)
        self._distribution *= 0.5
        return np.multiply(x, self._distribution, out=self._out)

    def backward(self, gradient: Slab) -> Slab:
        x, slope, out = self._x, self._inner, self._in
        np.multiply(x, x, out=out)
        if self._exact:
            out *= -0.5
            np.exp(out, out=slope)
            slope *= 1 / math.sqrt(2 * math.pi)
        else:
            # Half the derivative of tanh, which is 1 - tanh², times that of its argument.
            out *= 3 * _CUBE
            out += 1
            out *= math.sqrt(0.5 / math.pi)
            np.multiply(slope, slope, out=slope)
            np.subtract(1, slope, out=slope)
            slope *= out
        slope *= x
        slope += self._distribution
        return np.multiply(gradient, slope, out=out)
