"""Tagged sentences as text, to be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..functional.tagging import find_spans
from ..types import Batch
from .word_predictions import outside_label

__all__ = ["tagged_samples"]


def tagged_samples(
    batch: Batch, choices: Tensor, labels: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """Return sentences with what is tagged and what should be.

    Args:
        batch: `input_ids`, `attention_mask`, `word_positions` and `word_labels`.
        choices: int64 `[B, W]`, the label of each word; -1 for none.
        labels: names of the labels.
        tokenizer: writes the words.

    Returns:
        For each sentence its `text`, `gold` and `tagged`: `New York (LOC)` of entities, `New/PROPN`
        of tags that spell none. Sentences without words are left out.
    """
    shown = []
    for row, gold in enumerate(batch["word_labels"]):
        count = int((gold >= 0).sum())
        if not count:
            continue
        words = _words(batch, row, count, tokenizer)
        shown.append(
            {
                "text": " ".join(words),
                "gold": _written(words, gold[:count].tolist(), labels),
                "tagged": _written(words, choices[row, :count].tolist(), labels),
            }
        )
    return shown


def _words(batch: Batch, row: int, count: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    width = batch["input_ids"].shape[-1]
    ids = batch["input_ids"][row].flatten().tolist()
    real = batch["attention_mask"][row].flatten().tolist()
    positions = batch["word_positions"][row, :count].tolist()
    words = []
    for number, start in enumerate(positions):
        following = [place for place in positions[number + 1 :] if place >= 0][:1]
        # The last word of a window ends where that ends; special tokens are not written.
        end = (start // width + 1) * width
        end = min([end, *following])
        tokens = [i for i, is_real in zip(ids[start:end], real[start:end], strict=True) if is_real]
        text = tokenizer.decode(tokens, skip_special_tokens=True) if start >= 0 else ""
        words.append(str(text).strip())
    return words


def _written(words: Sequence[str], numbers: Sequence[int], labels: Sequence[str]) -> str:
    if outside_label(labels) is None:
        tags = [labels[n] if n >= 0 else "?" for n in numbers]
        return " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True))
    spans = find_spans([labels[n] if n >= 0 else "O" for n in numbers])
    return ", ".join(f"{' '.join(words[s:e])} ({kind})" for s, e, kind in spans)
