"""Metrics of replaced-token detection, weighted by the tokens that each is over."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from ..types import StepOutput
from .token_metrics import Perplexity, TokenMean

__all__ = ["SumOfMeans", "detection_metrics", "token_shares", "update_detection_metrics"]

# Over the chosen tokens, over all real ones, and over those that are, or are said to be, replaced.
_OF_CHOSEN = ("generator_loss", "generator_accuracy")
_OF_REAL = ("discriminator_loss", "discriminator_accuracy", "replaced_share")
_OF_REPLACED = ("precision", "recall", "f1")


def detection_metrics() -> dict[str, Metric]:
    """Make the metrics of generator and discriminator by name."""
    return {
        "loss": SumOfMeans(),
        "generator_perplexity": Perplexity(),
        **{name: TokenMean() for name in (*_OF_CHOSEN, *_OF_REAL, *_OF_REPLACED)},
    }


def token_shares(
    flagged: Tensor, replaced: Tensor, real: Tensor, chosen: Tensor
) -> dict[str, Tensor]:
    """Count tokens, as shares of the real ones.

    Args:
        flagged: bool `[B, L]`, what the discriminator takes for replaced.
        replaced: bool `[B, L]`, what is; of real tokens only.
        real: bool `[B, L]`, where there is a token.
        chosen: how many tokens the generator had to fill.

    Returns:
        Scalars in `[0, 1]`: `discriminator_accuracy`, `chosen_share`, `replaced_share`,
        `flagged_share`, and `caught_share` of those both flagged and replaced.
    """
    count = real.sum().clamp(min=1)
    flagged = flagged & real
    return {
        "discriminator_accuracy": ((flagged == replaced) & real).sum() / count,
        "chosen_share": chosen / count,
        "replaced_share": replaced.sum() / count,
        "flagged_share": flagged.sum() / count,
        "caught_share": (flagged & replaced).sum() / count,
    }


def update_detection_metrics(
    metrics: Mapping[str, Metric], output: StepOutput, weight: float
) -> None:
    """Give the metrics of `detection_metrics` one batch.

    Args:
        metrics: what `detection_metrics` made.
        output: of the step of `ReplacedTokenModule`; its logs have what is counted as shares.
        weight: of the discriminator's loss in the sum.
    """
    logs, real = output.logs, output.items
    shares = ("chosen_share", "replaced_share", "flagged_share", "caught_share")
    chosen, replaced, flagged, caught = (logs[name] * real for name in shares)
    losses = torch.stack([logs["generator_loss"], weight * logs["discriminator_loss"]])
    metrics["loss"].update(losses, torch.stack([chosen, real.to(chosen)]))
    metrics["generator_perplexity"].update(logs["generator_loss"], chosen)
    for names, count in ((_OF_CHOSEN, chosen), (_OF_REAL, real)):
        for name in names:
            metrics[name].update(logs[name], count)
    # The caught are a share of the flagged, of the replaced, and of the mean of these numbers.
    counts = (flagged, replaced, (flagged + replaced) / 2)
    for name, count in zip(_OF_REPLACED, counts, strict=True):
        metrics[name].update(caught / count.clamp(min=0.5), count)


class SumOfMeans(TokenMean):
    """The sum of two means, each over tokens of its own.

    Example:
        >>> metric = SumOfMeans()
        >>> metric.update(torch.tensor([1.0, 10.0]), torch.tensor([3, 5]))
        >>> metric.update(torch.tensor([2.0, 20.0]), torch.tensor([1, 5]))
        >>> metric.compute().item()
        16.25
    """

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "count"):
            zeros = torch.zeros(2, dtype=self.total.dtype)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """Return the sum of the two means over all batches and ranks so far."""
        return super().compute().sum()
