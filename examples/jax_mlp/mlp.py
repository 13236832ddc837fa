"""A multilayer perceptron: functions of a pytree of parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Layer = dict[str, Array]
Parameters = list[Layer]


class Model(NamedTuple):
    """What a job's entry point gives: three pure functions."""

    init: Any
    loss: Any
    predict: Any


def make(hidden: int, inputs: int = 64, classes: int = 10) -> Model:
    """The entry point of `job.toml`."""

    def init(key: Array) -> Parameters:
        first, second = jax.random.split(key)
        return [_layer(first, inputs, hidden), _layer(second, hidden, classes)]

    def predict(parameters: Parameters, x: Array) -> Array:
        """Logits, of shape (samples, classes)."""
        first, second = parameters
        activations = jnp.tanh(x @ first["weights"] + first["biases"])
        return activations @ second["weights"] + second["biases"]

    def loss(parameters: Parameters, x: Array, y: Array, key: Array) -> Array:
        """The cross-entropy of each sample, shape (samples). `key` would be that of dropout."""
        del key
        logarithms = jax.nn.log_softmax(predict(parameters, x))
        return -jnp.take_along_axis(logarithms, y[:, None], 1)[:, 0]

    return Model(init, loss, predict)


def _layer(key: Array, inputs: int, outputs: int) -> Layer:
    return {"weights": jax.random.normal(key, (inputs, outputs)) * (1 / inputs) ** 0.5, "biases": jnp.zeros(outputs)}
