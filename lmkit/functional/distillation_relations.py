"""Losses between what tokens attend to in a student and in its teacher, one number per row.

Each is the mean over the real tokens of a row, as queries; 0 for a row without one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .distillation_inputs import (
    FLOOR,
    check_mask,
    real_pair,
    relative_entropy,
    token_mean,
    wide_dtype,
)

__all__ = [
    "MAX_RELATION_HEADS",
    "MIN_RELATION_WIDTH",
    "attention_divergence",
    "relation_divergence",
    "relation_heads",
]

#: What MiniLMv2 takes for a base teacher of width 768 (arXiv:2012.15828).
MAX_RELATION_HEADS = 48
#: The width of one of 48 heads in a student of width 384, their narrowest.
MIN_RELATION_WIDTH = 8

# A probability below this counts as this. It bounds the logarithm of a zero, and 0 times that is 0.
_LEAST = 1e-12


def attention_divergence(student: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
    r"""Compute $\mathrm{KL}(a_T \| a_S)$ of attention probabilities (MiniLM, arXiv:2002.10957).

    The mean over heads and real queries; a query at a padded position attends to something as well
    and is left out. Keys that are not real tokens are left out, and what remains is divided by its
    sum. Where the numbers of heads differ, both sides are averaged over their heads first.

    These are probabilities as a network returns them, after the softmax. What is exactly 0 on both
    sides contributes 0; what is 0 in the student alone costs as if it were $10^{-12}$. Dropout on
    the student's attention makes such zeros: switch it off.

    Args:
        student: float `[R, H, L, L]`, queries by keys; computed in float32, or float64 if given.
        teacher: float `[R, H_T, L, L]`; gets no gradient.
        tokens: bool `[R, L]`, the real tokens; anything may stand at the others, NaN too.

    Returns:
        `[R]`.

    Raises:
        TypeError: `tokens` is not of bool.
        ValueError: the shapes do not fit.

    Example:
        >>> student = torch.full((1, 1, 2, 2), 0.5)
        >>> teacher = torch.eye(2).reshape(1, 1, 2, 2)
        >>> attention_divergence(student, teacher, torch.tensor([[True, True]]))
        tensor([0.6931])
    """
    for side, maps in (("student", student), ("teacher", teacher)):
        if maps.dim() != 4 or maps.shape[2] != maps.shape[3]:
            raise ValueError(
                f"{side} must have the shape [rows, heads, queries, keys], with as many keys as "
                f"queries, got {list(maps.shape)}"
            )
    check_mask("tokens", tokens, 2, student[:, 0], teacher[:, 0])
    dtype = wide_dtype(student, teacher)
    average = student.shape[1] != teacher.shape[1]
    log_p = _log_attention(student.to(dtype), tokens, average)
    log_q = _log_attention(teacher.detach().to(dtype), tokens, average)
    return token_mean((log_q.exp() * (log_q - log_p)).sum(-1).mean(1), tokens)


def relation_divergence(
    student: Tensor,
    teacher: Tensor,
    tokens: Tensor,
    heads: int,
    segments: Tensor | None = None,
) -> Tensor:
    r"""Compute how differently tokens relate in queries, keys or values (MiniLMv2, 2012.15828).

    The vectors of all attention heads, side by side, are split into $A$ relation heads of width
    $d$, on both sides the same number, whatever their widths and attention heads. The relation of
    a head is $\operatorname{softmax}(X X^\top / \sqrt{d})$, and the loss is the mean over heads and
    real queries of $\mathrm{KL}(R_T \| R_S)$. Call it once for each of queries, keys and values.
    A rotation of all vectors within a relation head changes nothing.

    Memory: `[R, A, L, L]`.

    Args:
        student: float `[R, L, D_S]`, queries, keys or values of all heads; computed in float32, or
            float64 if given.
        teacher: float `[R, L, D_T]`, the same of the teacher; gets no gradient.
        tokens: bool `[R, L]`, the real tokens; anything may stand at the others, NaN too.
        heads: $A$, which divides both widths; see `relation_heads`.
        segments: int64 `[R, L]`, the number of the text that a token of a packed row belongs to;
            tokens of different texts do not relate.

    Returns:
        `[R]`.

    Raises:
        TypeError: `tokens` is not of bool.
        ValueError: `heads` does not divide both widths, or the shapes do not fit.

    Example:
        >>> student, teacher = torch.zeros(1, 2, 8), torch.eye(2, 16).unsqueeze(0)
        >>> relation_divergence(student, teacher, torch.tensor([[True, True]]), heads=1)
        tensor([0.0078])
    """
    widths = student.shape[-1], teacher.shape[-1]
    if heads < 1 or any(width % heads for width in widths):
        raise ValueError(
            f"heads must divide the student's width {widths[0]} and the teacher's {widths[1]}, got "
            f"{heads}; take relation_heads({widths[0]}, {widths[1]})"
        )
    student, teacher = real_pair(student, teacher, "tokens", tokens, 2)
    allowed = tokens[:, None, None, :]
    if segments is not None:
        if segments.shape != tokens.shape:
            raise ValueError(
                f"segments must have the shape of tokens, {list(tokens.shape)}, got "
                f"{list(segments.shape)}"
            )
        allowed = allowed & (segments[:, None, :, None] == segments[:, None, None, :])
    log_p, log_q = _log_relation(student, heads, allowed), _log_relation(teacher, heads, allowed)
    return token_mean(relative_entropy(log_q, log_p).mean(1), tokens)


def relation_heads(student_width: int, teacher_width: int) -> int:
    """Return how many relation heads to take: the largest number that suits both widths.

    It divides both, is at most `MAX_RELATION_HEADS`, and leaves heads of `MIN_RELATION_WIDTH` or
    more.

    Args:
        student_width: of the queries, keys or values of all heads together.
        teacher_width: the same of the teacher.

    Raises:
        ValueError: a width is below `MIN_RELATION_WIDTH`.

    Example:
        >>> relation_heads(384, 768), relation_heads(312, 768)
        (48, 24)
    """
    narrow = min(student_width, teacher_width)
    if narrow < MIN_RELATION_WIDTH:
        raise ValueError(
            f"no number of relation heads suits the student's width {student_width} and the "
            f"teacher's {teacher_width}: both must be at least {MIN_RELATION_WIDTH}"
        )
    common = math.gcd(student_width, teacher_width)
    most = min(MAX_RELATION_HEADS, narrow // MIN_RELATION_WIDTH)
    return next(heads for heads in range(most, 0, -1) if common % heads == 0)


def _log_attention(maps: Tensor, tokens: Tensor, average: bool) -> Tensor:
    pairs = tokens[:, None, :, None] & tokens[:, None, None, :]
    maps = maps.masked_fill(~pairs, 0.0)
    if average:
        maps = maps.mean(1, keepdim=True)
    return (maps / maps.sum(-1, keepdim=True).clamp(min=_LEAST)).clamp(min=_LEAST).log()


def _log_relation(states: Tensor, heads: int, allowed: Tensor) -> Tensor:
    x = states.unflatten(-1, (heads, -1)).transpose(1, 2)
    with torch.autocast(states.device.type, enabled=False):
        scores: Tensor = (x @ x.mT) / math.sqrt(x.shape[-1])
    return scores.masked_fill(~allowed, FLOOR).log_softmax(-1)
