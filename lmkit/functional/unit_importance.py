"""How much a network loses without a head or a neuron: scores of units by four criteria."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .random import mix, uniform

__all__ = [
    "IMPORTANCES",
    "activation_importance",
    "gate_gradient",
    "magnitude_importance",
    "random_importance",
    "unit_length",
]

#: By what units are kept.
IMPORTANCES = ("taylor", "activation", "magnitude", "random", "learned")


def gate_gradient(weight: Tensor, gradient: Tensor, count: int) -> Tensor:
    r"""Return the derivative of the loss by a gate on each unit, from the weight's own gradient.

    A gate $\xi_u$ on what unit $u$ gives multiplies the columns $J_u$ of the weight $W$ that reads
    it, $y = \sum_u \xi_u \sum_{j \in J_u} W_{:j} x_j$. So

    $$\frac{\partial L}{\partial \xi_u} = \sum_{j \in J_u} \sum_o W_{oj}
    \frac{\partial L}{\partial (\xi_u W_{oj})},$$

    whatever the value of the gate: at 1 the last factor is the gradient of the weight, at 0 that of
    a weight whose columns are zero, and $W$ is what they were before. Its absolute value is the
    first-order Taylor estimate of what the loss changes by if the gate is shut or opened
    (arXiv:1905.10650 for heads, arXiv:1611.06440). Derivatives add up over batches and over all
    weights that read a unit; the absolute value comes after that.

    Args:
        weight: $W$ without gates, `[out, in]`, the columns of one unit side by side.
        gradient: of the gated weight, `[out, in]`.
        count: how many units there are; divides `in`.

    Returns:
        `[count]`, in float32 or float64.

    Example:
        >>> weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        >>> gate_gradient(weight, torch.tensor([[1.0, 0.0, -1.0, -1.0]]), 2)
        tensor([ 1., -7.])
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    return _of_units((weight.to(wide) * gradient.to(wide)).sum(0), count)


def activation_importance(activity: Tensor, weight: Tensor, count: int) -> Tensor:
    r"""Score units by what they send on: $\sum_{j \in J_u} E |x_j| \, \lVert W_{:j} \rVert_2$.

    The criterion of Wanda (arXiv:2306.11695) for whole columns, with a mean in place of a norm.

    Args:
        activity: $E |x_j|$ of each input over real tokens, `[in]`.
        weight: $W$ that reads it, `[out, in]`.
        count: how many units there are; divides `in`.

    Returns:
        `[count]`, at least 0.

    Example:
        >>> weight = torch.tensor([[3.0, 0.0, 1.0], [4.0, 2.0, 0.0]])
        >>> activation_importance(torch.tensor([1.0, 2.0, 3.0]), weight, 3)
        tensor([5., 4., 3.])
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    return _of_units(activity.to(wide) * weight.to(wide).norm(dim=0), count)


def magnitude_importance(weights: Sequence[Tensor], count: int) -> Tensor:
    r"""Score units by the weights that read them, $\sqrt{\sum_{j \in J_u} \sum_o W_{oj}^2}$.

    Args:
        weights: all that read the units, each `[out, in]`.
        count: how many units there are; divides each `in`.

    Returns:
        `[count]`, at least 0.

    Example:
        >>> magnitude_importance([torch.tensor([[3.0, 4.0, 0.0, 1.0]])], 2)
        tensor([5., 1.])
    """
    wide = torch.promote_types(weights[0].dtype, torch.float32)
    squares = [_of_units(weight.to(wide).square().sum(0), count) for weight in weights]
    return torch.stack(squares).sum(0).sqrt()


def random_importance(count: int, width: int, seed: int, name: str) -> Tensor:
    """Draw scores: a function of seed, name and place, so that later choices hold earlier ones.

    Args:
        count: how many units there are.
        width: of one unit in columns; scores are drawn in proportion to it, so that wide units and
            narrow ones are alike per parameter.
        seed: any integer.
        name: of the units.

    Returns:
        float64 `[count]` on the CPU, in `[0, width)`.

    Example:
        >>> torch.equal(random_importance(2, 1, 3, "a"), random_importance(9, 1, 3, "a")[:2])
        True
    """
    return width * uniform(torch.tensor(mix(seed, *name.encode())), count)


def unit_length(scores: Tensor) -> Tensor:
    r"""Divide the scores of a layer by their $\ell_2$ norm, so that layers can be compared.

    As arXiv:1905.10650 (section 4.1) does before it compares heads of all layers. Zeros stay zeros.

    Args:
        scores: `[count]`.

    Example:
        >>> unit_length(torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000])
    """
    norm = scores.norm()
    return scores / torch.where(norm > 0, norm, torch.ones_like(norm))


def _of_units(columns: Tensor, count: int) -> Tensor:
    if len(columns) % count:
        raise ValueError(
            f"{len(columns)} columns cannot be the units' if there are {count} of them: each unit "
            "has as many"
        )
    return columns.view(count, -1).sum(-1)
