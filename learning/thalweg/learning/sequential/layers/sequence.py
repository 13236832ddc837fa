"""A sequence of layers, which is a layer too."""

import math
from collections import deque
from collections.abc import Callable

from thalweg.contract.layout import Slab
from thalweg.learning.randomness import Draw
from thalweg.learning.sequential.layers.base import Common, Layer, Place, Shape
from thalweg.v1 import job_pb2

# Sets of parameters or gradients whose distribution among the layers is kept: those of two slabs each.
_MAX_KNOWN = 4


class Sequence(Layer[job_pb2.Sequence]):
    """Each layer's output is the next one's input, as in torch.nn.Sequential.

    A tensor's name begins with its layer's index and a dot. The last layer's come first: backpropagation finishes them first.
    """

    def __init__(self, spec: job_pb2.Sequence, place: Place, common: Common) -> None:
        super().__init__(spec, place, common)
        self.layers = [common.make(layer, place, index, common) for index, layer in enumerate(spec.layers)]
        self._known: deque[tuple[dict[str, Slab], list[dict[str, Slab]]]] = deque(maxlen=_MAX_KNOWN)
        # The layer that `differentiate` has reached, and the gradient by its output.
        self._reached: tuple[int, Slab] | None = None

    @property
    def packages(self) -> frozenset[str]:
        return frozenset().union(*(layer.packages for layer in self.layers))

    def build(self, shape: Shape) -> Shape:
        self._inputs: list[Shape] = []
        for layer in self.layers:
            self._inputs.append(shape)
            shape = layer.build(shape)
        self._shapes = [layer.shapes() for layer in self.layers]
        self._sizes = [sum(map(math.prod, shapes.values())) for shapes in self._shapes]
        self._size = sum(self._sizes)
        return shape

    def shapes(self) -> dict[str, Shape]:
        numbered = reversed(list(enumerate(self._shapes)))
        return {f"{index}.{name}": shape for index, shapes in numbered for name, shape in shapes.items()}

    def initialize(self, parameters: dict[str, Slab]) -> None:
        for layer, own in zip(self.layers, self._distributed(parameters), strict=True):
            layer.initialize(own)

    def bind(self, parameters: dict[str, Slab]) -> None:
        for layer, own in zip(self.layers, self._distributed(parameters), strict=True):
            layer.bind(own)

    def _distributed(self, tensors: dict[str, Slab]) -> list[dict[str, Slab]]:
        """The tensors of each layer. Callers use the same few dictionaries each time."""
        for known, distributed in self._known:
            if known is tensors:
                return distributed
        made = [{name: tensors[f"{index}.{name}"] for name in shapes} for index, shapes in enumerate(self._shapes)]
        self._known.append((tensors, made))
        return made

    def activations(self, inputs: Shape, outputs: Shape) -> int:
        shapes = [*self._inputs, outputs]
        return sum(layer.activations(*shapes[index : index + 2]) for index, layer in enumerate(self.layers))

    def make_room(self, shape: Shape) -> None:
        for layer, inputs in zip(self.layers, self._inputs, strict=True):
            layer.make_room((shape[0], *inputs))

    def forward(self, x: Slab, draw: Draw | None, first: int = 0) -> Slab:
        """The output, from the input of the layer `first`."""
        self._reached = None
        for layer in self.layers[first:]:
            x = layer.forward(x, draw)
        return x

    def differentiate(self, gradient: Slab, gradients: dict[str, Slab], finished: Callable[[int], object]) -> None:
        distributed = self._distributed(gradients)
        done = 0

        def finished_more(elements: int) -> None:
            finished(done + elements)

        for index in reversed(range(len(self.layers))):
            layer = self.layers[index]
            if self._sizes[index]:
                layer.differentiate(gradient, distributed[index], finished_more)
                done += self._sizes[index]
                # There are no parameters before this layer.
                if done == self._size:
                    self._reached = index, gradient
                    return
                finished(done)
            gradient = layer.backward(gradient)

    def backward(self, gradient: Slab) -> Slab:
        index, gradient = self._reached or (len(self.layers) - 1, gradient)
        for layer in reversed(self.layers[: index + 1]):
            gradient = layer.backward(gradient)
        return gradient
