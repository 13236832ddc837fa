"""A convolutional network for 8 × 8 images."""

from torch import Tensor, nn


class Block(nn.Sequential):
    """A convolution, normalized over the minibatch."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Convolutional(nn.Module):
    """Two blocks, each followed by pooling, and a linear classifier. It takes images as rows of 64 numbers."""

    def __init__(self, channels: int, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            Block(1, channels),
            nn.MaxPool2d(2),
            Block(channels, 2 * channels),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.25), nn.Linear(2 * channels * 4, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, of shape (samples, classes)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


def convolutional(channels: int) -> nn.Module:
    """The entry point of `job.toml`."""
    return Convolutional(channels)
