"""How far what one network says is what another one says."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Agreement", "agreement"]


class Agreement(NamedTuple):
    """What two networks say of the same items.

    Attributes:
        cosine: of all scores together, 1 for the same up to a positive factor.
        same: share of the items whose highest score is that of the same class; 1 where there is
            only one score.
    """

    cosine: float
    same: float

    def __str__(self) -> str:
        """Say both."""
        return f"cosine {self.cosine:.4f}, the same class in {self.same:.1%}"


def agreement(first: Tensor, second: Tensor) -> Agreement:
    r"""Compare the scores of two networks: $\cos = \frac{\langle a, b \rangle}{|a| |b|}$.

    Args:
        first: float `[..., C]`.
        second: of the same shape; finite where the first is.

    Returns:
        Both figures; infinite scores, which exclude a class, are left out of the cosine.

    Raises:
        ValueError: the shapes differ, or there is nothing to compare.

    Example:
        >>> import torch
        >>> a = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
        >>> agreement(a, a + 1).same, agreement(a, a.flip(1)).same
        (1.0, 0.0)
    """
    if first.shape != second.shape or not first.numel():
        raise ValueError(
            f"two sides of one shape are compared, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    ours, theirs = first.double(), second.double()
    same = (ours.argmax(-1) == theirs.argmax(-1)).double().mean()
    finite = ours.isfinite()
    ours, theirs = ours[finite], theirs[finite]
    lengths = ours.norm() * theirs.norm()
    cosine = (
        float((ours @ theirs) / lengths) if float(lengths) else float(bool((ours == theirs).all()))
    )
    return Agreement(min(1.0, cosine), float(same))
