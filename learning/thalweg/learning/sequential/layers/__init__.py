"""Layers: each is one small file and one line here."""

import numpy as np

from thalweg.learning.sequential.layers.base import AnyLayer, Common, Layer, ModelError, Place
from thalweg.learning.sequential.layers.dense import Dense
from thalweg.learning.sequential.layers.dropout import Dropout
from thalweg.learning.sequential.layers.flatten import Flatten
from thalweg.learning.sequential.layers.gelu import Gelu
from thalweg.learning.sequential.layers.relu import Relu
from thalweg.learning.sequential.layers.sequence import Sequence
from thalweg.learning.sequential.layers.sigmoid import Sigmoid
from thalweg.learning.sequential.layers.softmax import Softmax
from thalweg.learning.sequential.layers.tanh import Tanh
from thalweg.v1 import job_pb2

LAYERS: dict[str, type[AnyLayer]] = {
    "dense": Dense,
    "relu": Relu,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "softmax": Softmax,
    "gelu": Gelu,
    "dropout": Dropout,
    "flatten": Flatten,
    "sequence": Sequence,
}

__all__ = ["LAYERS", "Layer", "ModelError", "Sequence", "sequence"]


def make(spec: job_pb2.Layer, around: Place, index: int, common: Common) -> AnyLayer:
    """The layer of a complete specification, at an index of the sequence at a place."""
    kind = str(spec.WhichOneof("kind"))
    return LAYERS[kind](getattr(spec, kind), around.within(index, kind), common)


def sequence(spec: job_pb2.Model, dtype: np.dtype[np.floating], seed: int, substitutes: bool) -> Sequence:
    """All layers of a model."""
    return Sequence(job_pb2.Sequence(layers=spec.layers), Place((), "model"), Common(dtype, seed, make, substitutes))
