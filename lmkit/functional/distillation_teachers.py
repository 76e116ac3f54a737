"""Several teachers as one, how far each is to be trusted, and where a teacher is right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..types import IGNORE_INDEX
from .distillation_inputs import FLOOR, check_mask, wide_dtype

__all__ = [
    "mix_binary_teachers",
    "mix_teachers",
    "mix_values",
    "same_choice",
    "teacher_confidence",
    "teacher_is_right",
]


def mix_teachers(
    logits: Sequence[Tensor], weights: Sequence[float] | Tensor, temperature: float = 1.0
) -> Tensor:
    r"""Return the logits of one teacher who thinks what several think on average.

    $z = \tau \left( \log \sum_k w_k \operatorname{softmax}(z_k / \tau)
    + \sum_k w_k \operatorname{lse}(z_k / \tau) \right)$, so that
    $\operatorname{softmax}(z / \tau) = \sum_k w_k \operatorname{softmax}(z_k / \tau)$. Softmax does
    not see the second term. It gives back the height that the logits had, so that equal teachers
    are mixed to themselves. Take the temperature of the loss that is to follow; for a loss of the
    logits themselves, `mix_values` is the mean of the logits.

    Args:
        logits: of each of $K$ teachers, float `[N, ..., C]`; computed in float32, or float64 if
            given.
        weights: `[K]`, or `[K, N]` for each item; at least 0, divided by their sum here. Where all
            weights of an item are 0, all teachers count the same.
        temperature: $\tau$, above 0.

    Returns:
        `[N, ..., C]`, without a gradient; minus infinity where all teachers that count have it.

    Raises:
        ValueError: the temperature is not above 0, a weight is negative (seen on a CPU only, for
            nothing is waited for here), or the shapes do not fit.

    Example:
        >>> sure, unsure = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> mixed = mix_teachers([sure, unsure], [1.0, 1.0]).softmax(-1)
        >>> [round(p, 4) for p in mixed[0].tolist()]
        [0.6904, 0.3096]
    """
    scaled, shares = _prepared(logits, weights, temperature)
    mixed, level = torch.full_like(scaled[0], -torch.inf), torch.zeros_like(scaled[0][..., :1])
    for z, share in zip(scaled, shares, strict=True):
        height = z.logsumexp(-1, keepdim=True)
        level = level + torch.where(share > 0, share * height, 0.0)
        mixed = _added(mixed, z - height, share)
    return _unfloored(mixed + level, temperature)


def mix_binary_teachers(
    logits: Sequence[Tensor], weights: Sequence[float] | Tensor, temperature: float = 1.0
) -> Tensor:
    r"""Return the logits of one teacher for any number of labels per item, as `mix_teachers` does.

    $z = \tau \left( \log \sum_k w_k\, \sigma(z_k / \tau) - \log \sum_k w_k\, \sigma(-z_k / \tau)
    \right)$, so that $\sigma(z / \tau) = \sum_k w_k\, \sigma(z_k / \tau)$.

    Args:
        logits: of each of $K$ teachers, float `[N, ..., C]`; computed in float32, or float64 if
            given.
        weights: `[K]` or `[K, N]`, as for `mix_teachers`.
        temperature: $\tau$, above 0.

    Returns:
        `[N, ..., C]`, without a gradient; minus infinity where all teachers that count have it.

    Raises:
        ValueError: as `mix_teachers` does.

    Example:
        >>> mixed = mix_binary_teachers([torch.tensor([[2.0]]), torch.tensor([[0.0]])], [1.0, 1.0])
        >>> round(mixed.sigmoid().item(), 4)
        0.6904
    """
    scaled, shares = _prepared(logits, weights, temperature)
    yes = no = torch.full_like(scaled[0], -torch.inf)
    for z, share in zip(scaled, shares, strict=True):
        yes = _added(yes, logsigmoid(z), share)
        no = _added(no, logsigmoid(-z), share)
    return _unfloored(yes - no, temperature)


def mix_values(values: Sequence[Tensor], weights: Sequence[float] | Tensor) -> Tensor:
    """Return the weighted mean of what several teachers predict, for regression.

    Args:
        values: of each of $K$ teachers, float `[N]` or `[N, ...]`; computed in float32, or float64
            if given.
        weights: `[K]` or `[K, N]`, as for `mix_teachers`.

    Returns:
        The mean, of the shape of each, without a gradient. A teacher of weight 0 has no part in it.

    Raises:
        ValueError: as `mix_teachers` does.

    Example:
        >>> mix_values([torch.tensor([1.0, 1.0]), torch.tensor([3.0, 5.0])], [3.0, 1.0])
        tensor([1.5000, 2.0000])
    """
    shares = _shares(values, weights)
    parts = [
        torch.where(share > 0, share * x.detach().to(share.dtype), 0.0)
        for x, share in zip(values, shares, strict=True)
    ]
    return torch.stack(parts).sum(0)


def teacher_confidence(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    r"""Weigh teachers, item by item, by how close each comes to the true label (CA-MKD).

    $w_k = \frac{1}{K - 1} \left( 1 - \frac{\exp \mathcal{L}_k}{\sum_j \exp \mathcal{L}_j} \right)$
    with the cross-entropy $\mathcal{L}_k$ of teacher $k$ with the label (arXiv:2201.00007). The
    weights of an item add up to 1, and none is above $\frac{1}{K - 1}$: a bad teacher is left out,
    and the good ones share.

    Args:
        logits: of each of $K$ teachers, float `[N, ..., C]`; computed in float32, or float64 if
            given.
        labels: int64 `[N, ...]`, -100 where there is none. An item with several labels, such as the
            two ends of a span, has the mean of their cross-entropies.

    Returns:
        `[K, N]`; $1 / K$ for an item without a label, 1 for a single teacher. No gradient.

    Raises:
        ValueError: there is no teacher, or the shapes do not fit.

    Example:
        >>> right, wrong = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 4.0]])
        >>> [[round(w, 4) for w in row]
        ...     for row in teacher_confidence([right, wrong], torch.tensor([0])).tolist()]
        [[0.982], [0.018]]
    """
    _check_same(logits)
    if labels.shape != logits[0].shape[:-1]:
        raise ValueError(
            f"labels must have the shape {list(logits[0].shape[:-1])}, for logits of shape "
            f"{list(logits[0].shape)}, got {list(labels.shape)}"
        )
    labelled, target = labels != IGNORE_INDEX, labels.clamp(min=0).unsqueeze(-1)
    others = tuple(range(1, labels.dim()))
    counts = labelled.sum(others) if others else labelled
    dtype, losses = wide_dtype(*logits), []
    for z in logits:
        z = z.detach().to(dtype)
        # A label that a teacher excludes costs it very much, and not infinitely much: no NaN.
        log_p = z.masked_fill(z < FLOOR, FLOOR).log_softmax(-1)
        each = torch.where(labelled, -log_p.gather(-1, target).squeeze(-1), 0.0)
        losses.append((each.sum(others) if others else each) / counts.clamp(min=1))
    teachers = len(losses)
    weights = (1 - torch.stack(losses).softmax(0)) / max(teachers - 1, 1)
    known = counts > 0 if teachers > 1 else torch.zeros_like(counts, dtype=torch.bool)
    return weights.masked_fill(~known, 1 / teachers)


def teacher_is_right(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Say of each item whether the teacher's first choice is the label.

    The result can take the place of `valid`, so that a student learns from its teacher only where
    the teacher is not known to be wrong.

    Args:
        logits: float `[N, ..., C]`.
        labels: int64 `[N, ...]`, -100 where there is none, and nothing to be wrong about.
        valid: bool `[N]`, the items that count.

    Returns:
        bool `[N]`; of an item with several labels, whether all of them are met. False where not
        valid.

    Raises:
        TypeError: `valid` is not of bool.
        ValueError: the shapes do not fit.

    Example:
        >>> logits, valid = torch.eye(3), torch.tensor([True, True, True])
        >>> teacher_is_right(logits, torch.tensor([0, 2, -100]), valid).tolist()
        [True, False, True]
    """
    check_mask("valid", valid, 1, logits, labels)
    met = (logits.argmax(-1) == labels) | (labels == IGNORE_INDEX)
    return met.flatten(1).all(1) & valid if met.dim() > 1 else met & valid


