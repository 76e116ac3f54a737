"""How well a linear model on frozen features does, found without training one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["PENALTIES", "LeftOut", "LogEvidence", "leave_one_out", "log_evidence"]

#: Penalties of a ridge regression that are tried, in shares of the mean squared singular value.
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)

# Bounds of the ratio alpha / beta beside the largest squared singular value, as powers of ten, and
# how many ratios between them are tried to begin with, four in each decade.
_LEAST, _MOST, _STARTS = -15, 10, 101
# The fixed point is reached within some ten steps where the features say something.
_STEPS, _CLOSE = 10_000, 1e-13


class LogEvidence(NamedTuple):
    r"""The evidence of targets under a linear model of features.

    Attributes:
        value: $\log p(y \mid F, \alpha, \beta) / N$ of each column, float64 `[C]`, nats an example.
        alpha: precision of the weights, float64 `[C]`.
        beta: precision of the noise, float64 `[C]`.
    """

    value: Tensor
    alpha: Tensor
    beta: Tensor


class LeftOut(NamedTuple):
    """What a ridge regression says of each example after learning from all others.

    Attributes:
        predictions: float64 `[N, C]`.
        penalty: that was chosen, in shares of the mean squared singular value.
        error: the mean squared error of the predictions, over examples and columns.
    """

    predictions: Tensor
    penalty: float
    error: float


def log_evidence(features: Tensor, targets: Tensor) -> LogEvidence:
    r"""Find the largest evidence of targets under a Bayesian linear model (LogME).

    With weights $w \sim \mathcal{N}(0, \alpha^{-1} I)$ and targets $y \sim \mathcal{N}(F w,
    \beta^{-1} I)$

    $$p(y \mid F, \alpha, \beta) = \mathcal{N}(y; 0, \alpha^{-1} F F^\top + \beta^{-1} I),$$

    and $\alpha, \beta$ are those that make it largest, of each column by itself: the fixed point of
    $\alpha = \gamma / m^\top m$, $\beta = (N - \gamma) / \lVert F m - y \rVert^2$ with the mean $m$
    of the posterior of $w$ and $\gamma = \sum_k \beta \sigma_k^2 / (\alpha + \beta \sigma_k^2)$
    over the singular values of $F$ (You et al. 2021, arXiv:2102.11005). All of it depends on
    $\alpha / \beta$ alone, which is what the steps are of. There may be several fixed points, so
    they begin at the best of a grid (deviation: the paper begins at $\alpha = \beta = 1$). As in
    the paper features have neither intercept nor scale of their own: add a column of ones for the
    first, $\alpha$ takes care of the second. Targets that the features give exactly, or say nothing
    of, have their fixed point at zero or infinity, and the ratio is bounded there.

    Args:
        features: $F$, `[N, D]`; computed in float64.
        targets: `[N, C]`; of classes a column for each, 1 in the examples of that class.

    Raises:
        ValueError: the shapes do not fit, a number is not finite, or a column of `targets` is zero,
            whose evidence is infinite.

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> features = torch.randn(50, 4, generator=draw)
        >>> known, unknown = features[:, :1], torch.randn(50, 1, generator=draw)
        >>> targets = torch.cat([known + 0.1 * unknown, unknown], 1)
        >>> bool(torch.greater(*log_evidence(features, targets).value))
        True
    """
    f, y = _checked(features, targets)
    if bool((y == 0).all(0).any()):
        raise ValueError("targets has a column of zeros, whose evidence is infinite: leave it out")
    u, s, _ = torch.linalg.svd(f, full_matrices=False)
    spread = s.square().unsqueeze(1)
    largest = float(spread.max()) or 1.0
    z = u.T @ y
    outside = (y - u @ z).square().sum(0)
    # Where one direction is much longer than all others, there are several fixed points.
    powers = torch.logspace(_LEAST, _MOST, _STARTS, dtype=torch.float64, device=y.device)
    starts = largest * powers
    values = torch.stack([_evidence(spread, z, outside, start, len(f))[0] for start in starts])
    ratio = starts[values.argmax(0)]
    for _ in range(_STEPS):
        gamma, length, residual = _moments(spread, z, outside, ratio)
        free = (ratio / (spread + ratio)).sum(0) + len(f) - len(s)  # N - gamma, not rounded to 0
        step = gamma * residual / (length * free)
        # Nothing of the targets lies in the features: no weights, and so no length.
        step = torch.where(length > 0, step, torch.inf)
        step = step.clamp(starts[0], starts[-1])
        close = bool(((step - ratio).abs() <= _CLOSE * ratio).all())
        ratio = step
        if close:
            break
    value, beta = _evidence(spread, z, outside, ratio, len(f))
    return LogEvidence(value, ratio * beta, beta)


def leave_one_out(
    features: Tensor, targets: Tensor, penalties: Sequence[float] = PENALTIES
) -> LeftOut:
    r"""Predict each example by a ridge regression on all others, without fitting it anew.

    The regression has an intercept that is not penalized. With the hat matrix
    $H = \frac{1}{N} 1 1^\top + \bar F (\bar F^\top \bar F + \lambda I)^{-1} \bar F^\top$ of the
    centred features, the prediction of example $i$ by what was learned without it is exactly

    $$\hat y_i^{(-i)} = y_i - \frac{y_i - (H y)_i}{1 - H_{ii}}$$

    (Allen 1974; Golub, Heath and Wahba 1979). $\lambda$ is the one of the grid whose predictions
    have the least squared error over all columns.

    Args:
        features: `[N, D]`; computed in float64.
        targets: `[N, C]`.
        penalties: $\lambda$ in shares of the mean squared singular value of the centred features,
            each above 0.

    Raises:
        ValueError: the shapes do not fit, a number is not finite, there are fewer than two
            examples, or a penalty is not above 0.

    Example:
        >>> features = torch.arange(6.0).unsqueeze(1)
        >>> left_out = leave_one_out(features, 2 * features + 1, [1e-9])
        >>> left_out.predictions.flatten().round(decimals=6).tolist()
        [1.0, 3.0, 5.0, 7.0, 9.0, 11.0]
    """
    f, y = _checked(features, targets)
    if len(f) < 2:
        raise ValueError("to leave one out there must be at least two examples, got 1")
    if not penalties or not all(penalty > 0 for penalty in penalties):
        raise ValueError(f"penalties must be numbers above 0, got {list(penalties)!r}")
    mean = y.mean(0)
    u, s, _ = torch.linalg.svd(f - f.mean(0), full_matrices=False)
    z = u.T @ (y - mean)
    spread = s.square()
    unit = float(spread.mean()) or 1.0
    best: LeftOut | None = None
    for penalty in penalties:
        shrink = spread / (spread + penalty * unit)
        fitted = mean + u @ (shrink.unsqueeze(1) * z)
        own = 1 / len(f) + u.square() @ shrink
        predictions = y - (y - fitted) / (1 - own).unsqueeze(1)
        error = float((y - predictions).square().mean())
        if best is None or error < best.error:
            best = LeftOut(predictions, float(penalty), error)
    assert best is not None
    return best


def _evidence(
    spread: Tensor, z: Tensor, outside: Tensor, ratio: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Return the evidence at a ratio, in nats an example, and its best beta, each `[C]`.

    Args:
        spread: of `_moments`, as are `z`, `outside` and `ratio`.
        z: in the left singular vectors.
        outside: of these.
        ratio: of each column, or one of all.
        count: N.
    """
    _, length, residual = _moments(spread, z, outside, ratio)
    # The best noise for the ratio; at the fixed point it is (N - gamma) / residual.
    beta = count / (residual + ratio * length).clamp(min=torch.finfo(torch.float64).tiny)
    value = 0.5 * count * (beta.log() - math.log(2 * math.pi) - 1)
    return (value - 0.5 * (spread / ratio).log1p().sum(0)) / count, beta


def _moments(
    spread: Tensor, z: Tensor, outside: Tensor, ratio: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gamma, the squared length of the mean weights, and the squared residual, each `[C]`.

    Args:
        spread: squared singular values, `[K, 1]`.
        z: targets in the left singular vectors, `[K, C]`.
        outside: squared length of what of the targets lies outside of these, `[C]`.
        ratio: alpha / beta, `[C]`.
    """
    share = spread / (spread + ratio)
    length = (spread * (z / (spread + ratio)).square()).sum(0)
    residual = (ratio / (spread + ratio) * z).square().sum(0) + outside
    return share.sum(0), length, residual


def _checked(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if features.ndim != 2 or targets.ndim != 2 or len(features) != len(targets) or not len(targets):
        raise ValueError(
            "features must be [N, D] and targets [N, C] of the same examples, got "
            f"{tuple(features.shape)} and {tuple(targets.shape)}"
        )
    f, y = features.double(), targets.double()
    for word, tensor in (("features", f), ("targets", y)):
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{word} holds numbers that are not finite")
    return f, y
