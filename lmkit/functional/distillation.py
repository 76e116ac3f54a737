"""Losses between the predictions of a student and of its teacher, one number per item.

A caller takes the mean over the items that count. Because nothing is averaged over the batch here,
the losses of two halves of a batch, or of two processes, add up to that of the whole.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .distillation_inputs import (
    FLOOR,
    check_mask,
    floored,
    item_mean,
    real_pair,
    relative_entropy,
    wide_dtype,
)

__all__ = [
    "DIVERGENCES",
    "binary_divergence",
    "logit_distance",
    "logit_divergence",
    "value_distance",
]

#: The names of the divergences that `logit_divergence` knows.
DIVERGENCES = ("forward", "reverse", "jensen_shannon", "total_variation")


def logit_divergence(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor,
    temperature: float = 1.0,
    divergence: str = "forward",
    beta: float = 0.5,
) -> Tensor:
    r"""Compute how far the student's distribution over classes is from the teacher's.

    $\tau^2 D(q, p)$ with $q = \operatorname{softmax}(z_T / \tau)$ and
    $p = \operatorname{softmax}(z_S / \tau)$ (arXiv:1503.02531), where $D$ is

    - `forward`: $\mathrm{KL}(q \| p) = \sum_c q_c (\log q_c - \log p_c)$. The student covers all
      that its teacher thinks possible.
    - `reverse`: $\mathrm{KL}(p \| q)$. The student keeps to what its teacher thinks likely
      (arXiv:2306.08543).
    - `jensen_shannon`: $\beta\, \mathrm{KL}(q \| m) + (1 - \beta)\, \mathrm{KL}(p \| m)$ with
      $m = \beta q + (1 - \beta) p$ (arXiv:2306.13649); at most $\log 2$ times $\tau^2$. Divided by
      $\beta$ it tends to `forward` as $\beta \to 0$; divided by $1 - \beta$ it tends to `reverse`
      as $\beta \to 1$.
    - `total_variation`: $\frac{1}{2} \sum_c |p_c - q_c|$ (arXiv:2307.15190).

    The factor $\tau^2$ keeps the size of the gradient when the temperature changes, so that the
    weight of the loss need not be tuned again: within 30 % of each other between 1 and 8 for logits
    of variance 1, and within a factor of 2 for `reverse`. The gradient of the total variation
    shrinks as $1 / \tau$ only, so with that factor it grows with the temperature.

    A class that is minus infinity on both sides (a masked position, a missing choice) contributes 0
    to the loss and to the gradient. One that only the student excludes costs about $10^{30}$ under
    `forward`: the two sides are then masked differently, which is a mistake to be seen.

    Args:
        student: float `[N, ..., C]`, logits; computed in float32, or float64 if given.
        teacher: float `[N, ..., C]`, logits; gets no gradient.
        valid: bool `[N]`, the items that count; anything may stand in the others, NaN too.
        temperature: $\tau$, above 0.
        divergence: one of `DIVERGENCES`.
        beta: $\beta$ of `jensen_shannon`, in `(0, 1)`.

    Returns:
        `[N]`, the mean over all dimensions between the first and the last; 0 where not valid.

    Raises:
        TypeError: `valid` is not of bool.
        ValueError: an option lies outside its range, or the shapes do not fit.

    Example:
        >>> student, teacher = torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
        >>> logit_divergence(student, teacher, torch.tensor([True, True]))
        tensor([0.0000, 0.1308])
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}, got {divergence!r}")
    if divergence == "jensen_shannon" and not 0.0 < beta < 1.0:
        raise ValueError(
            f"beta must lie in (0, 1), got {beta}; its limits are divergence='forward' and "
            "divergence='reverse'"
        )
    student, teacher = _scaled(student, teacher, valid, temperature)
    log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
    if divergence == "forward":
        each = relative_entropy(log_q, log_p)
    elif divergence == "reverse":
        each = relative_entropy(log_p, log_q)
    elif divergence == "jensen_shannon":
        log_m = torch.logaddexp(log_q + math.log(beta), log_p + math.log1p(-beta))
        each = beta * relative_entropy(log_q, log_m) + (1 - beta) * relative_entropy(log_p, log_m)
    else:
        each = 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)
    return item_mean(each * temperature**2).masked_fill(~valid, 0.0)


