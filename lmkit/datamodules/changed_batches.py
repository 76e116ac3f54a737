"""Batches of examples whose words are changed anew in each epoch."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..transforms import example_rng
from ..types import VIEW_PREFIX, Batch
from .example_table import ExampleTable
from .loader import Collate
from .text_rows import BadRows

if TYPE_CHECKING:
    from .augmentation import Augmentation
    from .task import TaskDataModule

__all__ = ["EXAMPLE", "ChangedBatches"]

#: The column of the examples as they were read.
EXAMPLE = "example"
# What a network reads of a view.
_SEEN = ("input_ids", "attention_mask", "token_type_ids")


class ChangedBatches:
    """Reads examples, changes their words, and encodes them anew, in the loader's process.

    Args:
        how: which changes.
        data: encodes examples.
        table: has the column `EXAMPLE`.
        epochs: of the run, over which the strength may change; 1 is all of it at once.
        usual: makes batches of the table, which are of the same kind.
    """

    def __init__(
        self,
        how: Augmentation,
        data: TaskDataModule,
        table: ExampleTable,
        epochs: int,
        usual: Collate,
    ) -> None:
        # A worker needs neither the trainer nor the other tables.
        self.data = copy.copy(data)
        self.data.trainer, self.data.augmentation, self.data._tables = None, None, {}
        self.how, self.table, self.usual = how, table, usual
        #: Of the run, over which the strength may change.
        self.epochs = epochs

    def __call__(self, epoch: int, rows: Tensor) -> Batch:
        """Return the batch of these examples, int64 `[B]`, -1 for a filler row."""
        there = rows[rows >= 0]
        if not len(there):
            usual = self.usual(epoch, rows)
            return {**usual, **_view(usual)} if self.how.view else usual
        places = torch.full_like(rows, -1)
        places[rows >= 0] = torch.arange(len(there))
        collate: Any = copy.copy(self.usual)
        collate.table = self._changed(epoch, there.tolist())
        made: Batch = collate(epoch, places)
        for name in {"index", "segment_index"} & made.keys():
            made[name] = torch.where(made[name] < 0, -1, there[made[name].clamp(min=0)])
        return {**self.usual(epoch, rows), **_view(made)} if self.how.view else made

    def _changed(self, epoch: int, numbers: list[int]) -> ExampleTable:
        progress = min(1.0, epoch / (self.epochs - 1)) if self.epochs > 1 else 1.0
        known = [json.loads(self.table.text(EXAMPLE, number)) for number in numbers]
        examples = [self.data.example_type(*fields) for fields in known]
        draws = (example_rng(self.data.seed, epoch, number) for number in numbers)
        each = zip(examples, draws, strict=True)
        changed = [self.data.rewrite(e, self.how.rewriter(rng, progress)) for e, rng in each]
        columns = self._encoded(changed)
        before = self.table.ragged("input_ids").lengths[numbers].clip(min=self.data.max_length)
        long = [len(ids) > most for ids, most in zip(columns["input_ids"], before, strict=True)]
        if any(long):  # there may be no position for such a row: it stays as it is
            both = zip(examples, changed, long, strict=True)
            columns = self._encoded([e if too else c for e, c, too in both])
        return ExampleTable.of(columns)

    def _encoded(self, examples: list[Any]) -> dict[str, Any]:
        columns = dict(self.data.encode(examples, BadRows("error")))
        for name in ("truncated", "unlabelled"):
            columns.pop(name, None)
        if "token_type_ids" in self.table and "token_type_ids" not in columns:
            columns["token_type_ids"] = [[0] * len(ids) for ids in columns["input_ids"]]
        return columns


def _view(batch: Batch) -> Batch:
    return {f"{VIEW_PREFIX}{name}": batch[name] for name in _SEEN if name in batch}
