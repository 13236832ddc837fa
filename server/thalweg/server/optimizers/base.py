"""What an optimizer is: a state of some slabs, and an in-place update of a block."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from thalweg.contract.layout import Slab

State = dict[str, Slab]

# Elements that are updated at once: so few that parameters, gradient and state of a block stay in the second-level cache.
BLOCK = 65_536


class Optimizer(ABC):
    """Base of all optimizers. An object belongs to one thread.

    `hyperparameters` is the message of the contract that describes the optimizer, with its defaults filled in. `slots` names the
    slabs of its state, which start at zero.
    """

    slots: tuple[str, ...] = ()

    def __init__(self, hyperparameters: Any) -> None:
        self.hyperparameters = hyperparameters
        self.learning_rate = float(hyperparameters.learning_rate)
        self.weight_decay = float(hyperparameters.weight_decay)
        self._scratch: dict[tuple[int, np.dtype[np.floating]], Slab] = {}

    def init(self, size: int, dtype: np.dtype[np.floating]) -> State:
        """The state before the first step."""
        return {slot: np.zeros(size, dtype) for slot in self.slots}

    @abstractmethod
    def update(self, parameters: Slab, gradient: Slab, state: State, out: Slab, learning_rate: float, step: int) -> None:
        """Updates a block of at most `BLOCK` elements, each for itself.

        All arrays are one-dimensional, of equal length and dtype. Reads `parameters`, writes `out`, which may be `parameters`,
        changes `state`, may use up `gradient`. `learning_rate` is the scheduled one; `step` counts from 0.
        """

    def scratch(self, like: Slab, number: int = 0) -> Slab:
        """An array of the same length and dtype, with any content, for intermediate results. The same one at each call."""
        key = (number, like.dtype)
        if key not in self._scratch:
            self._scratch[key] = np.empty(BLOCK, like.dtype)
        return self._scratch[key][: like.size]

    def decay(self, parameters: Slab, gradient: Slab) -> None:
        """Adds the gradient of weight_decay / 2 · |parameters|²."""
        if self.weight_decay:
            scratch = self.scratch(parameters)
            np.multiply(parameters, self.weight_decay, out=scratch)
            gradient += scratch
