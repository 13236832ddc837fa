"""Losses: each is one small file and one line here."""

from thalweg.learning.sequential.losses.base import Loss
from thalweg.learning.sequential.losses.binary_cross_entropy import BinaryCrossEntropy
from thalweg.learning.sequential.losses.mean_squared_error import MeanSquaredError
from thalweg.learning.sequential.losses.softmax_cross_entropy import SoftmaxCrossEntropy

LOSSES: dict[str, type[Loss]] = {
    "mean_squared_error": MeanSquaredError,
    "softmax_cross_entropy": SoftmaxCrossEntropy,
    "binary_cross_entropy": BinaryCrossEntropy,
}

__all__ = ["LOSSES", "Loss"]
