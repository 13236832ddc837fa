"""Losses: each is one small file and one line here."""

from thalweg.workers.losses.base import Loss
from thalweg.workers.losses.binary_cross_entropy import BinaryCrossEntropy
from thalweg.workers.losses.mean_squared_error import MeanSquaredError
from thalweg.workers.losses.softmax_cross_entropy import SoftmaxCrossEntropy

LOSSES: dict[str, type[Loss]] = {
    "mean_squared_error": MeanSquaredError,
    "softmax_cross_entropy": SoftmaxCrossEntropy,
    "binary_cross_entropy": BinaryCrossEntropy,
}

__all__ = ["LOSSES", "Loss"]
