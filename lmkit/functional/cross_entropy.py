"""Cross-entropy over tokens, with the number of tokens that it is the mean of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..types import IGNORE_INDEX

__all__ = ["accuracy", "token_cross_entropy"]


def token_cross_entropy(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    r"""Mean negative log-likelihood over the labelled tokens, in float32.

    $\frac{1}{n}\sum_{i : y_i \ne -100} -(1 - \varepsilon) \log p_{i, y_i}
    - \frac{\varepsilon}{V} \sum_{v=1}^{V} \log p_{i,v}$ with
    $p_i = \operatorname{softmax}(z_i)$; a positive $\varepsilon$ smooths the labels
    (arXiv:1512.00567).

    With no labelled token the loss is 0 with a gradient of 0, where a plain mean would be NaN.

    Args:
        logits: float `[..., V]`.
        labels: int64 `[...]`, -100 where there is no target.
        smoothing: $\varepsilon$, in `[0, 1)`.

    Returns:
        The loss, a float32 scalar, and the count $n$, an int64 scalar.

    Raises:
        ValueError: `smoothing` lies outside its range.

    Example:
        >>> import torch
        >>> loss, count = token_cross_entropy(torch.zeros(3, 4), torch.tensor([1, -100, 2]))
        >>> round(loss.item(), 4), count.item()
        (1.3863, 2)
    """
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {smoothing}")
    labels = labels.reshape(-1)
    count = (labels != IGNORE_INDEX).sum()
    total = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(),
        labels,
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=smoothing,
    )
    return total / count.clamp(min=1), count


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the labelled positions whose highest score is the label's.

    Args:
        logits: float `[..., V]`.
        labels: int64 `[...]`, -100 where there is no target.

    Returns:
        A float32 scalar in `[0, 1]`; 0 when no position is labelled.

    Example:
        >>> import torch
        >>> round(accuracy(torch.eye(3), torch.tensor([0, 1, 0])).item(), 4)
        0.6667
    """
    labelled = labels != IGNORE_INDEX
    hits = (logits.argmax(-1) == labels) & labelled
    return hits.sum() / labelled.sum().clamp(min=1)
