"""Losses of classification and regression: means over examples, also weighted, smoothed, focal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from ..types import IGNORE_INDEX

__all__ = ["balanced_weights", "binary_loss", "class_loss", "regression_loss"]


def class_loss(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""Compute the cross-entropy of one label per example.

    $\mathcal{L} = \frac{\sum_i w_{y_i} \ell_i}{\sum_i w_{y_i}}$ with
    $\ell_i = -\sum_c q_{ic} (1 - p_{ic})^\gamma \log p_{ic}$ and the smoothed target
    $q_{ic} = (1 - \epsilon) [c = y_i] + \epsilon / C$ (label smoothing: arXiv:1512.00567; focal
    loss: arXiv:1708.02002). The weight of an example is that of its label.

    Args:
        logits: `[B, C]`; computed in float32.
        labels: int64 `[B]`, -100 for an example that does not count.
        weights: `[C]`, at least 0; 1 for all by default.
        smoothing: $\epsilon$, in `[0, 1)`.
        focal_gamma: $\gamma$, at least 0; 0 is the plain cross-entropy.

    Returns:
        The loss, and the weight of all examples that it is the mean over, both scalars; 0 and 0
        where there is none.

    Raises:
        ValueError: a number lies outside its range.

    Example:
        >>> loss, items = class_loss(torch.zeros(2, 4), torch.tensor([3, -100]))
        >>> round(loss.item(), 4), items.item()
        (1.3863, 1.0)
    """
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {smoothing}")
    if focal_gamma < 0:
        raise ValueError(f"focal_gamma must be at least 0, got {focal_gamma}")
    counts = labels != IGNORE_INDEX
    target = labels.clamp(min=0)
    log_p = logits.float().log_softmax(-1)
    if focal_gamma:
        # 1 - p from the logarithm: exact for p near 1, where the focal weight matters. Never 0,
        # where the gradient of a power below 1 is infinite.
        other = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
        log_p = other.pow(focal_gamma) * log_p
    each = -log_p.gather(1, target.unsqueeze(1)).squeeze(1)
    if smoothing:
        each = (1 - smoothing) * each - smoothing * log_p.mean(-1)
    weight = counts.float() if weights is None else weights.to(each)[target] * counts
    return _weighted_mean(each, weight)


def binary_loss(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, focal_gamma: float = 0.0
) -> tuple[Tensor, Tensor]:
    r"""Compute the binary cross-entropy of any number of labels per example.

    The loss of an example is the mean over the classes of
    $-w_c y_c (1 - p_c)^\gamma \log p_c - (1 - y_c) p_c^\gamma \log (1 - p_c)$.

    Args:
        logits: `[B, C]`; computed in float32.
        labels: float `[B, C]` of 0 and 1, NaN in an example that does not count.
        weights: `[C]`, of the positive labels; 1 for all by default.
        focal_gamma: $\gamma$, at least 0; 0 is the plain cross-entropy.

    Returns:
        The loss, and the number of examples that it is the mean over.

    Raises:
        ValueError: `focal_gamma` is negative.

    Example:
        >>> loss, items = binary_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
        >>> round(loss.item(), 4), items.item()
        (0.6931, 1.0)
    """
    if focal_gamma < 0:
        raise ValueError(f"focal_gamma must be at least 0, got {focal_gamma}")
    counts = ~labels.isnan().any(-1)
    target, scores = labels.nan_to_num().float(), logits.float()
    positive = None if weights is None else weights.to(scores)
    each = binary_cross_entropy_with_logits(scores, target, reduction="none", pos_weight=positive)
    if focal_gamma:
        wrong = torch.where(target > 0.5, logsigmoid(-scores), logsigmoid(scores))
        each = each * (focal_gamma * wrong).exp()
    return _weighted_mean(each.mean(-1), counts.float())


def regression_loss(predicted: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the squared error of one value per example.

    Args:
        predicted: `[B, 1]` or `[B]`; computed in float32.
        values: float `[B]`, NaN for an example that does not count.

    Returns:
        The mean squared error, and the number of examples that it is the mean over.

    Example:
        >>> loss, items = regression_loss(torch.tensor([[1.0], [5.0]]),
        ...     torch.tensor([3.0, float("nan")]))
        >>> loss.item(), items.item()
        (4.0, 1.0)
    """
    counts = ~values.isnan()
    error = predicted.float().reshape(-1) - values.nan_to_num().float()
    return _weighted_mean(error.square(), counts.float())


def balanced_weights(counts: Tensor) -> Tensor:
    r"""Return the weights under which all classes count as much: $w_c = N / (C n_c)$.

    Args:
        counts: `[C]`, how many examples of each class there are; a class without one gets 0.

    Returns:
        float32 `[C]`.

    Example:
        >>> balanced_weights(torch.tensor([3, 1])).tolist()
        [0.6666666865348816, 2.0]
    """
    seen = counts > 0
    weights = counts.sum() / (seen.sum() * counts.clamp(min=1).float())
    return torch.where(seen, weights, torch.zeros_like(weights))


def _weighted_mean(each: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = weight.sum()
    return (each * weight).sum() / total.clamp(min=torch.finfo(each.dtype).tiny), total
