"""A PyTorch module."""

from torch import nn


def make(inputs: int = 4, classes: int = 3) -> nn.Module:
    """A perceptron with layer normalization and dropout."""
    return nn.Sequential(nn.Linear(inputs, 5), nn.LayerNorm(5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, classes))


def smooth(inputs: int = 4, classes: int = 3) -> nn.Module:
    """A perceptron without random numbers and kinks, so that rounding errors hardly grow from step to step."""
    return nn.Sequential(nn.Linear(inputs, 7), nn.Tanh(), nn.Linear(7, classes))