def binary_divergence(
    student: Tensor, teacher: Tensor, valid: Tensor, temperature: float = 1.0
) -> Tensor:
    r"""Compute how far the student's independent yes-or-no predictions are from the teacher's.

    $\tau^2$ times the mean over the labels of
    $q \log \frac{q}{p} + (1 - q) \log \frac{1 - q}{1 - p}$ with $q = \sigma(z_T / \tau)$ and
    $p = \sigma(z_S / \tau)$. A label that is minus infinity on both sides is left out of the mean.

    Args:
        student: float `[N, ..., C]`, logits; computed in float32, or float64 if given.
        teacher: float `[N, ..., C]`, logits; gets no gradient.
        valid: bool `[N]`, the items that count; anything may stand in the others, NaN too.
        temperature: $\tau$, above 0.

    Returns:
        `[N]`; 0 where not valid.

    Raises:
        TypeError: `valid` is not of bool.
        ValueError: the temperature is not above 0, or the shapes do not fit.

    Example:
        >>> teacher = torch.tensor([[math.log(3), 0.0]])
        >>> binary_divergence(torch.zeros(1, 2), teacher, torch.tensor([True]))
        tensor([0.0654])
    """
    student, teacher = _scaled(student, teacher, valid, temperature)
    # From logarithms of both p and 1 - p: exact where one of them rounds to 1.
    yes = teacher.sigmoid() * (logsigmoid(teacher) - logsigmoid(student))
    no = (-teacher).sigmoid() * (logsigmoid(-teacher) - logsigmoid(-student))
    return _live_mean((yes + no) * temperature**2, student, teacher)


def logit_distance(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    r"""Compute the squared distance of the logits themselves: the mean of $(z_S - z_T)^2$.

    At high temperature the divergence of softmaxes is half the squared distance of logits whose
    mean is removed (arXiv:1503.02531). Here no mean is removed: the student also learns the height
    of its teacher's logits (arXiv:2105.08919). A class that is minus infinity on both sides is left
    out of the mean, so that padding does not make the loss smaller.

    Args:
        student: float `[N, ..., C]`, logits; computed in float32, or float64 if given.
        teacher: float `[N, ..., C]`, logits; gets no gradient.
        valid: bool `[N]`, the items that count; anything may stand in the others, NaN too.

    Returns:
        `[N]`; 0 where not valid.

    Raises:
        TypeError: `valid` is not of bool.
        ValueError: the shapes do not fit.

    Example:
        >>> logit_distance(torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]), torch.tensor([True]))
        tensor([5.])
    """
    student, teacher = _scaled(student, teacher, valid, 1.0)
    return _live_mean((student - teacher).square(), student, teacher)


def value_distance(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Compute the squared distance of predicted values, for regression.

    Args:
        student: float `[N]`, `[N, 1]` or `[N, P]`; computed in float32, or float64 if given.
        teacher: of as many values per item; gets no gradient.
        valid: bool `[N]`, the items that count; anything may stand in the others, NaN too.

    Returns:
        `[N]`, the mean over the values of an item; 0 where not valid.

    Raises:
        TypeError: `valid` is not of bool.
        ValueError: the two sides have not as many values per item, or the shapes do not fit.

    Example:
        >>> value_distance(torch.tensor([[1.0], [5.0]]), torch.tensor([3.0, 5.0]),
        ...     torch.tensor([True, True]))
        tensor([4., 0.])
    """
    # One column is written in two ways; subtracting one from the other would give N x N.
    student, teacher = (x.unsqueeze(-1) if x.dim() == 1 else x for x in (student, teacher))
    _check_shapes(student, teacher)
    student, teacher = real_pair(student, teacher, "valid", valid, 1)
    return item_mean((student - teacher).square())


def _scaled(
    student: Tensor, teacher: Tensor, valid: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Logits over the temperature in one wide type, with a floor for what is masked or hidden."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    _check_shapes(student, teacher)
    check_mask("valid", valid, 1, student, teacher)
    dtype = wide_dtype(student, teacher)
    return (
        floored(student.to(dtype) / temperature, valid),
        floored(teacher.detach().to(dtype) / temperature, valid),
    )


def _check_shapes(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have one shape, got {list(student.shape)} and "
            f"{list(teacher.shape)}; both must have the same classes, in the same order"
        )


def _live_mean(each: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    """Mean per item over the entries that are not at the floor on both sides."""
    live = (student > FLOOR) | (teacher > FLOOR)
    others = tuple(range(1, each.dim()))
    return (each * live).sum(others) / live.sum(others).clamp(min=1)
