"""Gradients on their way from backpropagation to a tensor with a slab's layout."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from thalweg.learning.errors import MistakeError
from thalweg.learning.objective import Progress
from thalweg.learning.pytorch.devices import MAX_SLABS, Remembered
from thalweg.learning.pytorch.parts import Parameter


class Gradients:
    """Writes the gradients by a module's parameters to a tensor with a slab's layout, and says how far it is final.

    Autograd says of each parameter that its gradient is there. It says so more than once for some: for weights that are used in
    several places under activation checkpointing. So the first time only counts, and from then on a gradient is final once it
    has come as often as it did then. Belongs to one thread.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._parameters = parameters
        self._expected: list[int] | None = None
        self._came = [0] * len(parameters)
        self._final = 0
        self._views: Remembered[Tensor, list[Tensor]] = Remembered(self._views_of, MAX_SLABS)
        self._into: list[Tensor] = []
        self._done: Progress | None = None
        for index, parameter in enumerate(parameters):
            parameter.tensor.register_post_accumulate_grad_hook(self._hook(index))

    @contextmanager
    def written(self, out: Tensor, done: Progress) -> Iterator[None]:
        """A context in which backpropagation runs once. At its end parameters without a gradient have zeros.

        Raises MistakeError if the module has put other tensors in the place of its parameters' values.
        """
        self._into, self._done = self._views[out], done
        self._came, self._final = [0] * len(self._parameters), 0
        where = [parameter.tensor.data_ptr() for parameter in self._parameters]
        try:
            yield
        finally:
            self._done = None
            for parameter in self._parameters:
                parameter.tensor.grad = None
        for parameter, pointer in zip(self._parameters, where, strict=True):
            if parameter.tensor.data_ptr() != pointer:
                raise MistakeError(f"model.torch: the module replaces the values of its parameter {parameter.segment.name}")
        for came, view in zip(self._came, self._into, strict=True):
            if came == 0:
                view.zero_()
        if self._expected is None:
            self._expected = list(self._came)

    def _hook(self, index: int) -> Callable[[Tensor], None]:
        def came(tensor: Tensor) -> None:
            gradient = tensor.grad
            if self._done is None or gradient is None:
                return
            if gradient.layout is not torch.strided:
                gradient = gradient.to_dense()
            if self._came[index]:
                self._into[index].add_(gradient)
            else:
                self._into[index].copy_(gradient)
            tensor.grad = None
            self._came[index] += 1
            self._advance(index)

        return came

    def _advance(self, index: int) -> None:
        """Says how far the tensor is final."""
        if self._expected is None or self._done is None:
            return
        if index < self._final:
            name = self._parameters[index].segment.name
            raise MistakeError(
                f"model.torch: the gradient by {name} came in {self._came[index]} parts, and in {self._expected[index]} before; "
                "a parameter must be used equally often each time under activation checkpointing"
            )
        before = self._final
        # What had no gradient before may have one later: it is final only at the end.
        while self._final < len(self._parameters) and 0 < self._expected[self._final] <= self._came[self._final]:
            self._final += 1
        if self._final > before:
            self._done(self._parameters[self._final - 1].where.stop)

    def _views_of(self, out: Tensor) -> list[Tensor]:
        return [parameter.of(out) for parameter in self._parameters]
