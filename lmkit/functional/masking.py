"""Corruption of token ids for the masked language model."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import IGNORE_INDEX
from .random import uniform

__all__ = ["check_shares", "mask_tokens"]


def mask_tokens(
    input_ids: Tensor,
    maskable: Tensor,
    keys: Tensor,
    *,
    mask_token_id: int,
    vocab_size: int,
    mask_rate: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    random_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Choose tokens to predict and corrupt them (BERT, arXiv:1810.04805, section 3.1).

    Each maskable position draws $u \sim U[0, 1)$ and is chosen iff $u < p$, with $p$ the mask
    rate. Of the chosen, those with $u < m p$ become the mask token, those with
    $m p \le u < (m + r) p$ a random token, and the rest stay as they are; BERT has $m = 0.8$ and
    $r = 0.1$. Unlike BERT, which chooses a fixed number per text, the number is binomial, and the
    random token is drawn from `random_ids`, where BERT draws from the whole vocabulary.

    Args:
        input_ids: int64 `[B, L]`.
        maskable: bool `[B, L]`, false at special tokens and padding.
        keys: int64 `[B]`, one per row: the draw is a pure function of it.
        mask_token_id: id of the mask token.
        vocab_size: number of tokens; a random token is drawn from `range(vocab_size)` when
            `random_ids` is `None`.
        mask_rate: $p$, in `[0, 1]`.
        mask_share: $m$, in `[0, 1]`.
        random_share: $r$, in `[0, 1 - m]`.
        random_ids: int64 `[N]`, the ids that a random token is drawn from.

    Returns:
        The corrupted ids, int64 `[B, L]`, and the labels, int64 `[B, L]`: the original id where a
        position was chosen, -100 elsewhere.

    Raises:
        ValueError: a rate or share lies outside its range.

    Example:
        >>> ids = torch.tensor([[2, 7, 8, 9, 3]])
        >>> inner = torch.tensor([[False, True, True, True, False]])
        >>> corrupted, labels = mask_tokens(
        ...     ids, inner, torch.tensor([1]), mask_token_id=4, vocab_size=10, mask_rate=1.0,
        ...     mask_share=1.0, random_share=0.0)
        >>> corrupted.tolist(), labels.tolist()
        ([[2, 4, 4, 4, 3]], [[-100, 7, 8, 9, -100]])
    """
    check_shares(mask_rate, mask_share, random_share)
    # In turn, so that no draw depends on how far a row was padded.
    draw = uniform(keys, 2 * input_ids.shape[1])
    choose, pick = draw[:, 0::2], draw[:, 1::2]
    chosen = (choose < mask_rate) & maskable
    masked = chosen & (choose < mask_share * mask_rate)
    randomized = chosen & ~masked & (choose < (mask_share + random_share) * mask_rate)
    if random_ids is None:
        random_words = (pick * vocab_size).long()
    else:
        random_words = random_ids[(pick * random_ids.numel()).long()]
    corrupted = torch.where(randomized, random_words, input_ids).masked_fill(masked, mask_token_id)
    return corrupted, input_ids.masked_fill(~chosen, IGNORE_INDEX)


def check_shares(mask_rate: float, mask_share: float, random_share: float) -> None:
    """Raise `ValueError` for a rate or share outside its range."""
    for name, value in (
        ("mask_rate", mask_rate),
        ("mask_share", mask_share),
        ("random_share", random_share),
    ):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")
    if mask_share + random_share > 1.0:
        raise ValueError(
            "mask_share + random_share must be at most 1 (the rest keeps its token), got "
            f"{mask_share} + {random_share}"
        )
