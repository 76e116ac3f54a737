"""Which weights are set to zero, and how many of them: scores, masks and schedules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from .random import mix, uniform

__all__ = [
    "CRITERIA",
    "SCHEDULES",
    "SCOPES",
    "last_update",
    "lowest",
    "lowest_in_groups",
    "move_scores",
    "next_update",
    "parse_pattern",
    "planned_sparsity",
    "prune",
    "random_scores",
    "share_of_zeros",
    "wanda_scores",
]

#: By what weights are kept.
CRITERIA = ("magnitude", "random", "movement", "soft_movement", "wanda")

#: How the sparsity rises.
SCHEDULES = ("one_shot", "linear", "cubic")

#: Among which weights scores are compared: an output's, a matrix's, or all.
SCOPES = ("row", "local", "global")


def planned_sparsity(
    step: int, start: int, end: int, target: float, schedule: str = "cubic", initial: float = 0.0
) -> float:
    r"""Return the share of zeros that is planned after an optimizer step.

    With $x = \mathrm{clip}\big(\frac{t - t_0}{t_1 - t_0}, 0, 1\big)$ it is
    $s_f + (s_0 - s_f)(1 - x)^3$ (`cubic`, Zhu and Gupta 2017, arXiv:1710.01878) or
    $s_f + (s_0 - s_f)(1 - x)$ (`linear`); `one_shot` is $s_0$ before $t_0$ and $s_f$ from there on.
    It is a share of all weights, never of those that are left.

    Args:
        step: $t$, optimizer steps done.
        start: $t_0$.
        end: $t_1$; not used by `one_shot`.
        target: $s_f$, in `[0, 1)`.
        schedule: of `SCHEDULES`.
        initial: $s_0$, in `[0, 1)`.

    Raises:
        ValueError: there is no such schedule.

    Example:
        >>> [round(planned_sparsity(t, 0, 5, target=0.9), 3) for t in range(6)]
        [0.0, 0.439, 0.706, 0.842, 0.893, 0.9]
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if step < start:
        return initial
    if schedule == "one_shot" or step >= end:
        return target
    left = 1 - (step - start) / (end - start)
    return target + (initial - target) * (left**3 if schedule == "cubic" else left)


def last_update(step: int, start: int, end: int, interval: int) -> int | None:
    """Return the last step at which masks are chosen, up to a step: `None` before the first.

    Masks are chosen at `start`, every `interval` steps behind it, and at `end`.

    Example:
        >>> [last_update(t, start=2, end=9, interval=3) for t in (1, 2, 4, 5, 8, 9, 99)]
        [None, 2, 2, 5, 8, 9, 9]
    """
    if step < start:
        return None
    return end if step >= end else start + (step - start) // interval * interval


