"""A PyTorch module."""

import torch
from torch import Tensor, nn


def make(inputs: int = 4, classes: int = 3) -> nn.Module:
    """A perceptron with layer normalization and dropout."""
    return nn.Sequential(nn.Linear(inputs, 5), nn.LayerNorm(5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, classes))


def smooth(inputs: int = 4, classes: int = 3) -> nn.Module:
    """A perceptron without random numbers and kinks, so that rounding errors hardly grow from step to step."""
    return nn.Sequential(nn.Linear(inputs, 7), nn.Tanh(), nn.Linear(7, classes))


def double(inputs: int = 4, classes: int = 3) -> nn.Module:
    """The same as `make`, in double precision."""
    return make(inputs, classes).double()


class Mixed(nn.Module):
    """All kinds of tensors, tied and frozen ones, and a parameter that the outputs do not depend on."""

    def __init__(self, inputs: int, classes: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.once = nn.Linear(hidden, hidden, bias=False)
        self.again = nn.Linear(hidden, hidden)
        self.again.weight = self.once.weight
        self.fixed = nn.Linear(hidden, hidden)
        self.fixed.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(hidden))
        self.last = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x).tanh())
        outputs: Tensor = self.last(x + self.fixed(self.again(self.once(x).tanh())))
        return outputs


def mixed(inputs: int = 4, classes: int = 3, hidden: int = 600) -> nn.Module:
    """A module of 760,000 parameters for digits: three chunks of 1 MiB."""
    return Mixed(inputs, classes, hidden)
