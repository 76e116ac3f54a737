r"""Small perturbations $\delta$ of embeddings and of weights: norms, directions, projections.

A ball is what a bound holds for: the tokens of one text (`sentence`), one token (`token`), or each
number by itself (`entry`). Texts may share a row; `segments` then tells them apart. Nothing is
computed over the batch, so that a perturbation does not depend on what else is in it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .distillation_inputs import wide_dtype

__all__ = [
    "NORMS",
    "Norm",
    "ball_norm",
    "ball_size",
    "peak_direction",
    "project",
    "relative_radius",
    "text_sum",
    "unit",
    "weight_step",
]

Norm = Literal["sentence", "token", "entry"]

#: What a bound may hold for.
NORMS = ("sentence", "token", "entry")


def text_sum(values: Tensor, segments: Tensor | None = None) -> Tensor:
    """Sum numbers over the tokens of each text, and give each token the sum of its own.

    Args:
        values: `[R, T]`.
        segments: int64 `[R, T]`, the number of the text of each token in its row, at most T; `None`
            where each row is one text.

    Returns:
        `[R, 1]` where each row is one text, else `[R, T]`.

    Example:
        >>> text_sum(torch.tensor([[1, 2, 5, 9]]), torch.tensor([[1, 1, 2, 0]])).tolist()
        [[3, 3, 5, 9]]
    """
    if segments is None:
        return values.sum(1, keepdim=True)
    rows, length = values.shape
    return values.new_zeros(rows, length + 1).scatter_add(1, segments, values).gather(1, segments)


def ball_norm(values: Tensor, norm: Norm = "sentence", segments: Tensor | None = None) -> Tensor:
    r"""Compute the norm of each ball: $\sqrt{\sum_{t,h} x_{th}^2}$ over a text or a token.

    Of `entry` it is $\max_{t,h} |x_{th}|$ over a text. The largest number is divided out first, so
    that squares of small gradients do not vanish.

    Args:
        values: float `[R, T, H]`; computed in float32, or float64 if given.
        norm: one of `NORMS`.
        segments: as of `text_sum`.

    Returns:
        `[R, T, 1]`, or `[R, 1, 1]` where it is the same for the whole row.

    Raises:
        ValueError: the norm is unknown.

    Example:
        >>> ball_norm(torch.tensor([[[3.0], [4.0]]])).item()
        5.0
    """
    _check_norm(norm)
    values = values.to(wide_dtype(values))
    peak = _peak(values, norm, segments)
    if norm == "entry":
        return peak
    return peak * _scaled_norm(values / _nonzero(peak), norm, segments)


def unit(gradient: Tensor, norm: Norm = "sentence", segments: Tensor | None = None) -> Tensor:
    r"""Return the direction in which a linear function grows fastest within each ball.

    $g / \lVert g \rVert_2$ per text or per token; $\operatorname{sign}(g)$ for `entry`. It is 0
    where the gradient of a whole ball is 0; what is no number or infinite counts as 0.

    Args:
        gradient: float `[R, T, H]`, of any scale.
        norm: one of `NORMS`.
        segments: as of `text_sum`.

    Returns:
        `[R, T, H]` in float32, or float64 if given; of norm 1 or 0.

    Raises:
        ValueError: the norm is unknown.

    Example:
        >>> unit(torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])).tolist()
        [[[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]]
    """
    _check_norm(norm)
    gradient = _finite(gradient)
    if norm == "entry":
        return gradient.sign()
    scaled = gradient / _nonzero(_peak(gradient, norm, segments))
    # At least 1 where there is anything, since the largest entry is 1 now.
    return scaled / _scaled_norm(scaled, norm, segments).clamp(min=1.0)


def peak_direction(gradient: Tensor, segments: Tensor | None = None) -> Tensor:
    r"""Return $g / \lVert g \rVert_\infty$ of each text, the direction of SMART's ascent.

    Args:
        gradient: float `[R, T, H]`, of any scale.
        segments: as of `text_sum`.

    Returns:
        `[R, T, H]`; the largest entry of a text is 1 or -1, or all are 0.

    Example:
        >>> peak_direction(torch.tensor([[[1.0, -4.0]]])).tolist()
        [[[0.25, -1.0]]]
    """
    gradient = _finite(gradient)
    return gradient / _nonzero(_peak(gradient, "sentence", segments))


def project(
    delta: Tensor,
    radius: Tensor | float,
    norm: Norm = "sentence",
    segments: Tensor | None = None,
) -> Tensor:
    r"""Return the nearest perturbation that lies within the balls.

    $\delta \min(1, \epsilon / \lVert \delta \rVert_2)$ per text or per token; of `entry` each
    number is cut to $[-\epsilon, \epsilon]$.

    Args:
        delta: float `[R, T, H]`.
        radius: $\epsilon$, at least 0: a number, or what broadcasts to `[R, T, 1]`.
        norm: one of `NORMS`.
        segments: as of `text_sum`.

    Returns:
        `[R, T, H]`, of a norm of at most the radius, to rounding.

    Raises:
        ValueError: the norm is unknown.

    Example:
        >>> project(torch.tensor([[[3.0, 4.0]]]), 1.0).tolist()
        [[[0.6000000238418579, 0.800000011920929]]]
    """
    _check_norm(norm)
    bound = torch.as_tensor(radius, dtype=delta.dtype, device=delta.device)
    if norm == "entry":
        return torch.minimum(torch.maximum(delta, -bound), bound)
    size = ball_norm(delta, norm, segments)
    return delta * (bound / _nonzero(size)).clamp(max=1.0).to(delta.dtype)


def relative_radius(
    embedded: Tensor,
    free: Tensor,
    epsilon: float,
    norm: Norm = "sentence",
    segments: Tensor | None = None,
) -> Tensor:
    r"""Return the radius of each ball as a share of the embeddings in it.

    $\epsilon \lVert M \odot E \rVert$ of the text or the token; of `entry`
    $\epsilon \lVert M \odot E \rVert / \sqrt{n H}$, a share of the root mean square of the text's
    numbers. A bound that is right for one network is so for another then: of MiniLM a token's
    embedding has the norm 1.07, of other networks 0.5 or 15.

    Args:
        embedded: $E$, float `[R, T, H]`.
        free: $M$, bool `[R, T, 1]`, which tokens may be moved.
        epsilon: at least 0.
        norm: one of `NORMS`.
        segments: as of `text_sum`.

    Returns:
        float32 `[R, T, 1]` or `[R, 1, 1]`.

    Raises:
        ValueError: the norm is unknown.

    Example:
        >>> embedded, free = torch.tensor([[[3.0], [4.0]]]), torch.ones(1, 2, 1).bool()
        >>> relative_radius(embedded, free, 0.1).item()
        0.5
    """
    _check_norm(norm)
    real = embedded.masked_fill(~free, 0.0)
    if norm != "entry":
        return epsilon * ball_norm(real, norm, segments)
    count = ball_size(free, embedded.shape[-1], "sentence", segments)
    return epsilon * ball_norm(real, "sentence", segments) / count.sqrt()


def ball_size(
    free: Tensor, width: int, norm: Norm = "sentence", segments: Tensor | None = None
) -> Tensor:
    """Count the numbers that share a ball: of the free tokens of a text, of a token, or one.

    Args:
        free: bool `[R, T, 1]`.
        width: $H$.
        norm: one of `NORMS`.
        segments: as of `text_sum`.

    Returns:
        float32 `[R, T, 1]` or `[R, 1, 1]`, of a token or a number a scalar; at least 1.

    Example:
        >>> ball_size(torch.tensor([[[True], [True], [False]]]), 4).item()
        8.0
    """
    if norm == "sentence":
        count = text_sum(free.squeeze(-1).float(), segments).clamp(min=1.0).unsqueeze(-1)
        return count * width
    return torch.tensor(float(width) if norm == "token" else 1.0, device=free.device)


def weight_step(weight: Tensor, gradient: Tensor, gamma: float) -> Tensor:
    r"""Return AWP's perturbation of a weight: $v = \gamma \lVert w \rVert g / \lVert g \rVert$.

    Each weight moves by the share $\gamma$ of its own norm (arXiv:2004.05884).

    Args:
        weight: float, any shape.
        gradient: of that shape, of any scale; what is no number or infinite counts as 0.
        gamma: at least 0.

    Returns:
        Of the shape and type of the weight; 0 where the gradient is 0 (of a norm below 1e-30).

    Example:
        >>> weight_step(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 9.0]), 0.1).tolist()
        [0.0, 0.5]
    """
    gradient = gradient.to(wide_dtype(gradient))
    size = torch.linalg.vector_norm(gradient)
    # Where squares leave the range of float32, float64 has room; on an accelerator a look at the
    # size would wait for all that is queued.
    if gradient.device.type != "cpu" or not 1e-15 < float(size) < torch.inf:
        gradient = _finite(gradient)
        size = torch.linalg.vector_norm(gradient, dtype=torch.float64)
    whole = torch.linalg.vector_norm(weight, dtype=wide_dtype(weight))
    share = torch.where(size > 1e-30, gamma * whole / size, torch.zeros_like(size))
    return (gradient * share.to(gradient.dtype)).to(weight.dtype)


def _check_norm(norm: str) -> None:
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")


def _finite(gradient: Tensor) -> Tensor:
    return torch.nan_to_num(gradient.to(wide_dtype(gradient)), 0.0, 0.0, 0.0)


def _nonzero(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, torch.ones_like(size))


def _peak(values: Tensor, norm: Norm, segments: Tensor | None) -> Tensor:
    """Largest absolute number of each ball, `[R, T, 1]` or `[R, 1, 1]`."""
    each = values.abs().amax(-1)
    if norm == "token":
        return each.unsqueeze(-1)
    if segments is None:
        return each.amax(1, keepdim=True).unsqueeze(-1)
    rows, length = each.shape
    zeros = each.new_zeros(rows, length + 1)
    return zeros.scatter_reduce(1, segments, each, "amax").gather(1, segments).unsqueeze(-1)


def _scaled_norm(scaled: Tensor, norm: Norm, segments: Tensor | None) -> Tensor:
    squares = scaled.square().sum(-1)
    total = squares if norm == "token" else text_sum(squares, segments)
    return total.sqrt().unsqueeze(-1)
