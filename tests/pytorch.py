"""As much of PyTorch as the README's recipe needs, in NumPy, for where PyTorch is not installed."""

from collections.abc import Callable, Mapping
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Values = NDArray[np.float32]


class Linear:
    """y = x Wᵀ + b."""

    def __init__(self, inputs: int, units: int) -> None:
        self.parameters = {"weight": np.empty((units, inputs), np.float32), "bias": np.empty(units, np.float32)}

    def __call__(self, x: Values) -> Values:
        if x.dtype != np.float32:
            raise RuntimeError(f"mat1 and mat2 must have the same dtype, but got {x.dtype} and float32")
        result: Values = x @ self.parameters["weight"].T + self.parameters["bias"]
        return result


class ReLU:
    """max(x, 0)."""

    def __call__(self, x: Values) -> Values:
        return np.maximum(x, 0)


class Dropout:
    """Draws zeroes until `eval`."""

    def __init__(self, p: float) -> None:
        self.p = p
        self.training = True

    def __call__(self, x: Values) -> Values:
        kept = np.random.default_rng(0).uniform(size=x.shape) >= self.p
        return np.where(kept, x / np.float32(1 - self.p), 0) if self.training else x


class Sequential:
    """Layers, one after another, whose tensors are named by their positions."""

    def __init__(self, *layers: Callable[[Values], Values]) -> None:
        self.layers = layers

    def load_state_dict(self, tensors: Mapping[str, Values]) -> None:
        """Takes the values of all tensors and no others."""
        own = {
            f"{index}.{name}": values
            for index, layer in enumerate(self.layers)
            if isinstance(layer, Linear)
            for name, values in layer.parameters.items()
        }
        if own.keys() != tensors.keys():
            raise RuntimeError(f"Missing or unexpected key(s) in state_dict: {own.keys() ^ tensors.keys()}")
        for name, values in own.items():
            if values.shape != tensors[name].shape:
                raise RuntimeError(f"size mismatch for {name}")
            values[...] = tensors[name]

    def eval(self) -> None:
        """No more dropout."""
        for layer in self.layers:
            if isinstance(layer, Dropout):
                layer.training = False

    def __call__(self, x: Values) -> Values:
        for layer in self.layers:
            x = layer(x)
        return x


def modules() -> dict[str, ModuleType]:
    """The modules `torch` and `safetensors.torch`."""
    torch, nn, tensors = ModuleType("torch"), ModuleType("torch.nn"), ModuleType("safetensors.torch")
    for each in (Linear, ReLU, Dropout, Sequential):
        setattr(nn, each.__name__, each)
    vars(torch).update(nn=nn, from_numpy=lambda array: array)
    vars(tensors).update(load_file=load_file)
    return {"torch": torch, "torch.nn": nn, "safetensors.torch": tensors}
