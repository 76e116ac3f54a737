"""Divergences of two predictions of one network, of which both learn; and what UDA adds to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .distillation_inputs import (
    FLOOR,
    check_mask,
    floored,
    item_mean,
    relative_entropy,
    wide_dtype,
)

__all__ = [
    "SIGNALS",
    "as_classes",
    "class_count",
    "confidence",
    "jensen_shannon",
    "signal_threshold",
    "squared_difference",
    "symmetric_divergence",
    "target_likelihood",
]

#: The ways in which the threshold of the training signal rises.
SIGNALS = ("linear", "exp", "log")


def symmetric_divergence(first: Tensor, second: Tensor, valid: Tensor) -> Tensor:
    r"""Compute $\mathrm{KL}(p \| q) + \mathrm{KL}(q \| p)$, of which both sides learn.

    $= \sum_c (p_c - q_c)(\log p_c - \log q_c)$: symmetric and 0 on equals, to the last bit.

    Args:
        first: logits of $p$, float `[N, ..., C]`; computed in float32, or float64 if given.
        second: logits of $q$, of that shape.
        valid: bool `[N]`, the items that count; anything may stand in the others.

    Returns:
        `[N]`, the mean over all dimensions between the first and the last; 0 where not valid.

    Raises:
        TypeError: `valid` is not of bool.
        ValueError: the shapes do not fit.

    Example:
        >>> logits = torch.tensor([[math.log(3), 0.0]])
        >>> symmetric_divergence(logits, torch.zeros(1, 2), torch.tensor([True]))
        tensor([0.2747])
    """
    log_p, log_q = (x.log_softmax(-1) for x in _pair(first, second, valid))
    each = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)
    return item_mean(each).masked_fill(~valid, 0.0)


def jensen_shannon(views: Sequence[Tensor], valid: Tensor) -> Tensor:
    r"""Compute $\frac{1}{K} \sum_k \mathrm{KL}(p_k \| m)$ with $m = \frac{1}{K} \sum_k p_k$.

    The gradient goes through all of them. At most $\log K$.

    Args:
        views: logits of each $p_k$, float `[N, ..., C]`, at least one.
        valid: bool `[N]`.

    Returns:
        `[N]`, the mean over all dimensions between the first and the last; 0 where not valid.

    Raises:
        TypeError: `valid` is not of bool.
        ValueError: the shapes do not fit.

    Example:
        >>> sure = torch.tensor([[100.0, 0.0]])
        >>> jensen_shannon([sure, sure.flip(-1)], torch.tensor([True]))  # log 2
        tensor([0.6931])
    """
    logs = [_pair(views[0], view, valid)[1].log_softmax(-1) for view in views]
    middle = torch.stack(logs).logsumexp(0) - math.log(len(logs))
    total = torch.stack([relative_entropy(log_p, middle) for log_p in logs]).sum(0)
    return item_mean(total / len(logs)).masked_fill(~valid, 0.0)


def squared_difference(first: Tensor, second: Tensor, valid: Tensor) -> Tensor:
    """Compute the squared difference of two predicted values, of which both learn.

    Args:
        first: float `[N, ...]`; computed in float32, or float64 if given.
        second: of that shape.
        valid: bool `[N]`.

    Returns:
        `[N]`, the mean over the values of an item; 0 where not valid.

    Raises:
        TypeError: `valid` is not of bool.
        ValueError: the shapes do not fit.

    Example:
        >>> squared_difference(torch.tensor([[1.0]]), torch.tensor([[3.0]]), torch.tensor([True]))
        tensor([4.])
    """
    first, second = _pair(first, second, valid)
    return item_mean((first - second).square()).masked_fill(~valid, 0.0)


def as_classes(logits: Tensor) -> Tensor:
    r"""Write yes-or-no predictions as ones of two classes.

    $\operatorname{softmax}(z, 0) = (\sigma(z), 1 - \sigma(z))$.

    Args:
        logits: float `[N, ..., C]`.

    Returns:
        `[N, ..., C, 2]`.

    Example:
        >>> as_classes(torch.tensor([[0.0]])).softmax(-1).tolist()
        [[[0.5, 0.5]]]
    """
    return torch.stack([logits, torch.zeros_like(logits)], -1)


def confidence(logits: Tensor) -> Tensor:
    r"""Compute how sure each item is: $\max_c p_c$, of several distributions the least sure one.

    Args:
        logits: float `[N, ..., C]`.

    Returns:
        float32 `[N]`, in `[1 / C, 1]`.

    Example:
        >>> confidence(torch.tensor([[math.log(3), 0.0]]))
        tensor([0.7500])
    """
    sure = logits.to(wide_dtype(logits)).softmax(-1).amax(-1)
    return sure.flatten(1).amin(1) if sure.dim() > 1 else sure


def class_count(logits: Tensor) -> Tensor:
    """Count the classes that each distribution has: those that are not minus infinity.

    Args:
        logits: float `[N, ..., C]`.

    Returns:
        int64 `[N, ...]`.

    Example:
        >>> class_count(torch.tensor([[0.0, 1.0, -torch.inf]])).tolist()
        [2]
    """
    return (logits > FLOOR).sum(-1)


def target_likelihood(logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
    r"""Compute $\log p_y$ of each item with a label, of several distributions the mean.

    Args:
        logits: float `[N, ..., C]`.
        labels: int64 `[N, ...]`.
        ignored: the label of an item that has none.

    Returns:
        `[N]` in float32, or float64 if given; 0 without a label.

    Example:
        >>> target_likelihood(torch.zeros(2, 4), torch.tensor([1, -100]), -100)
        tensor([-1.3863,  0.0000])
    """
    log_p = logits.to(wide_dtype(logits)).log_softmax(-1)
    has = labels != ignored
    each = log_p.gather(-1, labels.masked_fill(~has, 0).unsqueeze(-1)).squeeze(-1)
    return item_mean(each.masked_fill(~has, 0.0))


def signal_threshold(
    progress: float, classes: Tensor, schedule: Literal["linear", "exp", "log"]
) -> Tensor:
    r"""Return the threshold $\eta_t$ of UDA's training signal annealing (arXiv:1904.12848).

    $\eta_t = s_t (1 - 1 / C) + 1 / C$, where $s_t$ is $t$ for `linear`, $e^{5 (t - 1)}$ for `exp`
    and $1 - e^{-5 t}$ for `log`. A labelled example whose label has a higher probability does not
    count in the loss.

    Args:
        progress: $t$, the share of the run that is over, in `[0, 1]`.
        classes: $C$, int64 of any shape.
        schedule: one of `SIGNALS`.

    Returns:
        float32 of that shape, from $1 / C$ to 1.

    Raises:
        ValueError: the schedule is unknown.

    Example:
        >>> signal_threshold(0.5, torch.tensor([4]), "linear")
        tensor([0.6250])
    """
    if schedule not in SIGNALS:
        raise ValueError(f"signal must be one of {', '.join(SIGNALS)}, got {schedule!r}")
    share = {
        "linear": progress,
        "exp": math.exp(5.0 * (progress - 1.0)),
        "log": 1.0 - math.exp(-5.0 * progress),
    }[schedule]
    least = 1.0 / classes.float()
    return share * (1.0 - least) + least


def _pair(first: Tensor, second: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides in one wide type, with a floor for what is masked or hidden."""
    if first.shape != second.shape:
        raise ValueError(
            f"two views must have predictions of one shape, got {list(first.shape)} and "
            f"{list(second.shape)}; both must hold the same items, in the same order"
        )
    check_mask("valid", valid, 1, first, second)
    dtype = wide_dtype(first, second)
    return floored(first.to(dtype), valid), floored(second.to(dtype), valid)
