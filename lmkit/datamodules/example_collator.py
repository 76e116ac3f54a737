"""Batches of encoded examples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..types import Batch
from .example_table import ExampleTable

__all__ = ["ExampleCollator"]


class ExampleCollator:
    """Batches of the columns of a table, padded to the longest example of the batch.

    Args:
        table: the examples; `input_ids` is one of its ragged columns.
        pad_id: id of the padding of `input_ids`.
        ragged: ragged columns that go beside `input_ids`, each with the value of its padding.
        flat: columns with one value, or one array, for each example, each with what stands in a
            filler row.
    """

    def __init__(
        self,
        table: ExampleTable,
        pad_id: int,
        ragged: Mapping[str, int] | None = None,
        flat: Mapping[str, float] | None = None,
    ) -> None:
        self.table, self.pad_id = table, pad_id
        self.ragged, self.flat = dict(ragged or {}), dict(flat or {})

    def __call__(self, epoch: int, rows: Tensor) -> Batch:
        """Return the batch of these examples, int64 `[B]`, -1 for a filler row.

        It has `input_ids`, `attention_mask` and the ragged columns, int64 `[B, L]`, the flat ones
        `[B, ...]`, and `index` int64 `[B]`.
        """
        numbers = rows.numpy()
        ids = self.table.ragged("input_ids")
        lengths = np.where(numbers < 0, 0, ids.lengths[numbers])
        width = max(1, int(lengths.max(initial=1)))
        attention = (np.arange(width) < lengths[:, np.newaxis]).astype(np.int64)
        # A row that attends to nothing makes NaN in some attention kernels: fillers keep one.
        attention[:, 0] = 1
        made = {"input_ids": ids.padded(numbers, width, self.pad_id), "attention_mask": attention}
        for name, fill in self.ragged.items():
            made[name] = self.table.ragged(name).padded(numbers, width, fill)
        for name, value in self.flat.items():
            column = self.table.array(name)[numbers]
            column[numbers < 0] = value
            made[name] = column
        batch = {name: torch.from_numpy(array) for name, array in made.items()}
        return {**batch, "index": rows}
