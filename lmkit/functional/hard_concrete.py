"""Gates that learn to be exactly zero: the hard concrete distribution, and what holds its size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "GAMMA",
    "TEMPERATURE",
    "ZETA",
    "gate_log_alpha",
    "gate_mean",
    "gate_probability",
    "gate_sample",
    "lagrangian",
]

#: The interval that the concrete distribution is stretched to, and its temperature.
GAMMA, ZETA, TEMPERATURE = -0.1, 1.1, 2 / 3


def gate_sample(log_alpha: Tensor, noise: Tensor) -> Tensor:
    r"""Sample gates from uniform noise.

    $z = \mathrm{clamp}(s (\zeta - \gamma) + \gamma, 0, 1)$ with $s = \sigma\big((\log u - \log(1 -
    u) + \log \alpha) / \beta\big)$ (Louizos et al. 2018, arXiv:1712.01312, equations 10 and 11). A
    gate is exactly 0 or exactly 1 with a probability above 0 each, and differentiable by $\log
    \alpha$ in between.

    Args:
        log_alpha: of any shape.
        noise: $u$, of the same, uniform in `[0, 1)`.

    Returns:
        In `[0, 1]`, of that shape.

    Example:
        >>> gate_sample(torch.tensor([-9.0, 0.0, 9.0]), torch.full([3], 0.5))
        tensor([0.0000, 0.5000, 1.0000])
    """
    tiny = torch.finfo(log_alpha.dtype).eps
    odds = torch.logit(noise.to(log_alpha), eps=tiny)
    return _stretch(((odds + log_alpha) / TEMPERATURE).sigmoid())


def gate_probability(log_alpha: Tensor) -> Tensor:
    r"""Return how probable it is that a gate is not zero.

    $P(z > 0) = \sigma\big(\log \alpha - \beta \log \frac{-\gamma}{\zeta}\big)$ (arXiv:1712.01312,
    equation 12).

    Args:
        log_alpha: of any shape.

    Returns:
        In `[0, 1]`, of that shape.

    Example:
        >>> gate_probability(torch.tensor(0.0))
        tensor(0.8318)
    """
    return (log_alpha - TEMPERATURE * math.log(-GAMMA / ZETA)).sigmoid()


def gate_mean(log_alpha: Tensor) -> Tensor:
    r"""Return the gates of an evaluation, without noise.

    $\hat z = \mathrm{clamp}(\sigma(\log \alpha) (\zeta - \gamma) + \gamma, 0, 1)$
    (arXiv:1712.01312, equation 13).

    Args:
        log_alpha: of any shape.

    Returns:
        In `[0, 1]`, of that shape.

    Example:
        >>> gate_mean(torch.tensor([-9.0, 0.0, 9.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    return _stretch(log_alpha.sigmoid())


def gate_log_alpha(probability: float) -> float:
    r"""Return the $\log \alpha$ of a gate that is open with a probability.

    Args:
        probability: $P(z > 0)$, in `(0, 1)`.

    Example:
        >>> round(float(gate_probability(torch.tensor(gate_log_alpha(0.95)))), 4)
        0.95
    """
    return math.log(probability / (1 - probability)) + TEMPERATURE * math.log(-GAMMA / ZETA)


def lagrangian(size: Tensor, target: float, first: Tensor, second: Tensor) -> Tensor:
    r"""Return $\lambda_1 (\hat s - t) + \lambda_2 (\hat s - t)^2$.

    Minimized over the gates and maximized over both multipliers it holds the expected size at the
    target (Wang et al. 2020, arXiv:1910.04732; CoFi, arXiv:2204.00408, section 3.1).

    Args:
        size: $\hat s$, a scalar, the expected share that is left.
        target: $t$, the share that is to be left.
        first: $\lambda_1$, a scalar.
        second: $\lambda_2$, a scalar.

    Example:
        >>> lagrangian(torch.tensor(0.75), 0.5, torch.tensor(2.0), torch.tensor(4.0))
        tensor(0.7500)
    """
    gap = size - target
    return first * gap + second * gap.square()


def _stretch(share: Tensor) -> Tensor:
    return (share * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)
