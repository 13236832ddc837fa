"""Metrics: what is measured besides the loss. Each is one small file and one line here."""

from thalweg.learning.metrics.base import Metric
from thalweg.learning.metrics.mean_absolute_error import MeanAbsoluteError
from thalweg.learning.metrics.top_accuracy import TopAccuracy

METRICS: dict[str, Metric] = {
    "mean_absolute_error": MeanAbsoluteError(),
    "top_5_accuracy": TopAccuracy(5),
}

__all__ = ["METRICS", "Metric"]
