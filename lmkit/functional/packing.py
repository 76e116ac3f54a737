"""Texts that share a row: which, so that little of it is padding, and where each begins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["pack_lengths", "segment_bounds"]


def pack_lengths(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put items into as few bins as best-fit-decreasing finds (Johnson 1974, doi:10.1137/0203025).

    The items come by falling length, equal ones in their order, and each goes into the bin that it
    leaves the least space in. That needs at most 11/9 of the fewest bins, plus one. The spaces that
    bins have left are the bits of one integer, so that an item takes constant time.

    Args:
        lengths: of the items, each in `[1, capacity]`.
        capacity: of a bin.

    Returns:
        For each bin the indices of its items.

    Raises:
        ValueError: an item is empty, or larger than a bin.

    Example:
        >>> pack_lengths([3, 8, 5, 2], capacity=8)
        [[1], [2, 0], [3]]
    """
    if lengths and not 1 <= min(lengths) <= max(lengths) <= capacity:
        raise ValueError(
            f"lengths must lie in [1, {capacity}], got values from {min(lengths)} to {max(lengths)}"
        )
    bins: list[list[int]] = []
    by_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces = 0  # bit s is set when a bin has the space s
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[item]
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            chosen = by_space[space].pop()
            if not by_space[space]:
                spaces ^= 1 << space
        else:
            space, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(item)
        space -= length
        if not by_space[space]:
            spaces |= 1 << space
        by_space[space].append(chosen)
    return bins


def segment_bounds(segment_ids: Tensor) -> Tensor:
    """Return where the texts of all rows begin in the flattened batch, and where the last ends.

    The padding of a row counts as a text.

    Args:
        segment_ids: int64 `[B, L]`, 0 for padding.

    Returns:
        int32 `[N + 1]`.

    Example:
        >>> segment_bounds(torch.tensor([[1, 1, 2, 2], [1, 1, 1, 0]])).tolist()
        [0, 2, 4, 7, 8]
    """
    begins = torch.ones_like(segment_ids, dtype=torch.bool)
    begins[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    end = torch.tensor([segment_ids.numel()], device=segment_ids.device)
    return torch.cat([begins.flatten().nonzero().flatten(), end]).int()
