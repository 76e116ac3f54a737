r"""One update from the gradients of several tasks, by weights from their inner products.

With the gradients $g_1 \dots g_T$ of the tasks on the parameters that they share, each method here
takes the Gramian $G_{ij} = \langle g_i, g_j \rangle$ and returns weights $w$; the update is
$d = \sum_t w_t g_t$. So a method costs the same for a small network and for a large one, and it is
computed in float64 on the CPU. No weight depends on the scale of $G$: twice the gradients are twice
the update, as mixed precision and accumulation need. The weight of a single task is 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .gramian import scaled_gramian
from .min_norm import min_norm_weights

__all__ = [
    "aligned_mtl_weights",
    "cagrad_weights",
    "imtl_weights",
    "mean_weights",
    "mgda_weights",
    "nash_mtl_weights",
    "pcgrad_weights",
    "sum_weights",
]

# Gradients in float32 are known to about 1e-7 of their length: what is below this share of the
# largest inner product is noise.
_NOISE = 1e-12


def sum_weights(gramian: Tensor) -> Tensor:
    """Return 1 for each task: the sum of the gradients, as without a method.

    Args:
        gramian: `[T, T]`.

    Returns:
        float64 `[T]`.

    Raises:
        ValueError: the Gramian is not square, or not finite.

    Example:
        >>> sum_weights(torch.eye(2)).tolist()
        [1.0, 1.0]
    """
    return torch.ones(len(scaled_gramian(gramian)), dtype=torch.float64)


def mean_weights(gramian: Tensor) -> Tensor:
    """Return 1 / T for each task: the mean of the gradients.

    Args:
        gramian: `[T, T]`.

    Returns:
        float64 `[T]`.

    Raises:
        ValueError: the Gramian is not square, or not finite.

    Example:
        >>> mean_weights(torch.eye(2)).tolist()
        [0.5, 0.5]
    """
    ones = sum_weights(gramian)
    return ones / len(ones)


def pcgrad_weights(gramian: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Take out of each gradient what works against another one (PCGrad, arXiv:2001.06782).

    For each $i$, and the others $j$ in a random order: where $\langle \tilde g_i, g_j \rangle < 0$,
    $\tilde g_i \leftarrow \tilde g_i - \frac{\langle \tilde g_i, g_j \rangle}{\|g_j\|^2} g_j$. The
    update is $\sum_i \tilde g_i$; without a conflict that is the sum.

    Args:
        gramian: `[T, T]`.
        generator: on the CPU, of the orders; of two tasks there is only one.

    Returns:
        float64 `[T]`, each at least 1.

    Raises:
        ValueError: the Gramian is not square, or not finite.

    Example:
        >>> pcgrad_weights(torch.tensor([[1.0, -1.0], [-1.0, 2.0]])).tolist()
        [2.0, 1.5]
    """
    scaled = scaled_gramian(gramian)
    count = len(scaled)
    parts = torch.eye(count, dtype=torch.float64)
    for task in range(count):
        for other in torch.randperm(count, generator=generator).tolist():
            product = parts[task] @ scaled[other]
            if other != task and product < 0:
                parts[task, other] -= product / scaled[other, other]
    return parts.sum(0)


def mgda_weights(gramian: Tensor) -> Tensor:
    r"""Take the shortest convex combination of the gradients (MGDA, arXiv:1810.04650).

    $\min_w \| \sum_t w_t g_t \|$ with $w \ge 0$, $\sum w = 1$, solved exactly. Of two tasks
    $w_1 = \operatorname{clip}(\langle g_2 - g_1, g_2 \rangle / \|g_1 - g_2\|^2, 0, 1)$. The update
    lowers every loss, or is 0: so it is when one task alone has no gradient left.

    Args:
        gramian: `[T, T]`.

    Returns:
        float64 `[T]`, at least 0, with the sum 1.

    Raises:
        ValueError: the Gramian is not square, or not finite.

    Example:
        >>> weights = mgda_weights(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]))
        >>> [round(weight, 9) for weight in weights.tolist()]
        [0.6, 0.4]
    """
    return min_norm_weights(scaled_gramian(gramian))


