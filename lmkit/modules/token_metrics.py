"""Metrics of language models, weighted by tokens: the same for any batch size, order and ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from ..functional import accuracy
from ..types import StepOutput

__all__ = ["Perplexity", "TokenMean", "language_metrics", "update_language_metrics"]


def language_metrics() -> dict[str, Metric]:
    """Make loss, perplexity and accuracy, each over all labelled tokens."""
    return {"loss": TokenMean(), "perplexity": Perplexity(), "accuracy": TokenMean()}


def update_language_metrics(
    metrics: Mapping[str, Metric], output: StepOutput, labels: Tensor
) -> None:
    """Give the metrics of `language_metrics` one batch.

    Args:
        metrics: what `language_metrics` made.
        output: of the step, with logits `[K, V]`.
        labels: int64 `[K]`.
    """
    assert output.logits is not None
    metrics["loss"].update(output.loss, output.items)
    metrics["perplexity"].update(output.loss, output.items)
    metrics["accuracy"].update(accuracy(output.logits, labels), output.items)


class TokenMean(Metric):
    r"""$\sum_b n_b v_b / \sum_b n_b$ for batches with mean $v_b$ over $n_b$ tokens.

    The sums are kept in float64, so that the result does not depend on how the tokens fall into
    batches, and are added over ranks before the division. (`torchmetrics.MeanMetric` of 1.9 drops
    the weights once its check for NaN, which waits for the device in each batch, is turned off.)

    Example:
        >>> metric = TokenMean()
        >>> metric.update(torch.tensor(1.0), torch.tensor(3))
        >>> metric.update(torch.tensor(2.0), torch.tensor(1))
        >>> metric.compute().item()
        1.25
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Apple's GPUs know no float64.
        double = torch.float32 if torch.backends.mps.is_available() else torch.float64
        self.add_state("total", torch.zeros((), dtype=double), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=double), dist_reduce_fx="sum")

    def update(self, mean: Tensor, count: Tensor) -> None:
        """Add one batch.

        Args:
            mean: scalar, over the batch's tokens.
            count: scalar, number of tokens; with 0 the batch changes nothing.
        """
        # Not in place: `Trainer.validate` resets the states in inference mode, and the validation
        # of a fit that follows, which is not in it, could not write into those.
        self.total = self.total + mean.detach().to(self.total) * count.to(self.total)
        self.count = self.count + count.to(self.count)

    def compute(self) -> Tensor:
        """Return the mean over all batches and ranks so far; 0 if there was no token."""
        # Items may be weights, and add up to less than one.
        return self.total / self.count.clamp(min=1e-12)


class Perplexity(TokenMean):
    r"""$\exp\left(\sum_b n_b \ell_b / \sum_b n_b\right)$ for batches with mean loss $\ell_b$.

    For a masked language model this is the pseudo-perplexity at the masked positions
    (arXiv:1910.14659 masks each position in turn; here it is the positions that were drawn).

    Example:
        >>> metric = Perplexity()
        >>> metric.update(torch.tensor(0.0), torch.tensor(3))
        >>> metric.compute().item()
        1.0
    """

    def compute(self) -> Tensor:
        """Return the perplexity over all batches and ranks so far, a scalar of at least 1."""
        return super().compute().exp()
