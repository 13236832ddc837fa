"""Functions that JAX differentiates."""

from typing import Any, NamedTuple

import jax
from jax import Array
from jax import numpy as jnp

Parameters = dict[str, list[dict[str, Array]]]


class Functions(NamedTuple):
    init: Any
    loss: Any
    predict: Any


def make(hidden: int = 5, inputs: int = 4, classes: int = 3) -> Functions:
    """A perceptron with dropout."""

    def init(key: Array) -> Parameters:
        keys = jax.random.split(key)
        shapes = (inputs, hidden), (hidden, classes)
        weights = [jax.random.normal(key, shape) * 0.5 for key, shape in zip(keys, shapes, strict=True)]
        return {"layers": [{"w": each, "b": jnp.zeros(each.shape[1])} for each in weights]}

    def activations(parameters: Parameters, x: Array) -> Array:
        return jnp.tanh(x @ parameters["layers"][0]["w"] + parameters["layers"][0]["b"])

    def logits(parameters: Parameters, x: Array) -> Array:
        return x @ parameters["layers"][1]["w"] + parameters["layers"][1]["b"]

    def loss(parameters: Parameters, x: Array, y: Array, key: Array | None) -> Array:
        values = activations(parameters, x)
        if key is not None:
            values = jnp.where(jax.random.bernoulli(key, 0.7, values.shape), values / 0.7, 0)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits(parameters, values)), y[:, None], 1)[:, 0]

    def predict(parameters: Parameters, x: Array) -> Array:
        return logits(parameters, activations(parameters, x))

    return Functions(init, loss, predict)


def mean(inputs: int = 4, classes: int = 3) -> tuple[Any, Any, Any]:
    """A tuple, where the loss is the mean of the samples'."""
    functions = make(inputs=inputs, classes=classes)

    def loss(*given: Any) -> Array:
        return jnp.mean(functions.loss(*given))

    return functions.init, loss, functions.predict