def next_update(step: int, start: int, end: int, interval: int) -> int | None:
    """Return the first step behind a step at which masks are chosen: `None` if none is left.

    Example:
        >>> [next_update(t, start=2, end=9, interval=3) for t in (0, 2, 4, 5, 8, 9)]
        [2, 5, 5, 8, 9, None]
    """
    if step < start:
        return start
    return None if step >= end else min(end, start + ((step - start) // interval + 1) * interval)


def parse_pattern(pattern: str | int) -> tuple[int, int]:
    """Read a pattern `N:M`: of each M consecutive weights of an output, N are kept.

    YAML takes `2:4` without quotes for a number in base 60, so 124 is read as that.

    Raises:
        ValueError: it is no such pattern, or keeps none or all.

    Example:
        >>> parse_pattern("2:4")
        (2, 4)
    """
    text = "{}:{}".format(*divmod(pattern, 60)) if type(pattern) is int else str(pattern)
    found = re.fullmatch(r"(\d+):(\d+)", text)
    kept, of = map(int, found.groups()) if found else (0, 0)
    if not 0 < kept < of:
        raise ValueError(f"pattern must be 'N:M' with 0 < N < M, such as '2:4', got {text!r}")
    return kept, of


def random_scores(shape: Sequence[int], seed: int, name: str) -> Tensor:
    """Draw a score for each weight: a function of seed, name and place, so that masks are nested.

    Args:
        shape: of the weight.
        seed: any integer.
        name: of the weight.

    Returns:
        float64 of that shape on the CPU, in `[0, 1)`.

    Example:
        >>> torch.equal(random_scores([2, 3], 1, "a"), random_scores([3, 2], 1, "a").view(2, 3))
        True
    """
    count = torch.Size(shape).numel()
    return uniform(torch.tensor(mix(seed, *name.encode())), count).view(*shape)


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    r"""Score weights by what they do to outputs: $|W_{ij}| \, \lVert X_j \rVert_2$.

    Sun et al. 2023, arXiv:2306.11695, equation 1; compared within a row there.

    Args:
        weight: $W$, `[out, in]`.
        norms: $\lVert X_j \rVert_2$ of each input over all tokens, `[in]`.

    Returns:
        `[out, in]`, at least 0.

    Example:
        >>> wanda_scores(torch.tensor([[3.0, -1.0]]), torch.tensor([0.1, 2.0]))
        tensor([[0.3000, 2.0000]])
    """
    return weight.abs() * norms


def move_scores(
    scores: Tensor, weight: Tensor, gradient: Tensor, rate: float, penalty: float = 0.0
) -> None:
    r"""Take one step's movement into the scores, in place.

    $S \leftarrow S - \eta \, \big(\frac{\partial L}{\partial W'} \odot W + \lambda \,
    \sigma(S)(1 - \sigma(S))\big)$ (Sanh et al. 2020, arXiv:2005.07683, equation 3 and section 4):
    a weight that moves away from zero gains, one that moves towards zero loses. With $W' = W \odot
    M(S)$ and an $M$ that is differentiated as if it were $S$ this is the gradient descent of $S$;
    the second term is that of the penalty $\lambda \sum \sigma(S)$ of soft movement.

    Args:
        scores: $S$, of any shape.
        weight: $W$ without the mask, of the same.
        gradient: of the masked weight $W'$, the same.
        rate: $\eta$, over 0.
        penalty: $\lambda$, at least 0.

    Example:
        >>> scores = torch.zeros(2)
        >>> move_scores(scores, torch.tensor([2.0, -2.0]), torch.tensor([-1.0, -1.0]), rate=0.5)
        >>> scores
        tensor([ 1., -1.])
    """
    step = gradient * weight
    if penalty:
        share = scores.sigmoid()
        step = step + penalty * share * (1 - share)
    scores.sub_(step, alpha=rate)


def lowest(scores: Tensor, count: int) -> Tensor:
    """Mark the lowest scores of each row, as many as were asked for; of equal ones the first.

    Args:
        scores: float32 or float64 `[..., n]`, none of them NaN.
        count: in `[0, n]`.

    Returns:
        bool `[..., n]`, `count` of each row true.

    Example:
        >>> lowest(torch.tensor([3.0, 1.0, 1.0, 1.0]), 2)
        tensor([False,  True,  True, False])
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if scores.device.type == "cpu":  # numpy selects ten times as fast as torch
        limit = torch.from_numpy(np.partition(scores.numpy(), count - 1, axis=-1))
        limit = limit[..., count - 1 : count]
    else:
        limit = scores.sort(dim=-1).values[..., count - 1 : count]
    found = scores <= limit
    if bool((found.count_nonzero(-1) == count).all()):
        return found
    below, equal = scores < limit, scores == limit
    missing = count - below.count_nonzero(-1).unsqueeze(-1)
    return below | (equal & (equal.cumsum(-1) <= missing))


def lowest_in_groups(scores: Tensor, kept: int, of: int) -> Tensor:
    """Mark all but the highest scores of each group of consecutive ones; of equal ones the first.

    Args:
        scores: `[..., n]`, with `n` a multiple of `of`.
        kept: N, how many of a group are not marked.
        of: M, the size of a group.

    Returns:
        bool `[..., n]`, M - N of each group true.

    Example:
        >>> lowest_in_groups(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), 2, 4)
        tensor([[False,  True, False,  True]])
    """
    return lowest(scores.unflatten(-1, (-1, of)), of - kept).flatten(-2)


def prune(
    scores: Sequence[Tensor],
    sparsity: float,
    scope: str = "local",
    pattern: tuple[int, int] | None = None,
) -> list[Tensor]:
    """Choose the weights with the lowest scores, exactly as many as the sparsity asks for.

    In each scope of $n$ weights $s n$ are chosen, rounded to the nearest number.

    Args:
        scores: of each matrix, `[out, in]`, none of them NaN.
        sparsity: $s$, in `[0, 1)`.
        scope: `row` compares the weights of one output, `local` those of one matrix, `global` all.
        pattern: N and M: only those are chosen that are not among the N highest of their group of M
            consecutive inputs. At a sparsity of 1 - N/M that is each of these.

    Returns:
        For each matrix bool `[out, in]`, true where the weight becomes zero. Of equal scores the
        first by position are chosen.

    Raises:
        ValueError: there is no such scope.

    Example:
        >>> scores = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])]
        >>> [pruned.tolist() for pruned in prune(scores, 0.5)]
        [[[True, False]], [[True, False]]]
        >>> [pruned.tolist() for pruned in prune(scores, 0.5, scope="global")]
        [[[True, True]], [[False, False]]]
    """
    if scope not in SCOPES:
        raise ValueError(f"scope must be one of {', '.join(SCOPES)}, got {scope!r}")
    if pattern is not None:
        outside = [~lowest_in_groups(each, *pattern) for each in scores]
        scores = [s.masked_fill(o, torch.inf) for s, o in zip(scores, outside, strict=True)]
    if scope == "row":
        return [lowest(each, _count(sparsity, each.shape[-1])) for each in scores]
    if scope == "local":
        flat = [lowest(each.flatten(), _count(sparsity, each.numel())) for each in scores]
    else:
        joined = torch.cat([each.flatten() for each in scores])
        sizes = [each.numel() for each in scores]
        flat = list(lowest(joined, _count(sparsity, len(joined))).split(sizes))
    return [pruned.view(each.shape) for pruned, each in zip(flat, scores, strict=True)]


def share_of_zeros(tensors: Iterable[Tensor]) -> float:
    """Return the share of numbers that are exactly zero; looks at the device.

    Example:
        >>> share_of_zeros([torch.tensor([0.0, -0.0]), torch.ones(2)])
        0.5
    """
    zeros = total = 0
    for each in tensors:
        zeros += each.numel() - int(each.count_nonzero())
        total += each.numel()
    return zeros / max(1, total)


def _count(sparsity: float, total: int) -> int:
    return int(sparsity * total + 0.5)
