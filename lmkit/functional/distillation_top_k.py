"""A teacher of whom only the likeliest classes are kept, as in a cache of its predictions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .distillation_inputs import (
    FLOOR,
    broadcast_mask,
    check_mask,
    floored,
    item_mean,
    relative_entropy,
    wide_dtype,
)

__all__ = ["TopK", "top_k_divergence", "top_k_of"]


class TopK(NamedTuple):
    """The likeliest classes of a teacher, and what is left for all others.

    Attributes:
        ids: int64 `[N, ..., k]`, the likeliest first; int32 is as good where they are stored.
        log_probabilities: float `[N, ..., k]`, at temperature 1.
        tail: float `[N, ...]`, the logarithm of the probability of all other classes together;
            minus infinity where there is none.
    """

    ids: Tensor
    log_probabilities: Tensor
    tail: Tensor


def top_k_of(logits: Tensor, k: int) -> TopK:
    """Return the `k` likeliest classes of a teacher and the logarithms of their probabilities.

    Args:
        logits: float `[N, ..., C]`; computed in float32, or float64 if given.
        k: how many, in `[1, C]`.

    Returns:
        The classes, at temperature 1, without a gradient.

    Raises:
        ValueError: `k` lies outside its range.

    Example:
        >>> top = top_k_of(torch.tensor([[0.0, 2.0, 1.0]]), 2)
        >>> top.ids.tolist(), round(top.tail.exp().item(), 4)
        ([[1, 2]], 0.09)
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k must lie in [1, {logits.shape[-1]}], the number of classes; got {k}")
    log_p = logits.detach().to(wide_dtype(logits)).log_softmax(-1)
    values, ids = log_p.topk(k)
    # The others are added up themselves: 1 minus the sum of the first ones would round to 0.
    return TopK(ids, values, log_p.scatter(-1, ids, -torch.inf).logsumexp(-1))


def top_k_divergence(student: Tensor, top: TopK, valid: Tensor) -> Tensor:
    r"""Compute the divergence from a teacher of whom only the likeliest classes are known.

    $\mathrm{KL}(q \| p)$ over $k + 1$ buckets, at temperature 1: the $k$ classes of the teacher,
    and all others as one. By the data processing inequality it lies between 0 and the divergence
    over all classes, which it reaches at $k = C$. The teacher's buckets are normalised again, so
    what was stored in half precision is a distribution still.

    Args:
        student: float `[N, ..., C]`, logits; computed in float32, or float64 if given.
        top: the teacher's classes, as `top_k_of` gives them; gets no gradient.
        valid: bool `[N]`, the items that count; anything may stand in the others, any id too.

    Returns:
        `[N]`, the mean over all dimensions between the first and the last; 0 where not valid.

    Raises:
        TypeError: `valid` is not of bool.
        ValueError: the shapes do not fit.

    Example:
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[0.0, 2.0, 1.0]])
        >>> valid = torch.tensor([True])
        >>> [round(top_k_divergence(student, top_k_of(teacher, k), valid).item(), 4)
        ...     for k in (1, 2, 3)]
        [0.2291, 0.2662, 0.2662]
    """
    check_mask("valid", valid, 1, student, top.ids)
    if not (
        student.shape[:-1] == top.ids.shape[:-1] == top.tail.shape
        and top.ids.shape == top.log_probabilities.shape
    ):
        raise ValueError(
            f"student of shape {list(student.shape)} needs ids and log_probabilities of shape "
            f"{[*student.shape[:-1], 'k']} and a tail of shape {list(student.shape[:-1])}, got "
            f"{list(top.ids.shape)}, {list(top.log_probabilities.shape)} and {list(top.tail.shape)}"
        )
    dtype = wide_dtype(student, top.log_probabilities)
    ids = top.ids.long().masked_fill(~broadcast_mask(valid, top.ids), 0)
    log_p = floored(student.to(dtype), valid).log_softmax(-1)
    rest = log_p.scatter(-1, ids, FLOOR).logsumexp(-1, keepdim=True)
    log_p = torch.cat([log_p.gather(-1, ids), rest], -1)
    teacher = torch.cat([top.log_probabilities, top.tail.unsqueeze(-1)], -1).detach().to(dtype)
    log_q = floored(teacher, valid).log_softmax(-1)
    return item_mean(relative_entropy(log_q, log_p)).masked_fill(~valid, 0.0)
