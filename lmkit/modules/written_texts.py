"""Rows of an evaluation whose text is to be written, gathered into full batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..types import Batch

__all__ = ["WaitingRow", "WaitingRows"]


class WaitingRow(NamedTuple):
    """A source that is to be written on, and the text that is to come of it."""

    ids: Tensor
    reference: str


class WaitingRows:
    """Rows chosen from many batches, to be written together.

    A search costs about as much for one row as for a batch of them. Where one row in ten is
    written, they wait until there are as many as a batch has.

    Example:
        >>> rows = WaitingRows()
        >>> batch = {"input_ids": torch.tensor([[5, 6], [7, 0]]),
        ...     "attention_mask": torch.tensor([[1, 1], [1, 0]])}
        >>> rows.add(batch, [0, 1], ["a b", "c"])
        >>> len(rows), rows.take(0)[0]["input_ids"].tolist(), len(rows)
        (2, [[5, 6], [7, 0]], 0)
    """

    def __init__(self) -> None:
        self._rows: list[WaitingRow] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, batch: Batch, rows: Sequence[int], references: Sequence[str]) -> None:
        """Let some rows of a batch wait.

        Args:
            batch: `input_ids` and `attention_mask`, int64 `[B, L]`.
            rows: which of its rows.
            references: the text that is to come of each.
        """
        for row, reference in zip(rows, references, strict=True):
            real = batch["attention_mask"][row].bool()
            self._rows.append(WaitingRow(batch["input_ids"][row][real], reference))

    def take(self, pad_id: int) -> tuple[Batch, list[str]]:
        """Return all rows as a batch, and what is to come of each; none waits any longer.

        Where there are none, the batch is empty.

        Args:
            pad_id: id of the padding.
        """
        taken, self._rows = self._rows, []
        if not taken:
            return {}, []
        ids = pad_sequence([row.ids for row in taken], True, pad_id)
        lengths = torch.tensor([len(row.ids) for row in taken], device=ids.device)
        mask = (torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)).long()
        return {"input_ids": ids, "attention_mask": mask}, [row.reference for row in taken]
