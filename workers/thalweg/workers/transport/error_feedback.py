"""Gradients as they are sent: encoded, and, where the codec has error feedback, with what encoding left of the ones before.

r ← 0; at each step: send e(g + r), r ← (g + r) − d(e(g + r)), where e encodes and d decodes (Seide et al. 2014; Karimireddy et
al. 2019).
"""

import numpy as np

from thalweg.contract import codecs
from thalweg.contract.codecs import Bytes, SlabCodec
from thalweg.contract.layout import Slab
from thalweg.contract.tree import Node
from thalweg.v1 import job_pb2


class _Residual:
    """What is left of a node's gradients from step `since` to step `step`; at first nothing of those before step 0."""

    def __init__(self, size: int, stride: int) -> None:
        self.slab = np.zeros(size, np.float32)
        self.since = 0
        self.step = -stride


class GradientEncoder:
    """Encodes a worker's gradients, one task after the other. Belongs to one thread. The slab has `size` parameters.

    With error feedback it keeps a slab for each node of which it was given a task: up to one for each microbatch.
    """

    def __init__(self, spec: job_pb2.JobSpec, size: int, chunk_elements: int) -> None:
        self._codec = SlabCodec(codecs.of_gradients(spec, chunk_elements), size)
        self._size = size
        synchrony = spec.training.synchrony
        # Asynchronous steps are dealt out among the workers: what is left of a worker's gradients goes into its own next one.
        self._ordered = not synchrony.HasField("asynchronous")
        self._stride = synchrony.local.steps if synchrony.HasField("local") else 1
        self._residuals: dict[Node, _Residual] = {}
        self._residual: _Residual | None = None
        self.since = 0

    def begin(self, node: Node, step: int) -> None:
        """A task's gradient is to be encoded. `since` is the step since which what is left of the node's gradients is in it.

        That is `step` itself, and nothing is left, unless the task of the step before was encoded last: a node that was another
        worker's begins anew, and so does one whose task is repeated. 0 without error feedback.
        """
        if not self._codec.feedback:
            return
        residual = self._residuals.setdefault(node, _Residual(self._size, self._stride))
        if self._ordered and step != residual.step + self._stride:
            residual.slab[:] = 0
            residual.since = step
        residual.step = step
        self._residual, self.since = residual, residual.since

    def encode(self, gradient: Slab, start: int) -> Bytes:
        """The bytes of chunks of the gradient, from element `start` on. Each chunk comes once, and may be used up."""
        if self._residual is None:
            return self._codec.encode(start, gradient)
        # Of statistics and constants, which are sent as they are, nothing is left.
        left = self._residual.slab[start : start + gradient.size]
        encoded = gradient[: left.size]
        # What is not finite is told to the server.
        with np.errstate(over="ignore", invalid="ignore"):
            encoded += left
            data = self._codec.encode(start, gradient)
            self._codec.decode(start, data[: self._codec.size(start, left.size)], left)
            np.subtract(encoded, left, out=left)
        return data
