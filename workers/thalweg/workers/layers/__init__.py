"""Layers: each is one small file and one line here."""

from thalweg.workers.layers.base import Layer, ModelError, Task
from thalweg.workers.layers.dense import Dense
from thalweg.workers.layers.dropout import Dropout
from thalweg.workers.layers.flatten import Flatten
from thalweg.workers.layers.gelu import Gelu
from thalweg.workers.layers.relu import Relu
from thalweg.workers.layers.sigmoid import Sigmoid
from thalweg.workers.layers.softmax import Softmax
from thalweg.workers.layers.tanh import Tanh

LAYERS: dict[str, type[Layer]] = {
    "dense": Dense,
    "relu": Relu,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "softmax": Softmax,
    "gelu": Gelu,
    "dropout": Dropout,
    "flatten": Flatten,
}

__all__ = ["LAYERS", "Layer", "ModelError", "Task"]
