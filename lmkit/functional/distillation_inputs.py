"""What every distillation loss does first and last: widen, detach, hide, and take the mean."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor
from torch.nn.functional import kl_div

__all__ = [
    "FLOOR",
    "broadcast_mask",
    "check_mask",
    "floored",
    "item_mean",
    "real_pair",
    "relative_entropy",
    "token_mean",
    "wide_dtype",
]

#: Stands for a logit of minus infinity. Its probability is exactly 0 too, but 0 times its logarithm
#: is 0 and not NaN, and so is the gradient.
FLOOR = -1e30


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the type to compute in: float32, or float64 where one of the tensors is float64.

    Example:
        >>> wide_dtype(torch.zeros(1).bfloat16(), torch.zeros(1).half())
        torch.float32
    """
    return reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)


def check_mask(name: str, mask: Tensor, dimensions: int, student: Tensor, teacher: Tensor) -> None:
    """Check that a mask is of bool and has the leading dimensions of both sides.

    Args:
        name: what the mask is called in the error.
        mask: bool, of the shape that both sides begin with.
        dimensions: how many dimensions it must have.
        student: any shape.
        teacher: any shape.

    Raises:
        TypeError: the mask is not of bool.
        ValueError: its shape is not that which a side begins with.

    Example:
        >>> check_mask("valid", torch.ones(3), 1, torch.zeros(3, 2), torch.zeros(3, 2))
        Traceback (most recent call last):
        TypeError: valid must be a tensor of bool, got torch.float32; write valid.bool()
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be a tensor of bool, got {mask.dtype}; write {name}.bool()")
    for side, tensor in (("student", student), ("teacher", teacher)):
        wanted = tensor.shape[:dimensions]
        if mask.shape != wanted or mask.dim() != dimensions:
            raise ValueError(
                f"{name} must have the shape {list(wanted)}, for the {side} of shape "
                f"{list(tensor.shape)}, got {list(mask.shape)}"
            )


def broadcast_mask(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask of the first dimensions with ones appended, so that it fits all of them.

    Example:
        >>> broadcast_mask(torch.tensor([True, False]), torch.zeros(2, 3, 4)).shape
        torch.Size([2, 1, 1])
    """
    return mask.reshape(*mask.shape, *[1] * (like.dim() - mask.dim()))


def real_pair(
    student: Tensor, teacher: Tensor, name: str, real: Tensor, dimensions: int
) -> tuple[Tensor, Tensor]:
    """Return both sides in one wide type, the teacher detached, and 0 at what is not real.

    What stands at a place that is not real may be anything, NaN too: it reaches neither the value
    nor the gradient.

    Args:
        student: float, any shape.
        teacher: float, any shape.
        name: what the mask is called in errors.
        real: bool, of the shape that both sides begin with.
        dimensions: how many dimensions the mask must have.

    Example:
        >>> x = torch.tensor([1.0, torch.nan])
        >>> real_pair(x, x, "valid", torch.tensor([True, False]), 1)
        (tensor([1., 0.]), tensor([1., 0.]))
    """
    check_mask(name, real, dimensions, student, teacher)
    dtype = wide_dtype(student, teacher)
    student, teacher = student.to(dtype), teacher.detach().to(dtype)
    return (
        student.masked_fill(~broadcast_mask(real, student), 0.0),
        teacher.masked_fill(~broadcast_mask(real, teacher), 0.0),
    )


def floored(logits: Tensor, valid: Tensor) -> Tensor:
    """Return the logits with `FLOOR` for minus infinity, and for all of an item that is not valid.

    NaN in a valid item stays NaN, for it is a mistake to be seen.

    Args:
        logits: float `[N, ..., C]`.
        valid: bool `[N]`.

    Example:
        >>> logits = torch.tensor([[1.0, -torch.inf], [torch.nan, 0.0]])
        >>> floored(logits, torch.tensor([True, False])) == FLOOR
        tensor([[False,  True],
                [ True,  True]])
    """
    # `clamp` would keep a copy of the logits for its backward; this keeps a mask.
    return logits.masked_fill(~broadcast_mask(valid, logits) | (logits < FLOOR), FLOOR)


def relative_entropy(log_a: Tensor, log_b: Tensor) -> Tensor:
    r"""Compute $\mathrm{KL}(a \| b) = \sum_c a_c (\log a_c - \log b_c)$ over the last dimension.

    Args:
        log_a: float `[..., C]`, finite.
        log_b: float `[..., C]`, finite.

    Returns:
        `[...]`.

    Example:
        >>> half, quarter = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> round(relative_entropy(half, quarter).item(), 4)
        0.1438
    """
    return kl_div(log_b, log_a, reduction="none", log_target=True).sum(-1)


def item_mean(each: Tensor) -> Tensor:
    """Return the mean over all dimensions but the first.

    Example:
        >>> item_mean(torch.tensor([[1.0, 3.0], [5.0, 5.0]]))
        tensor([2., 5.])
    """
    return each.mean(tuple(range(1, each.dim()))) if each.dim() > 1 else each


def token_mean(each: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean over the real tokens of each row; 0 for a row without one.

    Args:
        each: float `[R, L]`, finite everywhere.
        tokens: bool `[R, L]`.

    Returns:
        `[R]`.

    Example:
        >>> token_mean(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([2.])
    """
    return (each * tokens).sum(-1) / tokens.sum(-1).clamp(min=1)
