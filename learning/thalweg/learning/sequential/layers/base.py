"""The interface of a layer: a function of its input and of its parameters, and its derivative by both."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from google.protobuf.message import Message

from thalweg.contract.layout import Slab
from thalweg.learning.errors import MistakeError
from thalweg.learning.randomness import Draw
from thalweg.learning.sequential.buffers import Buffers
from thalweg.v1 import job_pb2

Shape = tuple[int, ...]


class ModelError(MistakeError):
    """A model that is invalid or does not fit its data. The message begins with the field of the job that it is about."""


class Place(NamedTuple):
    """The place of a layer: the indices of the enclosing sequences and its own, and the job's field, for errors."""

    indices: tuple[int, ...]
    field: str

    def within(self, index: int, kind: str) -> "Place":
        """The place of a layer of a kind in the sequence at this place."""
        return Place((*self.indices, index), f"{self.field}.layers[{index}].{kind}")


class Common(NamedTuple):
    """What all layers of a model share: the dtype, the seed, and the function that makes a layer from its specification.

    `substitutes` says that a layer may replace a package that this machine lacks, with other last bits.
    """

    dtype: np.dtype[np.floating]
    seed: int
    make: "Callable[[job_pb2.Layer, Place, int, Common], AnyLayer]"
    substitutes: bool


# The message of the contract that describes a layer.
S_co = TypeVar("S_co", bound=Message, covariant=True)


class Layer(ABC, Generic[S_co]):
    """Base of all layers. An object belongs to one thread and one model.

    Arrays have the samples on their first axis, and the model's dtype. `forward` and `backward` return buffers that the next call
    overwrites.
    """

    def __init__(self, spec: S_co, place: Place, common: Common) -> None:
        self.spec = spec
        self.place = place
        self.dtype = common.dtype
        self.seed = common.seed
        self.substitutes = common.substitutes
        self.parameters: dict[str, Slab] = {}
        self.buffer = Buffers(common.dtype)

    @property
    def path(self) -> str:
        """The layer's field in the job, for errors."""
        return self.place.field

    @property
    def packages(self) -> frozenset[str]:
        """The packages beside NumPy that it computes with, by the names of their distributions."""
        return frozenset()

    def build(self, shape: Shape) -> Shape:
        """Sets the shape of a sample, and returns that of an output. Raises ModelError if it does not fit."""
        return shape

    def shapes(self) -> dict[str, Shape]:
        """The shapes of the parameters."""
        return {}

    def initialize(self, parameters: dict[str, Slab]) -> None:
        """Fills the parameters with their first values."""

    def bind(self, parameters: dict[str, Slab]) -> None:
        """Sets the parameters of all following computations. Their values may change."""
        self.parameters = parameters

    def activations(self, inputs: Shape, outputs: Shape) -> int:
        """The number of numbers that are kept for each sample: the output, and the gradient by the input."""
        return math.prod(inputs) + math.prod(outputs)

    def make_room(self, shape: Shape) -> None:
        """Allocates buffers for inputs of a shape, samples included. Must be called before the first `forward` with that shape.

        Most layers need one for the output and one for the gradient by the input, both of the input's shape.
        """
        self._out: Slab = self.buffer("out", shape)
        self._in: Slab = self.buffer("in", shape)

    @abstractmethod
    def forward(self, x: Slab, draw: Draw | None) -> Slab:
        """The output; with a draw, as in training. Keeps what `differentiate` and `backward` need."""

    def differentiate(self, gradient: Slab, gradients: dict[str, Slab], finished: Callable[[int], object]) -> None:
        """Writes the gradient by the parameters, from that by the output. It is called before `backward`.

        Meanwhile it may call `finished` with the number of elements of the parameters, in the order of `shapes`, that are done.
        """

    @abstractmethod
    def backward(self, gradient: Slab) -> Slab:
        """The gradient by the input, from that by the output."""


AnyLayer = Layer[Message]
