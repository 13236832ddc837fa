"""Layers: each is one small file and one line here."""

from google.protobuf.message import Message

from thalweg.learning.sequential.layers.base import Layer, ModelError, Task
from thalweg.learning.sequential.layers.dense import Dense
from thalweg.learning.sequential.layers.dropout import Dropout
from thalweg.learning.sequential.layers.flatten import Flatten
from thalweg.learning.sequential.layers.gelu import Gelu
from thalweg.learning.sequential.layers.relu import Relu
from thalweg.learning.sequential.layers.sigmoid import Sigmoid
from thalweg.learning.sequential.layers.softmax import Softmax
from thalweg.learning.sequential.layers.tanh import Tanh

LAYERS: dict[str, type[Layer[Message]]] = {
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
