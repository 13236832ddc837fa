"""A GPT: a transformer that predicts the next byte of a text (Radford et al. 2019)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

BYTES = 256


class Block(nn.Module):
    """Attention to what came before, then a network for each position; both add to their input, which is normalized first."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.before_network = nn.LayerNorm(width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Of shape (samples, positions, width), as `x`."""
        samples, positions, width = x.shape
        parts = self.attention(self.before_attention(x)).view(samples, positions, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.dropout(self.attended(found.transpose(1, 2).reshape(samples, positions, width)))
        result: Tensor = x + self.dropout(self.network(self.before_network(x)))
        return result


class GPT(nn.Module):
    """Blocks between an embedding of bytes and positions, and a linear map that shares the embedding's weights."""

    def __init__(self, layers: int, width: int, heads: int, context: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.bytes = nn.Embedding(BYTES, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.last = nn.LayerNorm(width)
        self.out = nn.Linear(width, BYTES, bias=False)
        for embedding in (self.bytes, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)
        self.out.weight = self.bytes.weight

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the byte after each position, shape (samples, positions, 256), from bytes of shape (samples, positions)."""
        logits: Tensor = self.out(self.last(self.blocks(self.bytes(x) + self.positions(torch.arange(x.shape[1])))))
        return logits


def loss(logits: Tensor, following: Tensor) -> Tensor:
    """The mean cross-entropy over the positions of each sample."""
    return functional.cross_entropy(logits.movedim(-1, 1), following, reduction="none").mean(1)
