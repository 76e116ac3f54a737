"""Rows of a token store as batches for the masked and the causal language model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..functional.masking import check_shares, mask_tokens
from ..functional.random import mix
from ..types import IGNORE_INDEX, Batch
from .token_store import TokenStore

__all__ = ["CausalCollator", "ChunkRows", "MaskingCollator", "PromptCollator"]


class ChunkRows:
    """The token stream of a store, cut every `body` tokens; the last row may be shorter.

    Args:
        store: the tokens.
        body: tokens in a row.
    """

    def __init__(self, store: TokenStore, body: int) -> None:
        self.store, self.body = store, body

    def __len__(self) -> int:
        return math.ceil(self.store.tokens / self.body)

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids, int64 `[B, body]`, and how many of each row are real, int64 `[B]`.

        A filler row, -1, has none. What is beyond a row's end is arbitrary.
        """
        start = rows.clamp(min=0) * self.body
        length = (self.store.tokens - start).clamp(max=self.body)
        length = torch.where(rows < 0, torch.zeros_like(length), length)
        place = (start.unsqueeze(1) + torch.arange(self.body)).clamp_(max=self.store.tokens - 1)
        return torch.from_numpy(self.store.take(place.numpy())), length


class MaskingCollator:
    """Batches for the masked language model: affixes around each row, and masks.

    The masks of a row are a pure function of (seed, epoch, row): no batch size, worker or rank
    changes them. Special tokens and padding are never chosen.

    Args:
        chunks: the rows.
        prefix: ids before each row.
        suffix: ids after each row.
        pad_id: id of the padding.
        mask_id: id of the mask token.
        special_ids: ids that are never chosen.
        vocab_size: number of ids.
        seed: of the masks.
        mask_rate: share of the tokens that are chosen, in `[0, 1]`.
        mask_share: share of the chosen that become the mask token.
        random_share: share of the chosen that become a random token.
        any_random: draw the random token from the whole vocabulary, as BERT does, and not from
            what is not special.

    Raises:
        ValueError: a rate or share lies outside its range.
    """

    def __init__(
        self,
        chunks: ChunkRows,
        *,
        prefix: Sequence[int],
        suffix: Sequence[int],
        pad_id: int,
        mask_id: int,
        special_ids: Sequence[int],
        vocab_size: int,
        seed: int,
        mask_rate: float = 0.15,
        mask_share: float = 0.8,
        random_share: float = 0.1,
        any_random: bool = False,
    ) -> None:
        check_shares(mask_rate, mask_share, random_share)
        self.chunks = chunks
        self.prefix = torch.tensor(list(prefix), dtype=torch.int64)
        self.suffix = torch.tensor(list(suffix), dtype=torch.int64)
        self.pad_id, self.mask_id = pad_id, mask_id
        self.vocab_size, self.seed = vocab_size, seed
        self.shares = {
            "mask_rate": mask_rate,
            "mask_share": mask_share,
            "random_share": random_share,
        }
        self.ordinary = torch.ones(vocab_size, dtype=torch.bool)
        self.ordinary[list(special_ids)] = False
        self.random_ids = None if any_random else self.ordinary.nonzero().flatten()

    def __call__(self, epoch: int, rows: Tensor) -> Batch:
        """Return `input_ids`, `attention_mask`, `labels` int64 `[B, L]` and `index` `[B]`."""
        body, length = self.chunks.gather(rows)
        before, after = len(self.prefix), len(self.suffix)
        width = before + self.chunks.body + after
        ids = torch.full((len(rows), width), self.pad_id)
        ids[:, :before] = self.prefix
        column = torch.arange(self.chunks.body)
        inside = column < length.unsqueeze(1)
        ids[:, before : before + self.chunks.body] = body.masked_fill(~inside, self.pad_id)
        ends = before + length.unsqueeze(1) + torch.arange(after)
        ids.scatter_(1, ends, self.suffix.expand(len(rows), -1))
        maskable = torch.zeros_like(ids, dtype=torch.bool)
        maskable[:, before : before + self.chunks.body] = inside
        maskable &= self.ordinary[ids]
        keys = torch.tensor([mix(self.seed, epoch, row) for row in rows.tolist()])
        corrupted, labels = mask_tokens(
            ids,
            maskable,
            keys,
            mask_token_id=self.mask_id,
            vocab_size=self.vocab_size,
            random_ids=self.random_ids,
            **self.shares,
        )
        return {
            "input_ids": corrupted,
            "attention_mask": _attention(before + after + length, width),
            "labels": labels,
            "index": rows,
        }


class CausalCollator:
    """Batches for the causal language model: a row of the stream, and itself as labels.

    Args:
        chunks: the rows.
        pad_id: id of the padding, which only the last row and filler rows have.
    """

    def __init__(self, chunks: ChunkRows, *, pad_id: int) -> None:
        self.chunks, self.pad_id = chunks, pad_id

    def __call__(self, epoch: int, rows: Tensor) -> Batch:
        """Return `input_ids`, `attention_mask`, `labels` int64 `[B, L]` and `index` `[B]`."""
        ids, length = self.chunks.gather(rows)
        outside = torch.arange(self.chunks.body) >= length.unsqueeze(1)
        return {
            "input_ids": ids.masked_fill(outside, self.pad_id),
            "attention_mask": _attention(length, self.chunks.body),
            "labels": ids.masked_fill(outside, IGNORE_INDEX),
            "index": rows,
        }


class PromptCollator:
    """Batches of whole texts, for prediction, padded to the longest of the batch.

    Args:
        texts: the ids of each, special tokens included.
        pad_id: id of the padding.
        left: pad on the left, where a text is to be continued.
    """

    def __init__(self, texts: Sequence[Sequence[int]], *, pad_id: int, left: bool) -> None:
        self.texts, self.pad_id, self.left = texts, pad_id, left

    def __call__(self, epoch: int, rows: Tensor) -> Batch:
        """Return `input_ids` and `attention_mask` int64 `[B, L]`, and `index` `[B]`."""
        chosen = [self.texts[row] if row >= 0 else [self.pad_id] for row in rows.tolist()]
        width = max(len(text) for text in chosen)
        ids = torch.full((len(chosen), width), self.pad_id)
        attention = torch.zeros_like(ids)
        for place, text in enumerate(chosen):
            where = slice(width - len(text), width) if self.left else slice(0, len(text))
            ids[place, where] = torch.tensor(list(text))
            attention[place, where] = 1
        return {"input_ids": ids, "attention_mask": attention, "index": rows}


def _attention(length: Tensor, width: int) -> Tensor:
    mask = (torch.arange(width) < length.unsqueeze(1)).long()
    # A row that attends to nothing makes NaN in some attention kernels: fillers keep one position.
    mask[:, 0] = 1
    return mask
