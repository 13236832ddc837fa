"""What a layer is: a function of its input and of its parameters, and its derivative by both."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
from google.protobuf.message import Message

from thalweg.contract.layout import Slab
from thalweg.learning.errors import MistakeError
from thalweg.learning.sequential.buffers import Buffers

Shape = tuple[int, ...]
# (step, microbatch) of a training task, on which its dropout depends.
Task = tuple[int, int]


class ModelError(MistakeError):
    """A model that cannot be, or does not fit its data. The message begins with the field of the job that it is about."""


# The message of the contract that describes a layer.
S_co = TypeVar("S_co", bound=Message, covariant=True)


class Layer(ABC, Generic[S_co]):
    """Base of all layers. An object belongs to one thread and one model.

    Arrays have the samples on their first axis, and the model's dtype. What `forward` and `backward` return lies in buffers that
    the next call overwrites.
    """

    def __init__(self, spec: S_co, index: int, dtype: np.dtype[np.floating], seed: int) -> None:
        self.spec = spec
        self.index = index
        self.dtype = dtype
        self.seed = seed
        self.parameters: dict[str, Slab] = {}
        self.buffer = Buffers(dtype)

    @property
    def path(self) -> str:
        """The layer's place in the job, for errors."""
        return f"model.layers[{self.index}].{type(self).__name__.lower()}"

    def build(self, shape: Shape) -> Shape:
        """Fixes the shape of a sample, and gives that of an output. Raises ModelError if it does not fit."""
        return shape

    def shapes(self) -> dict[str, Shape]:
        """The shapes of the parameters."""
        return {}

    def initialize(self, parameters: dict[str, Slab]) -> None:
        """Fills the parameters with their first values."""

    def make_room(self, shape: Shape) -> None:
        """Takes buffers for inputs of a shape, the samples' axis included. Comes before the first `forward` with such an input.

        Most layers need one for the output and one for the gradient by the input, both of the input's shape.
        """
        self._out: Slab = self.buffer("out", shape)
        self._in: Slab = self.buffer("in", shape)

    @abstractmethod
    def forward(self, x: Slab, task: Task | None) -> Slab:
        """The output. With a task, as in training. Keeps what `differentiate` and `backward` need."""

    def differentiate(self, gradient: Slab, gradients: dict[str, Slab], finished: Callable[[int], object]) -> None:
        """Writes the gradient by the parameters, from that by the output.

        In between, `finished` may be told how many elements of the parameters, in the order of `shapes`, are done.
        """

    @abstractmethod
    def backward(self, gradient: Slab) -> Slab:
        """The gradient by the input, from that by the output."""
