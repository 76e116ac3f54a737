r"""Inner products of the gradients of several tasks, and what they say of the tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["cosines", "gradient_shares", "gramian", "scaled_gramian"]

# How many numbers of each gradient are widened to float64 at a time.
_CHUNK = 1 << 18


def gramian(gradients: Sequence[Tensor], names: Sequence[str] | None = None) -> Tensor:
    r"""Compute the inner products $G = J J^\top$ of gradients, in float64.

    Args:
        gradients: T vectors `[N]` of any floating type, on one device.
        names: of the tasks, for the error.

    Returns:
        float64 `[T, T]`, on the CPU.

    Raises:
        ValueError: a gradient is not finite; names the task.

    Example:
        >>> gramian([torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])]).tolist()
        [[1.0, -1.0], [-1.0, 2.0]]
    """
    count, length = len(gradients), len(gradients[0])
    total = torch.zeros(count, count, dtype=torch.float64, device=gradients[0].device)
    for start in range(0, length, _CHUNK):
        part = torch.stack([gradient[start : start + _CHUNK].double() for gradient in gradients])
        total += part @ part.T
    found = total.cpu()
    _check_finite(found, names)
    return found


def scaled_gramian(gramian: Tensor) -> Tensor:
    """Return a Gramian in float64 on the CPU, symmetric, and with a largest entry of 1.

    Args:
        gramian: `[T, T]`, of any type.

    Returns:
        float64 `[T, T]`; all 0 where every gradient is.

    Raises:
        ValueError: it is not square, or not finite.

    Example:
        >>> scaled_gramian(torch.tensor([[2.0, 1.0], [1.0, 4.0]])).tolist()
        [[0.5, 0.25], [0.25, 1.0]]
    """
    if gramian.dim() != 2 or gramian.shape[0] != gramian.shape[1] or not len(gramian):
        raise ValueError(f"gramian must be of shape [T, T], got {list(gramian.shape)}")
    wide = gramian.detach().double().cpu()
    _check_finite(wide, None)
    largest = wide.diagonal().max()
    wide = (wide + wide.T) / 2
    return wide / largest if largest > 0 else wide


def cosines(gramian: Tensor) -> Tensor:
    r"""Compute $\cos(g_i, g_j)$ of each two gradients; 0 where one of them is 0.

    Args:
        gramian: `[T, T]`.

    Returns:
        float64 `[T, T]`, from -1 to 1.

    Raises:
        ValueError: the Gramian is not square, or not finite.

    Example:
        >>> cosines(torch.tensor([[1.0, -1.0], [-1.0, 4.0]]))[0, 1].item()
        -0.5
    """
    scaled = scaled_gramian(gramian)
    norms = scaled.diagonal().clamp(min=0.0).sqrt()
    inverse = torch.where(norms > 0, 1.0 / norms, 0.0)
    return (inverse.unsqueeze(1) * scaled * inverse).clamp(-1.0, 1.0)


def gradient_shares(gramian: Tensor, weights: Tensor) -> Tensor:
    r"""Compute what part of the update each task makes: $w_t \langle g_t, d \rangle / \|d\|^2$.

    A share below 0 is of a task that the others outvote. They add up to 1, and are 0 where the
    update is.

    Args:
        gramian: `[T, T]`.
        weights: `[T]`.

    Returns:
        float64 `[T]`.

    Raises:
        ValueError: the Gramian is not square, or not finite.

    Example:
        >>> gradient_shares(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.ones(2)).tolist()
        [0.25, 0.75]
    """
    scaled, weights = scaled_gramian(gramian), weights.double().cpu()
    parts = weights * (scaled @ weights)
    total = parts.sum()
    return parts / total if total > 0 else torch.zeros_like(parts)


def _check_finite(gramian: Tensor, names: Sequence[str] | None) -> None:
    bad = (~gramian.diagonal().isfinite()).nonzero().flatten().tolist()
    if bad or not gramian.isfinite().all():
        said = ", ".join(repr(names[task]) if names else str(task) for task in bad)
        raise ValueError(
            f"the gradient of task {said} is NaN or infinite: look at its loss and its batches, "
            "lower the learning_rate, or set gradient_clip_val of the Trainer"
        )
