"""Whole numbers of four bits, two of them in a byte."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pack_nibbles", "unpack_nibbles"]


def pack_nibbles(q: Tensor) -> Tensor:
    """Put two numbers of 4 bits into a byte, the first of a pair into its lower half.

    Args:
        q: int8 `[..., i]` from -8 to 7; with an odd $i$ a 0 is added.

    Returns:
        int8 `[..., (i + 1) // 2]`.

    Example:
        >>> pack_nibbles(torch.tensor([[1, 2, -1]], dtype=torch.int8))
        tensor([[33, 15]], dtype=torch.int8)
    """
    if q.shape[-1] % 2:
        q = torch.nn.functional.pad(q, (0, 1))
    return (q[..., 0::2] & 15) | (q[..., 1::2] << 4)


def unpack_nibbles(packed: Tensor, count: int) -> Tensor:
    """Undo `pack_nibbles`.

    Args:
        packed: int8 `[..., (i + 1) // 2]`.
        count: $i$.

    Example:
        >>> unpack_nibbles(torch.tensor([[33, 15]], dtype=torch.int8), 3)
        tensor([[ 1,  2, -1]], dtype=torch.int8)
    """
    # The shift to the right keeps the sign.
    both = torch.stack([(packed << 4) >> 4, packed >> 4], -1)
    return both.flatten(-2)[..., :count]
