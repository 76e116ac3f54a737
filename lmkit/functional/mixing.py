"""Mixtures of neighbouring examples of a batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["mixed", "mixing_share", "neighbours"]


def neighbours(rows: int, device: torch.device | None = None) -> Tensor:
    """Pair the rows of a batch: the first with the second, the third with the fourth, and so on.

    The rows of a batch are drawn at random, so neighbours are a random pair. Each row is the
    partner of its own partner; the last of an odd number is its own. Pairs are those of one batch
    of one rank: in a window of smaller batches they are other ones than in a large batch.

    Args:
        rows: how many.
        device: of the result.

    Returns:
        int64 `[rows]`.

    Example:
        >>> neighbours(5).tolist()
        [1, 0, 3, 2, 4]
    """
    numbers = torch.arange(rows, device=device)
    partner = numbers ^ 1
    return torch.where(partner < rows, partner, numbers)


def mixed(values: Tensor, partner: Tensor, share: float, real: Tensor | None = None) -> Tensor:
    r"""Compute $\lambda x_i + (1 - \lambda) x_{\pi(i)}$ for each row (mixup, arXiv:1710.09412).

    Args:
        values: $x$, float `[R, ...]`.
        partner: $\pi$, int64 `[R]`.
        share: $\lambda$, in `[0, 1]`.
        real: bool, of the shape that the values begin with; what is not real counts as 0.

    Returns:
        Of the shape of the values; at $\lambda = 1$ the values themselves.

    Example:
        >>> mixed(torch.tensor([[1.0], [3.0]]), torch.tensor([1, 0]), 0.75).tolist()
        [[1.5], [2.5]]
    """
    if share == 1.0:
        return values
    if real is not None:
        values = values.masked_fill(
            ~real.reshape(*real.shape, *[1] * (values.dim() - real.dim())), 0.0
        )
    return share * values + (1.0 - share) * values[partner]


def mixing_share(key: int, alpha: float) -> float:
    r"""Draw $\lambda = \max(b, 1 - b)$ with $b \sim \mathrm{Beta}(\alpha, \alpha)$, by a key.

    The larger part is the row's own, as in MixMatch (arXiv:1905.02249).

    Args:
        key: an integer of at least 0, e.g. made by `mix`; the same key gives the same number.
        alpha: over 0; small ones mix little.

    Returns:
        In `[0.5, 1]`.

    Example:
        >>> mixing_share(7, 0.4) == mixing_share(7, 0.4) >= 0.5
        True
    """
    drawn = float(np.random.Generator(np.random.Philox(key=key)).beta(alpha, alpha))
    return max(drawn, 1.0 - drawn)
