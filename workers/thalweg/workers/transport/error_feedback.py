"""Gradients as they are sent: encoded, and, if the codec has error feedback, with the encoding errors of earlier ones.

r ← 0; at each step: send e(g + r), r ← (g + r) − d(e(g + r)), where e encodes and d decodes (Seide et al. 2014; Karimireddy et
al. 2019).
"""

from collections.abc import Sequence

import numpy as np

from thalweg.contract import codecs
from thalweg.contract.codecs import Bytes, SlabCodec
from thalweg.contract.layout import Slab
from thalweg.contract.segments import Kind, Segment, end_of
from thalweg.contract.tree import Node
from thalweg.v1 import job_pb2


class _Residual:
    """The residual of a node's gradients from step `since` to step `step`; at first it is zero."""

    def __init__(self, size: int, stride: int) -> None:
        self.slab = np.zeros(size, np.float32)
        self.since = 0
        self.step = -stride


class GradientEncoder:
    """Encodes a worker's gradients, one task after the other. Belongs to one thread. `segments` are those of the slab.

    With error feedback it keeps a slab for each node for which it had a task: up to one for each microbatch.
    """

    def __init__(self, spec: job_pb2.JobSpec, segments: Sequence[Segment], chunk_elements: int) -> None:
        self._size, sent = (end_of(kind, segments) for kind in (Kind.PARAMETER, Kind.STATISTIC))
        self._codec = SlabCodec(codecs.of_gradients(spec, chunk_elements), self._size, sent)
        synchrony = spec.training.synchrony
        # Asynchronous steps are divided among the workers: the residual of a worker's gradients is added to its own next one.
        self._ordered = not synchrony.HasField("asynchronous")
        self._stride = synchrony.local.steps if synchrony.HasField("local") else 1
        self._residuals: dict[Node, _Residual] = {}
        self._residual: _Residual | None = None
        self.since = 0

    def begin(self, node: Node, step: int) -> None:
        """Begins the gradient of a task. Returns the step from which on the residual of the node's gradients is added to it.

        That is `step` itself, with no residual, unless the task of the previous step was encoded last: a node that was another
        worker's begins with zero, and so does one whose task is repeated. 0 without error feedback.
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
        """The bytes of chunks of the gradient, from element `start` on. Each chunk must be given once, and may be overwritten."""
        if self._residual is None:
            return self._codec.encode(start, gradient)
        # Statistics and constants are sent unchanged, without a residual.
        left = self._residual.slab[start : start + gradient.size]
        encoded = gradient[: left.size]
        # Values that are not finite are sent to the server.
        with np.errstate(over="ignore", invalid="ignore"):
            encoded += left
            data = self._codec.encode(start, gradient)
            self._codec.decode(start, data[: self._codec.size(start, left.size)], left)
            np.subtract(encoded, left, out=left)
        return data
