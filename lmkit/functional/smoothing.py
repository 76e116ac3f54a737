"""Large inputs of a layer shared out between inputs and weights, before both are rounded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["check_alpha", "smoothing_factors"]


def smoothing_factors(inputs: Tensor, weights: Tensor, alpha: float = 0.5) -> Tensor:
    r"""Compute by what to divide each input of a layer, and to multiply its weights (SmoothQuant).

    $$s_j = \frac{\max |X_j|^\alpha}{\max |W_j|^{1 - \alpha}}, \qquad
    (X \operatorname{diag}(s)^{-1}) (\operatorname{diag}(s) W) = X W$$

    Channels of large inputs take a part of the range that weights have to spare
    (arXiv:2211.10438). Where either maximum is 0, $s_j = 1$.

    Args:
        inputs: `[i]`, the largest absolute value of each input.
        weights: `[i]`, the largest absolute weight of each input, over all layers that read it.
        alpha: $\alpha$ in `[0, 1]`; 0.5 shares the range evenly.

    Returns:
        `[i]`, above 0.

    Raises:
        ValueError: `alpha` lies outside its range, or the shapes differ.

    Example:
        >>> smoothing_factors(torch.tensor([16.0, 1.0, 0.0]), torch.tensor([1.0, 4.0, 1.0]))
        tensor([4.0000, 0.5000, 1.0000])
    """
    check_alpha("alpha", alpha)
    if inputs.shape != weights.shape:
        raise ValueError(
            f"inputs and weights must have one shape, got {tuple(inputs.shape)} and "
            f"{tuple(weights.shape)}"
        )
    factors = inputs.pow(alpha) / weights.pow(1 - alpha)
    known = (inputs > 0) & (weights > 0) & factors.isfinite() & (factors > 0)
    return factors.where(known, torch.ones_like(factors))


def check_alpha(word: str, alpha: Any) -> None:
    """Check that an argument is a share that `smoothing_factors` takes.

    Args:
        word: the argument's name.
        alpha: what was given for it.

    Raises:
        ValueError: it is not.

    Example:
        >>> check_alpha("smooth", 2)
        Traceback (most recent call last):
        ...
        ValueError: smooth must lie in [0, 1], got 2
    """
    if type(alpha) is bool or not isinstance(alpha, int | float) or not 0.0 <= alpha <= 1.0:
        raise ValueError(f"{word} must lie in [0, 1], got {alpha!r}")