def cagrad_weights(gramian: Tensor, c: float = 0.4) -> Tensor:
    r"""Help the task that gains the least, near the mean gradient (CAGrad, arXiv:2110.14048).

    $\max_d \min_t \langle g_t, d \rangle$ with $\| d - \bar g \| \le c \| \bar g \|$. Its answer is
    $d = \bar g + c \frac{\|\bar g\|}{\|g_w\|} g_w$, where $w$ minimises
    $\langle g_w, \bar g \rangle + c \|\bar g\| \|g_w\|$ over convex combinations $g_w$. With
    $\|g_w\| = \min_\tau (\tau + \|g_w\|^2 / \tau) / 2$ that is, for each $\tau$, the shortest
    vector of the hull moved by $\frac{\tau}{c \|\bar g\|} \bar g$, and $\tau$ is found by
    secants. Not rescaled by $1 / (1 + c^2)$.

    Args:
        gramian: `[T, T]`.
        c: in `[0, 1)`; 0 is the mean.

    Returns:
        float64 `[T]`, at least 0, with a sum from 1 on.

    Raises:
        ValueError: the Gramian is not square, or not finite; `c` lies outside its range.

    Example:
        >>> weights = cagrad_weights(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), c=0.5)
        >>> [round(weight, 9) for weight in weights.tolist()]
        [0.75, 0.75]
    """
    if not 0.0 <= c < 1.0:
        raise ValueError(f"c must lie in [0, 1), got {c}")
    scaled = scaled_gramian(gramian)
    count = len(scaled)
    mean = torch.full((count,), 1.0 / count, dtype=torch.float64)
    toward = scaled @ mean
    size = float((mean @ toward).clamp(min=0.0).sqrt())
    if count == 1 or c == 0 or size**2 <= _NOISE:
        return mean
    low, high, tau = 0.0, 1.0, size
    weights, length, before = mean, size, (0.0, 0.0)
    # The length grows with tau, and is tau at the answer; so it bounds it from the side of tau.
    for _ in range(100):
        share = tau / (c * size)
        moved = scaled + share * (toward + toward.unsqueeze(1)) + (share * size) ** 2
        weights = min_norm_weights(moved)
        length = float((weights @ scaled @ weights).clamp(min=0.0).sqrt())
        low, high = (max(low, length), high) if length > tau else (low, min(high, length))
        here, before = before, (tau, length - tau)
        if abs(length - tau) <= 1e-13 or high - low <= 1e-13:
            break
        # Where a straight line through the last two meets 0, if that lies between the bounds.
        rise = (before[1] - here[1]) / (before[0] - here[0])
        line = tau - before[1] / rise if here[0] and rise else low
        tau = line if low < line < high else (low + high) / 2
    if length**2 <= _NOISE:  # a combination is 0: no direction helps them all
        return mean
    return mean + c * size / length * weights


def imtl_weights(gramian: Tensor) -> Tensor:
    r"""Give the update the same component along each gradient (IMTL-G, Liu et al., ICLR 2021).

    $\langle d, g_t / \|g_t\| \rangle$ is one number for all $t$, and $\sum_t w_t = 1$:
    $w \propto G^{-1} n$ with $n_t = \|g_t\|$. Where these add up to less than 0, $\sum_t w_t = -1$
    is taken in place of 1, for the update would raise each loss otherwise. Where only $d = 0$ has
    equal components, $w_t \propto 1 / n_t$.

    Args:
        gramian: `[T, T]`.

    Returns:
        float64 `[T]`, of any sign; 0 for a task without a gradient.

    Raises:
        ValueError: the Gramian is not square, or not finite.

    Example:
        >>> weights = imtl_weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.6667, 0.3333]
    """
    scaled = scaled_gramian(gramian)
    norms = scaled.diagonal().clamp(min=0.0).sqrt()
    here = norms**2 > _NOISE
    if not here.any():
        return torch.full_like(norms, 1.0 / len(norms))
    inverse = torch.where(here, 1.0 / norms, 0.0)
    # Of unit vectors, so that the largest gradient does not hide the rank of the others.
    units = inverse.unsqueeze(1) * scaled * inverse
    found: Tensor = torch.linalg.pinv(units, rtol=_NOISE, hermitian=True) @ here.double() * inverse
    missed = (units @ (found * norms) - here.double()).abs().max()
    if missed > 1e-6 or found.sum().abs() <= 1e-6 * found.abs().sum():
        found = inverse
    return found / found.sum().abs()


