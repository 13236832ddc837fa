"""PyTorch modules that are trained to measure how fast: by Thalweg, whose workers import this file alone, and by PyTorch."""

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
BYTES = 256
CONTEXT = 128
FEATURES = 784


def convolutional() -> nn.Module:
    """Four convolutions with batch normalization and dropout, for images of 3 × 32 × 32."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        if inputs == outputs:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.25), nn.Linear(64 * 8 * 8, CLASSES))


def wide() -> nn.Module:
    """The layers of the workload `wide`."""
    return nn.Sequential(nn.Linear(FEATURES, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, CLASSES))


class Block(nn.Module):
    """A block of a transformer, with attention to earlier positions only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.attended = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        samples, positions, width = x.shape
        parts = self.attention(self.first(x)).view(samples, positions, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attended(found.transpose(1, 2).reshape(samples, positions, width))
        result: Tensor = x + self.network(self.second(x))
        return result


class _GPT(nn.Module):
    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.bytes, self.positions = nn.Embedding(BYTES, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.last, self.out = nn.LayerNorm(width), nn.Linear(width, BYTES, bias=False)
        self.out.weight = self.bytes.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.last(self.blocks(self.bytes(x) + self.positions(torch.arange(x.shape[1])))))
        return logits


def gpt() -> nn.Module:
    """A GPT of 10 million parameters, over 128 bytes."""
    return _GPT(8, 320, 5)


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of each sample, whose classes are on the last axis: the mean over its positions, if it has any."""
    losses = functional.cross_entropy(outputs.movedim(-1, 1), targets, reduction="none")
    return losses.mean(1) if losses.ndim > 1 else losses
