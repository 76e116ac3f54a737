"""Random numbers for each token of a text, and perturbations that start from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .adversarial import Norm, ball_size
from .random import uniform

__all__ = ["ball_start", "normal_noise", "uniform_noise"]


def uniform_noise(keys: Tensor, width: int) -> Tensor:
    """Draw numbers from -1 to 1 for each token, which depend on its key alone.

    Args:
        keys: int64 `[R, T]`.
        width: $H$.

    Returns:
        float32 `[R, T, H]`.

    Example:
        >>> noise = uniform_noise(torch.tensor([[7, 8]]), 3)
        >>> torch.equal(noise[:, 1:], uniform_noise(torch.tensor([[8]]), 3))
        True
    """
    return (2.0 * uniform(keys, width) - 1.0).float()


def normal_noise(keys: Tensor, width: int) -> Tensor:
    """Draw standard normal numbers for each token, which depend on its key alone.

    Args:
        keys: int64 `[R, T]`.
        width: $H$.

    Returns:
        float32 `[R, T, H]`.

    Example:
        >>> noise = normal_noise(torch.arange(400).reshape(1, -1), 50)
        >>> bool(noise.mean().abs() < 0.02) and bool((noise.std() - 1).abs() < 0.02)
        True
    """
    # A number of float32 below 1, at which the inverse is finite: 5.4 standard deviations.
    drawn = uniform_noise(keys, width).clamp(-1.0 + 2.0**-24, 1.0 - 2.0**-24)
    return math.sqrt(2.0) * torch.erfinv(drawn)


def ball_start(
    noise: Tensor,
    free: Tensor,
    radius: Tensor | float,
    norm: Norm = "sentence",
    segments: Tensor | None = None,
) -> Tensor:
    r"""Scale noise to the balls: $\delta_0 = M \odot u\, \epsilon / \sqrt{m}$.

    $m$ is how many numbers share a ball: $n H$ of a text of $n$ free tokens (FreeLB,
    arXiv:1909.11764), $H$ of a token, 1 of `entry`. With noise from -1 to 1 the norm is at most
    $\epsilon$.

    Args:
        noise: $u$, float `[R, T, H]`.
        free: $M$, bool `[R, T, 1]`.
        radius: $\epsilon$.
        norm: one of `NORMS`.
        segments: as of `text_sum`.

    Returns:
        `[R, T, H]`, 0 where not free.

    Example:
        >>> free = torch.tensor([[[True], [True], [False]]])
        >>> ball_start(torch.ones(1, 3, 2), free, 2.0).tolist()
        [[[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]]
    """
    count = ball_size(free, noise.shape[-1], norm, segments)
    scale = torch.as_tensor(radius, device=noise.device) / count.sqrt()
    return (noise * scale).masked_fill(~free, 0.0)
