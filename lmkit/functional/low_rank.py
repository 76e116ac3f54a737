"""Low-rank factors of a weight matrix, and how many ranks it is worth."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Decomposition",
    "decompose",
    "largest_rank",
    "rank_by_energy",
    "ranks_within",
    "retained_energy",
    "row_weights",
    "whitener",
]

# Of the mean of a diagonal, added to all of it: so that what the data never show still counts.
_DAMPING = 1e-6


class Decomposition(NamedTuple):
    r"""A matrix as a sum of products of a column and a row, the weightiest first.

    Attributes:
        up: $A$, `[o, k]`; `up[:, :r] @ down[:r]` is the best approximation of rank $r$.
        down: $B$, `[k, i]`.
        values: the singular values of the weighted matrix, float64 `[k]`, descending.
    """

    up: Tensor
    down: Tensor
    values: Tensor


def decompose(
    weight: Tensor, rows: Tensor | None = None, root: Tensor | None = None
) -> Decomposition:
    r"""Decompose a weight so that its first ranks lose the least, by one of three measures.

    With $\operatorname{diag}(d) W L = U \Sigma V^\top$, $A = \operatorname{diag}(d)^{-1} U_r
    \Sigma_r$ and $B = V_r^\top L^{-1}$ minimize $\|\operatorname{diag}(d) (W - A B) L\|_F^2$ over
    all matrices of rank $r$, and leave $\sum_{k > r} \sigma_k^2$ of it (Eckart and Young 1936).

    - Neither $d$ nor $L$: the plain decomposition, of $\|W - A B\|_F^2$.
    - $d$ of `row_weights`: Fisher-weighted (FWSVD, arXiv:2207.00112).
    - $L$ of `whitener`: activation-aware. With $L L^\top = E[x x^\top]$ the measure is
      $E \|(W - A B) x\|^2$, the error of what the layer gives (as in SVD-LLM, arXiv:2403.07378).

    $\Sigma$ goes to both factors so that each column of $A$ is as long as its row of $B$, which
    leaves the product and lets both learn at one rate; of the plain decomposition this is
    $A = U_r \Sigma_r^{1/2}$, $B = \Sigma_r^{1/2} V_r^\top$. It is computed in float64, and the
    signs, which a decomposition leaves open, are always the same.

    Args:
        weight: $W$, `[o, i]`.
        rows: $d$, `[o]`, all over 0.
        root: $L$, `[i, i]`, lower triangular.

    Returns:
        All $k = \min(o, i)$ ranks, float64.

    Example:
        >>> weight = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> up, down, values = decompose(weight)
        >>> values.tolist(), (up[:, :1] @ down[:1]).tolist()
        ([2.0, 1.0], [[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    """
    weighted = weight.double()
    if rows is not None:
        weighted = rows.double()[:, None] * weighted
    if root is not None:
        weighted = weighted @ root.double()
    left, values, right = torch.linalg.svd(weighted, full_matrices=False)
    up = left * values
    if rows is not None:
        up = up / rows.double()[:, None]
    if root is not None:
        right = torch.linalg.solve_triangular(root.double(), right, upper=False, left=False)
    # A decomposition leaves the signs open: each row's largest number is over 0 here.
    largest = right.gather(1, right.abs().argmax(1, keepdim=True)).squeeze(1)
    signs = torch.ones_like(largest).where(largest >= 0, -1.0)
    up, right = up * signs, right * signs[:, None]
    columns, lengths = torch.linalg.vector_norm(up, dim=0), torch.linalg.vector_norm(right, dim=1)
    # A rank of no weight keeps its row, so that it can still learn.
    balance = (lengths / columns).sqrt().where(columns > 0, 1.0)
    return Decomposition(up * balance, right / balance[:, None], values)


def whitener(moment: Tensor, damping: float = _DAMPING) -> Tensor:
    r"""Return $L$ with $L L^\top = G + \epsilon \, \overline{\operatorname{diag}(G)} \, I$.

    $L^{-1} x$ has the second moment $I$ then, up to $\epsilon$. Where rounding has made $G$
    indefinite, its eigenvalues below $\epsilon \, \overline{\operatorname{diag}(G)}$ are raised to
    that. Of inputs that are always zero, $L$ is $I$.

    Args:
        moment: $G = E[x x^\top]$, symmetric `[i, i]`.
        damping: $\epsilon$, over 0.

    Returns:
        Lower triangular, float64 `[i, i]`.

    Raises:
        ValueError: $G$ is not finite.

    Example:
        >>> whitener(torch.tensor([[4.0, 0.0], [0.0, 4.0]]), damping=1.25).tolist()
        [[3.0, 0.0], [0.0, 3.0]]
    """
    moment = moment.double()
    if not bool(moment.isfinite().all()):
        raise ValueError("the second moment of a layer's input has numbers that are not finite")
    moment = (moment + moment.T) / 2
    one = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    least = damping * moment.diagonal().mean()
    if not bool(least > 0):
        return one
    root: Tensor
    root, fault = torch.linalg.cholesky_ex(moment + least * one)
    if int(fault):
        values, vectors = torch.linalg.eigh(moment)
        root = torch.linalg.cholesky((vectors * values.clamp(min=least)) @ vectors.T)
    return root


def row_weights(fisher: Tensor, damping: float = _DAMPING) -> Tensor:
    r"""Return the weights of rows $d_o = \sqrt{\sum_i F_{oi} + \epsilon \bar f}$ of FWSVD.

    A weight for each number of a matrix would leave no closed form, so a row has one: the square
    root of what its numbers have together (arXiv:2207.00112). There it may be zero, which cannot be
    undone; $\epsilon$ times the mean over rows prevents that.

    Args:
        fisher: $F$, at least 0, `[o, i]`, or its sums over $i$, `[o]`; of any scale.
        damping: $\epsilon$, over 0.

    Returns:
        float64 `[o]`, over 0; all 1 where no gradient reaches.

    Raises:
        ValueError: $F$ is not finite, or negative.

    Example:
        >>> fisher = torch.tensor([[4.0, 5.0], [16.0, 0.0]])
        >>> row_weights(fisher, damping=1e-12).round(decimals=6).tolist()
        [3.0, 4.0]
    """
    sums = fisher.double()
    sums = sums.sum(1) if sums.dim() == 2 else sums
    if not bool((sums.isfinite() & (sums >= 0)).all()):
        raise ValueError("the Fisher information must be finite and at least 0")
    mean = sums.mean()
    return (sums + damping * mean).sqrt() if bool(mean > 0) else torch.ones_like(sums)


def largest_rank(rows: int, columns: int) -> int:
    r"""Return the largest rank whose factors are smaller than the matrix; 0 if there is none.

    $r (o + i) < o i$, so the rank has to stay below the break-even $o i / (o + i)$.

    Args:
        rows: $o$.
        columns: $i$.

    Example:
        >>> largest_rank(384, 1536), largest_rank(384, 384)
        (307, 191)
    """
    return (rows * columns - 1) // (rows + columns)


def retained_energy(values: Tensor, rank: int) -> float:
    r"""Return $\sum_{k \le r} \sigma_k^2 / \sum_k \sigma_k^2$, the share that $r$ ranks keep.

    Args:
        values: $\sigma$, `[k]`.
        rank: $r$, from 0.

    Example:
        >>> retained_energy(torch.tensor([3.0, 1.0]), 1)
        0.9
    """
    return float(_kept(values)[rank])


def rank_by_energy(values: Tensor, energy: float) -> int:
    """Return the smallest rank, at least 1, that keeps a share of the energy.

    Args:
        values: singular values, descending `[k]`.
        energy: in `(0, 1]`.

    Example:
        >>> rank_by_energy(torch.tensor([3.0, 1.0]), 0.9), rank_by_energy(torch.ones(4), 0.6)
        (1, 3)
    """
    # Sums have rounding errors, and nine tenths shall be nine tenths.
    enough = _kept(values)[1:] >= energy * (1 - 1e-12)
    return int(enough.int().argmax()) + 1


def ranks_within(
    spectra: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    budget: int,
    floor: float = 0.75,
) -> list[int | None]:
    r"""Share a number of parameters out among matrices, where they keep the most energy.

    Greedy: the next parameters go where they gain the most energy each, $\sigma_{r+1}^2 / (o + i)$
    for one more rank and $\sum_{k > r} \sigma_k^2 / (o i - r (o + i))$ for the whole matrix. The
    energies are shares of each matrix's own, since the scales of what layers give say nothing of
    how much they matter. Energy alone would leave some layers one or two ranks, which cost a
    network more than the sum of its errors says; so all begin with `floor` of an equal share.

    Args:
        spectra: singular values of each, descending `[k]`.
        shapes: $(o, i)$ of each.
        budget: parameters of all factors and whole matrices together.
        floor: in `[0, 1)`. Of 0, 1/4, 1/2, 3/4 and 9/10, three quarters left the MiniLM encoder the
            closest to the dense one, in the mean over plain and activation-aware decompositions
            and budgets from 0.4 to 0.9.

    Returns:
        The rank of each, `None` for a matrix that stays whole.

    Raises:
        ValueError: the budget is too small for one rank of each.

    Example:
        >>> flat, steep = torch.ones(8), torch.tensor([9.0, 1.0, *[0.1] * 6])
        >>> ranks_within([flat, steep], [(8, 8), (8, 8)], 96)
        [None, 2]
    """
    least = sum(min(sum(shape), math.prod(shape)) for shape in shapes)
    if budget < least:
        raise ValueError(
            f"there is room for {budget:,} parameters, and one rank of each layer takes {least:,}; "
            "keep more"
        )
    share = floor * budget / sum(map(math.prod, shapes))
    ranks = [_begin(shape, share) for shape in shapes]
    if sum(map(_size, shapes, ranks)) > budget:
        ranks = [_begin(shape, 0.0) for shape in shapes]
    kept = [_kept(values).tolist() for values in spectra]
    room = budget - sum(map(_size, shapes, ranks))
    queue: list[tuple[float, int, int, bool]] = []

    def offer(place: int) -> None:
        rank, shape = ranks[place], shapes[place]
        if rank is None:
            return
        for whole in (False, True):
            grown = None if whole or rank == largest_rank(*shape) else rank + 1
            gain = (1.0 if grown is None else kept[place][grown]) - kept[place][rank]
            cost = _size(shape, grown) - _size(shape, rank)
            heapq.heappush(queue, (-gain / cost, place, rank, whole))

    for place in range(len(shapes)):
        offer(place)
    while queue:
        _, place, rank, whole = heapq.heappop(queue)
        if rank != ranks[place]:  # of two offers the other one was taken
            continue
        shape = shapes[place]
        grown = None if whole or rank == largest_rank(*shape) else rank + 1
        cost = _size(shape, grown) - _size(shape, rank)
        if cost <= room:
            room -= cost
            ranks[place] = grown
            offer(place)
    return ranks


def _kept(values: Tensor) -> Tensor:
    """Return the share of the energy that 0, 1, ... ranks keep, float64 `[k + 1]`."""
    energy = values.double().square().cpu()
    sums = torch.cat([energy.new_zeros(1), energy.cumsum(0)])
    return sums / sums[-1] if bool(sums[-1] > 0) else torch.ones_like(sums)


def _begin(shape: tuple[int, int], share: float) -> int | None:
    """Return the rank that takes a share of a matrix's parameters, `None` where none saves any."""
    most = largest_rank(*shape)
    return min(most, max(1, int(share * math.prod(shape) / sum(shape)))) if most else None


def _size(shape: tuple[int, int], rank: int | None) -> int:
    return math.prod(shape) if rank is None else rank * sum(shape)
