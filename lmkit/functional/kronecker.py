"""Matrices made as sums of Kronecker products, and their factors."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["kronecker_size", "kronecker_sum", "kronecker_weight"]


def kronecker_sum(left: Tensor, right: Tensor) -> Tensor:
    r"""Compute $\sum_i L_i \otimes R_i$, a hypercomplex multiplication (Zhang et al. 2021).

    Block $(a, b)$ of the result is $\sum_i L_{i,ab} R_i$; see arXiv:2102.08597, section 3.

    Args:
        left: $L$, float `[n, a, b]`.
        right: $R$, float `[n, p, q]`, of the same type.

    Returns:
        Float `[a * p, b * q]`.

    Raises:
        ValueError: the shapes do not go together.

    Example:
        >>> left = torch.tensor([[[1.0, 2.0]], [[0.0, 1.0]]])
        >>> right = torch.tensor([[[1.0], [3.0]], [[5.0], [0.0]]])
        >>> kronecker_sum(left, right)
        tensor([[1., 7.],
                [3., 6.]])
    """
    if left.dim() != 3 or right.dim() != 3 or len(left) != len(right):
        raise ValueError(
            "kronecker_sum needs as many matrices on the left as on the right, [n, a, b] and "
            f"[n, p, q]; got {list(left.shape)} and {list(right.shape)}"
        )
    blocks = torch.einsum("nab,npq->apbq", left, right)
    return blocks.reshape(left.shape[1] * right.shape[1], left.shape[2] * right.shape[2])


def kronecker_weight(rule: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    r"""Compute $W = \sum_i A_i \otimes (s_i t_i)$ (compacter, arXiv:2106.04647, section 4).

    Of a weight `[out, in]` the $A_i$ are shared by all layers, and $s_i t_i$ has rank $r$.

    Args:
        rule: $A$, float `[n, n, n]`.
        rows: $s$, float `[n, out / n, r]`.
        columns: $t$, float `[n, r, in / n]`.

    Returns:
        $W$, float `[out, in]`.

    Raises:
        ValueError: the shapes do not go together.

    Example:
        >>> rule = torch.eye(2).expand(2, 2, 2)
        >>> kronecker_weight(rule, torch.ones(2, 1, 1), torch.ones(2, 1, 2))
        tensor([[2., 2., 0., 0.],
                [0., 0., 2., 2.]])
    """
    if rows.dim() != 3 or columns.dim() != 3 or rows.shape[2] != columns.shape[1]:
        raise ValueError(
            "kronecker_weight needs factors of one rank, [n, out / n, r] and [n, r, in / n]; got "
            f"{list(rows.shape)} and {list(columns.shape)}"
        )
    return kronecker_sum(rule, rows @ columns)


def kronecker_size(inside: int, outside: int, rank: int) -> int:
    """Count the numbers in the factors of one weight, the shared rule of `n ** 3` apart.

    The `n` pairs of factors have `n * rank * (outside / n + inside / n)`, so `n` does not matter.

    Args:
        inside: columns of the weight.
        outside: rows of the weight.
        rank: of each product of factors, at least 1.

    Example:
        >>> kronecker_size(384, 24, rank=1)
        408
    """
    return rank * (inside + outside)