def aligned_mtl_weights(gramian: Tensor) -> Tensor:
    r"""Add the gradients after making them orthogonal and equally long (arXiv:2305.19000).

    Aligned-MTL: $w = \sqrt{\lambda_{\min}} V \Lambda^{-1/2} V^\top 1$ with $G = V \Lambda V^\top$,
    so that the condition number of the gradients becomes 1 and no component grows.
    $\lambda_{\min}$ is the least that is not noise.

    Args:
        gramian: `[T, T]`.

    Returns:
        float64 `[T]`, of any sign.

    Raises:
        ValueError: the Gramian is not square, or not finite.

    Example:
        >>> aligned_mtl_weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]])).tolist()
        [1.0, 0.5]
    """
    scaled = scaled_gramian(gramian)
    values, vectors = torch.linalg.eigh(scaled)
    real = values > _NOISE * values[-1]
    if values[-1] <= 0:
        return torch.ones_like(values)
    values, vectors = values[real], vectors[:, real]
    weights: Tensor = vectors @ ((values[0] / values).sqrt() * vectors.sum(0))
    return weights


def nash_mtl_weights(gramian: Tensor) -> Tensor:
    r"""Bargain for the update as equals (Nash-MTL, arXiv:2202.01017).

    $\frac{G}{\|G\|_F} w = 1 / w$ with $w > 0$, the only minimum of
    $\frac{1}{2} w^\top \frac{G}{\|G\|_F} w - \sum_t \log w_t$, by damped Newton steps. Then
    $\|d\|^2 = T \|G\|_F$, and each task gains the same share of its own. Where a convex
    combination of the gradients is 0, there is no such $w$, and that combination is taken: no
    direction helps them all.

    Args:
        gramian: `[T, T]`.

    Returns:
        float64 `[T]`, at least 0; 0 for a task without a gradient.

    Raises:
        ValueError: the Gramian is not square, or not finite.

    Example:
        >>> weights = nash_mtl_weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        >>> bool(torch.isclose(weights[0], 2 * weights[1]))
        True
    """
    scaled = scaled_gramian(gramian)
    here = scaled.diagonal() > _NOISE
    weights = torch.zeros(len(scaled), dtype=torch.float64)
    if not here.any():
        return weights + 1.0 / len(scaled)
    inner = scaled[here][:, here]
    lengths = inner.diagonal().sqrt()
    nearest = min_norm_weights(inner / lengths / lengths.unsqueeze(1))
    if nearest @ (inner / lengths / lengths.unsqueeze(1)) @ nearest <= _NOISE:
        weights[here] = nearest / lengths / (nearest / lengths).sum()
        return weights
    inner = inner / torch.linalg.matrix_norm(inner)
    found = 1.0 / (len(inner) * inner.diagonal()).sqrt()
    for _ in range(200):
        slope = inner @ found - 1.0 / found
        step = torch.linalg.solve(inner + torch.diag(found**-2), slope)
        decrement = float((slope @ step).clamp(min=0.0).sqrt())
        found = found - step / (1.0 + decrement if decrement > 0.25 else 1.0)
        if decrement < 1e-12:
            break
    weights[here] = found
    return weights
