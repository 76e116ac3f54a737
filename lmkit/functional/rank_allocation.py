"""How AdaLoRA shares a budget of ranks out among its matrices (Zhang et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["kept_ranks", "orthogonality", "rank_budget", "smooth_importance", "triplet_scores"]


def rank_budget(step: int, total: int, warmup: int, settled: int, initial: int, target: int) -> int:
    r"""Return how many ranks all matrices have together after an optimizer step.

    $b_0$ up to $t_i$, $b_T$ from $T - t_f$, and between them
    $b_T + (b_0 - b_T) (1 - \frac{t - t_i}{T - t_i - t_f})^3$, rounded down (arXiv:2303.10512,
    equation 12).

    Args:
        step: $t$, from 1.
        total: $T$, the steps of the run.
        warmup: $t_i$, steps at the start with all ranks.
        settled: $t_f$, steps at the end with the final ranks.
        initial: $b_0$.
        target: $b_T$, at most `initial`.

    Example:
        >>> [rank_budget(t, 10, warmup=2, settled=4, initial=12, target=4) for t in (2, 3, 4, 6)]
        [12, 7, 5, 4]
    """
    if step <= warmup:
        return initial
    if step >= total - settled:
        return target
    left = 1 - (step - warmup) / (total - settled - warmup)
    return int(target + (initial - target) * left**3)


def smooth_importance(
    sensitivity: Tensor, uncertainty: Tensor, importance: Tensor, beta1: float, beta2: float
) -> None:
    r"""Take one step's importance of each weight into its moving averages, in place.

    $\bar I \leftarrow \beta_1 \bar I + (1 - \beta_1) I$, then
    $\bar U \leftarrow \beta_2 \bar U + (1 - \beta_2) |I - \bar I|$ (equations 9 and 10).

    Args:
        sensitivity: $\bar I$, of any shape.
        uncertainty: $\bar U$, of the same.
        importance: $I$, weight times gradient, its absolute value.
        beta1: in `[0, 1)`.
        beta2: in `[0, 1)`.

    Example:
        >>> mean, spread = torch.zeros(1), torch.zeros(1)
        >>> smooth_importance(mean, spread, torch.ones(1), 0.5, 0.5)
        >>> mean.item(), spread.item()
        (0.5, 0.25)
    """
    sensitivity.lerp_(importance, 1 - beta1)
    uncertainty.lerp_((importance - sensitivity).abs_(), 1 - beta2)


def triplet_scores(left: Tensor, values: Tensor, right: Tensor) -> Tensor:
    r"""Score each rank of $P \Lambda Q$: its value's score, and the means of its two vectors'.

    Args:
        left: scores of the weights of $P$, `[out, r]`.
        values: of $\Lambda$, `[r, 1]`.
        right: of $Q$, `[r, in]`.

    Returns:
        `[r]` (equation 7, with means in place of sums as in its text).

    Example:
        >>> triplet_scores(torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0]]), torch.ones(1, 4))
        tensor([8.])
    """
    return values.flatten() + left.mean(0) + right.mean(1)


def kept_ranks(scores: Sequence[Tensor], budget: int) -> list[Tensor]:
    """Choose the ranks with the highest scores, over all matrices.

    Args:
        scores: of each matrix, `[r]`.
        budget: how many are kept. Of equal ones the first are.

    Returns:
        For each matrix bool `[r]`, `budget` of them true in all (or all, if there are fewer).

    Example:
        >>> [kept.tolist() for kept in kept_ranks([torch.tensor([3.0, 1.0]), torch.ones(1)], 2)]
        [[True, True], [False]]
    """
    flat = torch.cat(list(scores))
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.argsort(descending=True, stable=True)[:budget]] = True
    return list(chosen.split([len(score) for score in scores]))


def orthogonality(lefts: Sequence[Tensor], rights: Sequence[Tensor]) -> Tensor:
    r"""Compute how far the factors are from orthogonal ones.

    The mean over all $P$ and $Q$ of $\|P^\top P - I\|_F$ and $\|Q Q^\top - I\|_F$. The paper
    writes the squares of the norms (equation 4); the authors' own program, and peft's, take the
    norms and their mean, as here, so that a coefficient means the same in networks of all sizes.

    Args:
        lefts: each $P$, `[out, r]`.
        rights: each $Q$, `[r, in]`.

    Returns:
        Scalar, at least 0.

    Example:
        >>> orthogonality([torch.eye(3)[:, :2]], [torch.zeros(4, 9)]).item()
        1.0
    """
    grams = [left.T @ left for left in lefts] + [right @ right.T for right in rights]
    gaps = [gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype) for gram in grams]
    return torch.stack([torch.linalg.matrix_norm(gap) for gap in gaps]).mean()
