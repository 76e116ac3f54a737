"""What a task module says of a batch, whatever the task: scores, item by item."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..types import IGNORE_INDEX, Batch

__all__ = ["Scores", "class_scores", "real_tokens", "row_scores", "token_scores"]


class Scores(NamedTuple):
    """The scores of the items of a batch, for what compares the predictions of two networks.

    An item is what the loss is a mean over: an example, a word piece, a predicted token. A row is
    what the network reads: of most tasks an example, of a choice one for each answer.

    Attributes:
        kind: `"classes"` (one of them is right), `"labels"` (each is, or is not) or `"value"`.
        logits: float `[N, ..., C]`; of a value `[N, 1]`. Dimensions between are of one item, such
            as start and end of an answer.
        valid: bool `[N]`, which items count: no padding, no fillers.
        labels: of the items, int64 `[N]` or `[N, ...]` like the logits, -100 for none; `None` where
            they are no classes.
        rows: int64 `[N]`, the row of each item, the first of several.
        tokens: bool `[R, L]`, the real tokens of each row.
        shares: float `[R]`, how many items each row stands for; they add up to those that count.
        segments: int64 `[R, L]`, which tokens of a row belong to one text; `None` for one text.
        written: bool `[R, T]`, the real tokens of the decoder, where there is one.
        ragged: whether each item has classes of its own, as many as it happens to have, and the
            logits are minus infinity where there is none.
    """

    kind: Literal["classes", "labels", "value"]
    logits: Tensor
    valid: Tensor
    labels: Tensor | None
    rows: Tensor
    tokens: Tensor
    shares: Tensor
    segments: Tensor | None = None
    written: Tensor | None = None
    ragged: bool = False


def real_tokens(batch: Batch) -> Tensor:
    """Return where there is a token, bool, of the shape of `input_ids`: no padding, no filler.

    Example:
        >>> batch = {"input_ids": torch.tensor([[5, 6], [7, 0], [0, 0]]),
        ...     "attention_mask": torch.tensor([[1, 1], [1, 0], [1, 0]]),
        ...     "index": torch.tensor([3, 8, -1])}
        >>> real_tokens(batch).tolist()
        [[True, True], [True, False], [False, False]]
    """
    real = batch["segment_ids"] > 0 if "segment_ids" in batch else batch["attention_mask"] > 0
    if "index" not in batch:
        return real
    return real & (batch["index"] >= 0).reshape(-1, *[1] * (real.ndim - 1))


def row_scores(kind: Literal["classes", "labels", "value"], logits: Tensor, batch: Batch) -> Scores:
    """Return the scores of a task with one item for each row.

    Args:
        kind: of the scores.
        logits: `[B, ..., C]`.
        batch: with `labels` int64 `[B]` where `kind` is `"classes"` and they are its classes.
    """
    tokens = real_tokens(batch)
    valid = tokens.any(1)
    labels = batch.get("labels") if kind == "classes" else None
    rows = torch.arange(len(valid), device=valid.device)
    return Scores(kind, logits, valid, labels, rows, tokens, valid.float())


def token_scores(logits: Tensor, batch: Batch) -> Scores:
    """Return the scores of labelled tokens.

    In a text without any label all tokens count, for there what they are is unknown, not unasked.

    Args:
        logits: `[R, L, C]`.
        batch: `labels` int64 `[R, L]`, and perhaps `segment_ids`.
    """
    tokens, labels = real_tokens(batch), batch["labels"]
    rows, length = labels.shape
    labelled = labels != IGNORE_INDEX
    segments = batch.get("segment_ids")
    text = torch.zeros_like(labels) if segments is None else segments
    # How many labels each text of each row has.
    counts = labels.new_zeros(rows, length + 1).scatter_add_(1, text, labelled.long())
    valid = labelled | (tokens & (counts.gather(1, text) == 0))
    number = torch.arange(rows, device=labels.device).repeat_interleave(length)
    return Scores(
        "classes",
        logits.flatten(0, 1),
        valid.flatten(),
        labels.flatten(),
        number,
        tokens,
        valid.sum(1).float(),
        segments,
    )


def class_scores(
    logits: Tensor, positions: Tensor, targets: Tensor, batch: Batch, written: Tensor | None = None
) -> Scores:
    """Return the scores over the vocabulary at some positions.

    Args:
        logits: `[K, V]`.
        positions: int64 `[K]`, in the flattened batch of what is predicted.
        targets: int64 `[K]`, -100 for a slot without a label.
        batch: of it `input_ids`, and perhaps `segment_ids`.
        written: of an encoder-decoder bool `[R, T]`, the tokens of the decoder, in which the
            positions count.
    """
    tokens = real_tokens(batch)
    width = (tokens if written is None else written).shape[1]
    rows = positions // width
    valid = targets != IGNORE_INDEX
    shares = torch.zeros(len(tokens), device=rows.device).index_add_(0, rows, valid.float())
    return Scores(
        "classes", logits, valid, targets, rows, tokens, shares, batch.get("segment_ids"), written
    )
