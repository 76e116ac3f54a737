"""Rows of a token store as batches for the masked and the causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..functional.masking import check_shares, choose_tokens, corrupt_tokens, label_positions
from ..functional.random import mix_each
from ..functional.token_choice import choose_spans, choose_words, geometric_lengths, ngram_lengths
from ..types import IGNORE_INDEX, Batch
from .rows import RowBatch, Rows

__all__ = ["CausalCollator", "MaskCount", "Masking", "MaskingCollator"]

#: What is chosen together: single tokens, words, spans of words (SpanBERT) or n-grams (ALBERT).
Masking = Literal["token", "whole_word", "span", "n_gram"]

#: Whether the number of chosen tokens of a row is the rounded share of them, or binomial.
MaskCount = Literal["exact", "binomial"]


class MaskingCollator:
    """Batches for the masked language model: rows with masks.

    The masks of a row are a pure function of (seed, epoch, row): no batch size, worker or rank
    changes them. Special tokens and padding are never chosen.

    Args:
        rows: the rows; for another `masking` than `token` they have to know their words.
        mask_id: id of the mask token.
        special_ids: ids that are never chosen.
        vocab_size: number of ids.
        seed: of the masks.
        mask_rate: share of the tokens that are chosen, in `[0, 1]`.
        mask_share: share of the chosen that become the mask token.
        random_share: share of the chosen that become a random token.
        any_random: draw the random token from the whole vocabulary, as BERT does, and not from
            what is not special.
        masking: what is chosen together.
        exact: choose a fixed number in each row, so that each batch has labels of one shape; of
            single tokens only, for words and spans keep to a budget anyway.

    Raises:
        ValueError: a rate or share lies outside its range.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        mask_id: int,
        special_ids: Sequence[int],
        vocab_size: int,
        seed: int,
        mask_rate: float = 0.15,
        mask_share: float = 0.8,
        random_share: float = 0.1,
        any_random: bool = False,
        masking: Masking = "token",
        exact: bool = True,
    ) -> None:
        check_shares(mask_rate, mask_share, random_share)
        self.rows = rows
        self.mask_id, self.vocab_size, self.seed = mask_id, vocab_size, seed
        self.mask_rate, self.mask_share, self.random_share = mask_rate, mask_share, random_share
        self.masking, self.exact = masking, exact
        self.ordinary = torch.ones(vocab_size, dtype=torch.bool)
        self.ordinary[[*special_ids, rows.pad_id]] = False
        self.random_ids = None if any_random else self.ordinary.nonzero().flatten()

    def __call__(self, epoch: int, rows: Tensor) -> Batch:
        """Return the batch of these rows, int64 `[B]`.

        It has `input_ids`, `attention_mask` and `labels`, int64 `[B, L]`, and `index` `[B]`; of
        packed rows `segment_ids` and `position_ids` `[B, L]`; and with a fixed number of labels
        `label_positions` `[B, k]`, the columns of the labels. What is left of the $k$ slots points
        at a column without a label.
        """
        made = self.rows.gather(rows)
        ids = made.input_ids
        # Padding is a special token, and so no candidate.
        maskable = torch.from_numpy(self.ordinary.numpy().take(ids.numpy()))
        keys = mix_each(self.seed, epoch, last=rows)
        chosen = self._choose(made, maskable, keys)
        corrupted, labels = corrupt_tokens(
            ids,
            chosen,
            keys,
            mask_token_id=self.mask_id,
            vocab_size=self.vocab_size,
            mask_share=self.mask_share,
            random_share=self.random_share,
            random_ids=self.random_ids,
        )
        batch = {"input_ids": corrupted, "attention_mask": _attention(made), "labels": labels}
        if self.exact or self.masking != "token":
            slots = max(1, round(self.mask_rate * ids.shape[1]))
            batch["label_positions"] = label_positions(chosen, slots)
        return {**batch, **_packing(self.rows, made), **made.extras, "index": rows}

    def _choose(self, made: RowBatch, maskable: Tensor, keys: Tensor) -> Tensor:
        if self.masking == "token":
            return choose_tokens(maskable, keys, self.mask_rate, exact=self.exact)
        assert made.words is not None
        if self.masking == "whole_word":
            return choose_words(made.words, maskable, keys, self.mask_rate)
        lengths = geometric_lengths() if self.masking == "span" else ngram_lengths()
        return choose_spans(made.words, maskable, keys, self.mask_rate, lengths)


class CausalCollator:
    """Batches for the causal language model: rows, and themselves as labels.

    The first token of a text has nothing before it to be predicted from, and no label.

    Args:
        rows: the rows.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __call__(self, epoch: int, rows: Tensor) -> Batch:
        """Return the batch of these rows, int64 `[B]`.

        It has `input_ids`, `attention_mask` and `labels`, int64 `[B, L]`, and `index` `[B]`; of
        packed rows `segment_ids` and `position_ids` `[B, L]`.
        """
        made = self.rows.gather(rows)
        unlabelled = (made.segment_ids == 0) | (made.position_ids == 0)
        return {
            "input_ids": made.input_ids,
            "attention_mask": _attention(made),
            "labels": made.input_ids.masked_fill(unlabelled, IGNORE_INDEX),
            **_packing(self.rows, made),
            "index": rows,
        }


def _attention(made: RowBatch) -> Tensor:
    mask = (made.segment_ids.numpy() > 0).astype(np.int64)
    # A row that attends to nothing makes NaN in some attention kernels: fillers keep one position.
    mask[:, 0] = 1
    return torch.from_numpy(mask)


def _packing(rows: Rows, made: RowBatch) -> Batch:
    if not rows.packed:
        return {}
    return {"segment_ids": made.segment_ids, "position_ids": made.position_ids}
