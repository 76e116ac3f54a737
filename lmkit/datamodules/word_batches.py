"""Batches of tagged words for evaluation: whole sentences, in windows where they are long."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..tokenization.word_pieces import PiecedWords
from ..tokenization.word_windows import WordLayout, cut_windows
from ..types import IGNORE_INDEX, Batch
from .example_table import Columns, ExampleTable

__all__ = ["WordCollator", "training_columns"]


class WordCollator:
    """Batches of whole sentences, so that entities can be counted and named.

    Args:
        table: sentences with `input_ids`, special tokens included, and `word_starts`, counted
            without them; with `word_labels`, or to predict on with `word_places`.
        layout: of a row.
    """

    def __init__(self, table: ExampleTable, layout: WordLayout) -> None:
        self.table, self.layout = table, layout

    def __call__(self, epoch: int, rows: Tensor) -> Batch:
        """Return the batch of these sentences, int64 `[B]`, -1 for a filler row.

        It has `input_ids` and `attention_mask` int64 `[B, L]`, or where a sentence has several
        windows `[B, K, L]`; `word_positions` int64 `[B, W]`, where in its row (windows laid end to
        end) the first token of each word is, -1 for none; and `index` `[B]`. With labels it has
        `word_labels` `[B, W]` and, of the shape of `input_ids`, `labels`: that of a word at its
        first token. To predict on it has `word_places` int64 `[B, W, 2]`, the first character of
        each word and the one behind it, -1 behind a sentence's end.
        """
        numbers = rows.numpy()
        laid = self.layout.lay([self._sentence(int(row)) for row in numbers])
        batch = {
            "input_ids": laid.input_ids,
            "attention_mask": laid.attention_mask,
            "word_positions": laid.positions,
        }
        count, words = laid.positions.shape
        if "word_labels" in self.table:
            gold = self.table.ragged("word_labels").padded(numbers, words, IGNORE_INDEX)
            labels = np.full((count, laid.input_ids.size // max(1, count)), IGNORE_INDEX)
            row, word = ((laid.positions >= 0) & (gold != IGNORE_INDEX)).nonzero()
            labels[row, laid.positions[row, word]] = gold[row, word]
            batch |= {"word_labels": gold, "labels": labels.reshape(laid.input_ids.shape)}
        else:
            places = self.table.ragged("word_places").padded(numbers, 2 * words, -1)
            batch["word_places"] = places.reshape(count, words, 2)
        return {**{name: torch.from_numpy(made) for name, made in batch.items()}, "index": rows}

    def _sentence(self, row: int) -> PiecedWords:
        if row < 0:
            return PiecedWords(np.empty(0, np.int64), np.empty(0, np.int64))
        ids = self.table.ragged("input_ids")[row].astype(np.int64)
        inside = ids[len(self.layout.prefix) : len(ids) - len(self.layout.suffix)]
        return PiecedWords(inside, self.table.ragged("word_starts")[row].astype(np.int64))


def training_columns(table: ExampleTable, layout: WordLayout) -> Columns:
    """Return the rows to train on: each window of a long sentence is one, with its own labels.

    Args:
        table: sentences with `input_ids` and `labels`, special tokens included, and `word_starts`.
        layout: of a row.
    """
    ids, labels = table.ragged("input_ids"), table.ragged("labels")
    starts = table.ragged("word_starts")
    before, behind = len(layout.prefix), len(layout.suffix)
    rows: list[list[int]] = []
    marks: list[list[int]] = []
    for number, length in enumerate(ids.lengths.tolist()):
        tokens, own = ids[number].tolist(), labels[number].tolist()
        if length <= layout.max_length:
            rows.append(tokens)
            marks.append(own)
            continue
        total = length - before - behind
        for window in cut_windows(starts[number].astype(np.int64), total, layout.room):
            stretch = slice(before + window.first, before + window.last)
            rows.append(layout.row(tokens[stretch]))
            mine = [
                label if window.own_first <= place < window.own_last else IGNORE_INDEX
                for place, label in enumerate(own[stretch], window.first)
            ]
            ends = [IGNORE_INDEX] * before, [IGNORE_INDEX] * behind
            marks.append([*ends[0], *mine, *ends[1]])
    return {"input_ids": rows, "labels": marks}