def same_choice(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Say of each item whether student and teacher have the same first choice.

    Args:
        student: float `[N, ..., C]`.
        teacher: float `[N, ..., C]`.
        valid: bool `[N]`, the items that count.

    Returns:
        bool `[N]`; of an item with several choices, whether all are the same. False where not
        valid.

    Raises:
        TypeError: `valid` is not of bool.
        ValueError: the shapes do not fit.

    Example:
        >>> valid = torch.tensor([True, True])
        >>> same_choice(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.eye(2), valid).tolist()
        [True, False]
    """
    return teacher_is_right(student, teacher.argmax(-1), valid)


def _check_same(tensors: Sequence[Tensor]) -> None:
    shapes = [list(t.shape) for t in tensors]
    if not shapes or any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"there must be at least one teacher, and all of one shape; got {shapes}")


def _shares(tensors: Sequence[Tensor], weights: Sequence[float] | Tensor) -> Tensor:
    """Weights that add up to 1 over the teachers, `[K, 1 or N, 1, ...]`."""
    _check_same(tensors)
    first, teachers = tensors[0], len(tensors)
    w = torch.as_tensor(weights).detach().to(wide_dtype(*tensors))
    if w.shape not in ((teachers,), (teachers, *first.shape[:1])):
        raise ValueError(
            f"weights must have the shape [{teachers}] or [{teachers}, {first.shape[0]}], one "
            f"for each teacher, got {list(w.shape)}"
        )
    if w.device.type == "cpu" and bool((w < 0).any()):
        raise ValueError(f"weights must be at least 0, got {w.min().item():g}")
    total = w.sum(0)
    w = torch.where(total > 0, w / total, 1 / teachers).to(first.device)
    return w.reshape(teachers, -1, *[1] * (first.dim() - 1))


def _prepared(
    logits: Sequence[Tensor], weights: Sequence[float] | Tensor, temperature: float
) -> tuple[list[Tensor], Tensor]:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    shares = _shares(logits, weights)
    scaled = (z.detach().to(shares.dtype) / temperature for z in logits)
    return [z.masked_fill(z < FLOOR, FLOOR) for z in scaled], shares


def _added(total: Tensor, log_p: Tensor, share: Tensor) -> Tensor:
    """One more teacher's part in a sum of probabilities, all as logarithms."""
    return torch.logaddexp(total, torch.where(share > 0, log_p + share.log(), -torch.inf))


def _unfloored(scaled: Tensor, temperature: float) -> Tensor:
    """Logits, where the floor is minus infinity again."""
    return (temperature * scaled).masked_fill(scaled < FLOOR / 2, -torch.inf)
