r"""Weights $\lambda_t$ of the losses $L_t$ of several tasks: $L = \sum_t \lambda_t L_t$."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "AdamMoments",
    "adam_step",
    "dwa_weights",
    "famo_gradient",
    "famo_weights",
    "geometric_weights",
    "gradnorm_gradient",
    "random_weights",
    "uncertainty_loss",
]


def uncertainty_loss(losses: Tensor, log_variances: Tensor, factors: Tensor) -> Tensor:
    r"""Weigh losses by the noise of their tasks, which is learned (arXiv:1705.07115).

    $\sum_t c_t e^{-s_t} L_t + \frac{1}{2} s_t$ with $s_t = \log \sigma_t^2$; $c_t$ is a half for
    a squared error, 1 for a cross-entropy. At the optimum each $2 c_t e^{-s_t} L_t$ is 1.

    Args:
        losses: `[T]`, at least 0.
        log_variances: $s$, `[T]`; they and the losses have gradients.
        factors: $c$, `[T]`.

    Returns:
        Scalar; below 0 where losses are small.

    Example:
        >>> uncertainty_loss(torch.tensor([2.0, 3.0]), torch.zeros(2), torch.tensor([0.5, 1.0]))
        tensor(4.)
    """
    return (factors * (-log_variances).exp() * losses + 0.5 * log_variances).sum()


def dwa_weights(last: Tensor, before: Tensor, temperature: float = 2.0) -> Tensor:
    r"""Weigh the tasks more whose losses fall slowly (dynamic weight average, arXiv:1803.10704).

    $\lambda = T \operatorname{softmax}(r / \tau)$ with $r_t = L_t^{(e-1)} / L_t^{(e-2)}$, the mean
    losses of the last two epochs.

    Args:
        last: $L^{(e-1)}$, `[T]`, above 0.
        before: $L^{(e-2)}$, `[T]`, above 0.
        temperature: $\tau$, above 0; of a high one all weights are 1.

    Returns:
        `[T]`, with the sum T.

    Example:
        >>> dwa_weights(torch.tensor([0.9, 0.5]), torch.ones(2))
        tensor([1.0997, 0.9003])
    """
    return len(last) * (last / before / temperature).softmax(0)


def random_weights(key: int, count: int) -> Tensor:
    r"""Draw the weights of a step (random loss weighting, arXiv:2111.10603).

    $\lambda = T \operatorname{softmax}(z)$ with $z \sim \mathcal{N}(0, I)$, so that each is 1 in
    the mean.

    Args:
        key: what is drawn by, e.g. `mix(seed, step)`: the same on all ranks.
        count: T.

    Returns:
        float32 `[T]`, with the sum T, on the CPU.

    Example:
        >>> bool(torch.equal(random_weights(3, 4), random_weights(3, 4)))
        True
    """
    return count * torch.randn(count, generator=torch.Generator().manual_seed(key)).softmax(0)


def geometric_weights(losses: Tensor) -> Tensor:
    r"""Weigh losses so that the gradient is that of their geometric mean (arXiv:1904.08492).

    $L = (\prod_t L_t)^{1/T}$ has the gradient $\sum_t \lambda_t \nabla L_t$ with
    $\lambda_t = L / (T L_t)$; and $\sum_t \lambda_t L_t = L$.

    Args:
        losses: `[T]`, above 0.

    Returns:
        `[T]`.

    Example:
        >>> geometric_weights(torch.tensor([1.0, 4.0]))
        tensor([1.0000, 0.2500])
    """
    return losses.log().mean().exp() / (len(losses) * losses)


def gradnorm_gradient(
    weights: Tensor, norms: Tensor, losses: Tensor, initial: Tensor, alpha: float
) -> Tensor:
    r"""Compute the gradient of GradNorm's loss by the weights (arXiv:1711.02257).

    $\sum_t | \lambda_t n_t - \bar G \, r_t^\alpha |$, with $\bar G$ the mean of all
    $\lambda_t n_t$, and $r_t = \frac{L_t / L_t(0)}{\text{its mean}}$ how slowly a task trains. The
    target counts as a constant, so that the gradient is $n_t$ with the sign of the difference.

    Args:
        weights: $\lambda$, `[T]`, above 0.
        norms: $n_t = \| \nabla L_t \|$ on the last layer that is shared, without the weight.
        losses: $L$, `[T]`, above 0.
        initial: $L(0)$, those of the first step, `[T]`, above 0.
        alpha: how strongly the tasks are pulled to one pace, at least 0.

    Returns:
        `[T]`; 0 where a task is at its target, to rounding.

    Example:
        >>> ones = torch.ones(2)
        >>> gradnorm_gradient(ones, torch.tensor([1.0, 3.0]), ones, ones, 1.5)
        tensor([-1.,  3.])
    """
    sizes = weights * norms
    pace = losses / initial
    target = sizes.mean() * (pace / pace.mean()) ** alpha
    away = sizes - target
    near = away.abs() <= 4 * torch.finfo(away.dtype).eps * sizes.abs().max()
    return norms * away.sign().masked_fill(near, 0.0)


def famo_weights(logits: Tensor, losses: Tensor) -> Tensor:
    r"""Weigh losses so that all fall by one share of themselves (FAMO, arXiv:2306.03792).

    The gradient of $c \sum_t z_t \log L_t$ with $z = \operatorname{softmax}(\xi)$ and
    $c = (\sum_t z_t / L_t)^{-1}$, which counts as a constant: $\lambda_t = c z_t / L_t$.

    Args:
        logits: $\xi$, `[T]`.
        losses: `[T]`, above 0.

    Returns:
        `[T]`, with the sum 1.

    Example:
        >>> famo_weights(torch.zeros(2), torch.tensor([1.0, 3.0]))
        tensor([0.7500, 0.2500])
    """
    return (logits.softmax(0) / losses) / (logits.softmax(0) / losses).sum()


def famo_gradient(logits: Tensor, before: Tensor, after: Tensor) -> Tensor:
    r"""Compute by what FAMO's logits are to descend, once a step was made (arXiv:2306.03792).

    $J^\top \delta$ with $\delta_t = \log L_t^{\text{before}} - \log L_t^{\text{after}}$ and $J$ the
    Jacobian of the softmax: a task whose loss fell less than the weighted mean gains weight.

    Args:
        logits: $\xi$ of that step, `[T]`.
        before: the losses before it, `[T]`, above 0.
        after: the losses after it, `[T]`, above 0.

    Returns:
        `[T]`, with the sum 0.

    Example:
        >>> famo_gradient(torch.zeros(2), torch.ones(2), torch.tensor([1.0, 0.5])) < 0
        tensor([ True, False])
    """
    shares, decrease = logits.softmax(0), before.log() - after.log()
    return shares * (decrease - shares @ decrease)


class AdamMoments(NamedTuple):
    """What Adam remembers of a vector.

    Attributes:
        mean: moving mean of the gradient, of the vector's shape.
        square: moving mean of its square.
        steps: scalar, how many steps were made.
    """

    mean: Tensor
    square: Tensor
    steps: Tensor


def adam_step(
    value: Tensor,
    gradient: Tensor,
    moments: AdamMoments,
    learning_rate: float,
    decay: float = 0.0,
) -> None:
    r"""Make a step of Adam (arXiv:1412.6980), in place, where an optimizer would be too much.

    With $\beta = (0.9, 0.999)$ and $\epsilon = 10^{-8}$; the decay is added to the gradient.

    Args:
        value: of any shape; changed.
        gradient: of that shape.
        moments: changed.
        learning_rate: above 0.
        decay: at least 0.

    Example:
        >>> value = torch.tensor([1.0])
        >>> moments = AdamMoments(torch.zeros(1), torch.zeros(1), torch.zeros(()))
        >>> adam_step(value, torch.tensor([5.0]), moments, 0.1)
        >>> value
        tensor([0.9000])
    """
    gradient = gradient + decay * value
    moments.steps.add_(1)
    moments.mean.lerp_(gradient, 0.1)
    moments.square.lerp_(gradient.square(), 0.001)
    mean = moments.mean / (1 - 0.9**moments.steps)
    square = moments.square / (1 - 0.999**moments.steps)
    value.sub_(learning_rate * mean / (square.sqrt() + 1e-8))
