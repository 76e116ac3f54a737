"""Vectors of a prompt, learned as they are or as what a small network computes."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["ENCODERS", "SoftPrompt"]

#: What may compute the prompts from vectors that are learned.
ENCODERS = ("none", "mlp", "lstm")


class SoftPrompt(nn.Module):
    """Vectors that are learned, or what a small network makes of vectors that are learned.

    Args:
        vectors: `[P, d]`, where they start.
        encoder: `"none"`, `"mlp"` or `"lstm"`.
        hidden: width of the encoder.

    Example:
        >>> SoftPrompt(torch.zeros(3, 4), "mlp", 8)().shape
        torch.Size([3, 4])
    """

    def __init__(self, vectors: Tensor, encoder: str = "none", hidden: int = 0) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors.clone())
        self.encoder: nn.Module | None = None
        if encoder != "none":
            made = _PromptEncoder(vectors.shape[1], hidden, recurrent=encoder == "lstm")
            self.encoder = made.to(vectors.device, vectors.dtype)

    def forward(self) -> Tensor:
        """Compute the prompts, `[P, d]`."""
        return self.vectors if self.encoder is None else self.encoder(self.vectors)

    @torch.no_grad()
    def bake(self) -> None:
        """Take what the encoder computes for the vectors, and drop the encoder."""
        self.vectors.copy_(self())
        self.encoder = None


class _PromptEncoder(nn.Module):
    """A perceptron, or two layers of LSTM in both directions with a perceptron behind them."""

    def __init__(self, width: int, hidden: int, recurrent: bool) -> None:
        super().__init__()
        self.recurrent: nn.LSTM | None = None
        if recurrent:
            self.recurrent = nn.LSTM(width, hidden, num_layers=2, bidirectional=True)
            width_inside, hidden = 2 * hidden, 2 * hidden
        else:
            width_inside = width
        self.perceptron = nn.Sequential(
            nn.Linear(width_inside, hidden), nn.ReLU(), nn.Linear(hidden, width)
        )

    def forward(self, vectors: Tensor) -> Tensor:
        if self.recurrent is not None:
            vectors = self.recurrent(vectors)[0]
        return cast(Tensor, self.perceptron(vectors))
