r"""The shortest vector of a convex hull, from the inner products of its corners alone."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["min_norm_weights"]

# Of float64 sums of a few terms, relative to the largest of them.
_ROUNDING = 1e-14


def min_norm_weights(gramian: Tensor) -> Tensor:
    r"""Find $\arg\min_w w^\top G w$ with $w \ge 0$, $\sum_t w_t = 1$: weights of a shortest vector.

    Wolfe's method (1976, doi:10.1007/BF01580381): corners enter one by one, the shortest vector of
    the plane through those in use is solved for exactly, and corners that it has left behind go.
    It ends after finitely many steps, and has no step size. Of several answers, which all give the
    same vector, it returns one.

    Args:
        gramian: $G = J J^\top$, float64 `[T, T]` on the CPU, positive semidefinite.

    Returns:
        float64 `[T]`, at least 0, with the sum 1.

    Example:
        >>> weights = min_norm_weights(torch.tensor([[1.0, 0.0], [0.0, 3.0]]).double())
        >>> [round(weight, 9) for weight in weights.tolist()]
        [0.75, 0.25]
    """
    count = len(gramian)
    tolerance = _ROUNDING * count * float(gramian.diagonal().max())
    used = [int(gramian.diagonal().argmin())]
    weights = torch.zeros(count, dtype=torch.float64)
    weights[used] = 1.0
    # Each round has a shorter vector than the one before; rounding alone could go round in a ring.
    for _ in range(20 * count):
        products = gramian @ weights
        corner = int(products.argmin())
        if corner in used or products[corner] >= weights @ products - tolerance:
            break
        used.append(corner)
        weights, used = _shorten(gramian, weights, used)
    return weights


def _shorten(gramian: Tensor, weights: Tensor, used: list[int]) -> tuple[Tensor, list[int]]:
    """Go to the shortest vector of the plane through the corners, or as far as the hull reaches."""
    while True:
        wanted = torch.zeros_like(weights)
        wanted[used] = _shortest_of_plane(gramian[used][:, used])
        outside = [corner for corner in used if wanted[corner] <= 0]
        if not outside:
            return wanted, used
        ratios = {c: float(weights[c] / (weights[c] - wanted[c])) for c in outside}
        nearest = min(ratios, key=lambda corner: ratios[corner])
        weights = weights + ratios[nearest] * (wanted - weights)
        weights[nearest] = 0.0
        used = [corner for corner in used if weights[corner] > 0]
        gone = torch.ones_like(weights, dtype=torch.bool)
        gone[used] = False
        weights = weights.masked_fill(gone, 0.0)
        weights = weights / weights.sum()


def _shortest_of_plane(gramian: Tensor) -> Tensor:
    r"""Solve $G a = \mu 1$, $\sum a = 1$; where corners lie in one plane, take a small solution."""
    count = len(gramian)
    scale = gramian.diagonal().max().clamp(min=torch.finfo(torch.float64).tiny)
    system = torch.ones(count + 1, count + 1, dtype=torch.float64)
    system[:count, :count], system[count, count] = gramian / scale, 0.0
    right = torch.zeros(count + 1, dtype=torch.float64)
    right[count] = 1.0
    solved: Tensor = torch.linalg.lstsq(system, right.unsqueeze(1), driver="gelsd").solution
    found = solved[:count, 0]
    return found / found.sum()
