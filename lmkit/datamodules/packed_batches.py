"""Batches of examples of any length, several in a row where they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..functional.packing import pack_lengths
from ..types import Batch
from .example_table import ExampleTable

__all__ = ["PackedCollator"]


class PackedCollator:
    """Batches whose rows hold as many examples as fit beside the longest one of the batch.

    So a batch may be drawn at random, whatever the lengths, and has little padding. An example sees
    itself alone: `segment_ids` say which tokens belong together, `position_ids` begin anew.

    Args:
        table: the examples; `input_ids` is one of its ragged columns.
        pad_id: id of the padding of `input_ids`.
        ragged: ragged columns that go beside `input_ids`, each with the value of its padding.
    """

    def __init__(self, table: ExampleTable, pad_id: int, ragged: Mapping[str, int]) -> None:
        self.table, self.columns = table, {"input_ids": pad_id, **ragged}

    def __call__(self, epoch: int, rows: Tensor) -> Batch:
        """Return the batch of these examples, int64 `[B]`, -1 for a filler, in `R` rows.

        It has `input_ids`, `attention_mask`, `segment_ids` (from 1, 0 for padding), `position_ids`
        and the ragged columns, int64 `[R, L]`; `segment_index` `[R, S]`, the example of each
        segment of a row, -1 behind the last one; and `index` `[R]`, the first example of each row,
        -1 where there are only fillers.
        """
        numbers = rows.numpy()
        numbers = numbers[numbers >= 0]
        lengths = self.table.ragged("input_ids").lengths[numbers]
        packed, width = _packed(lengths.tolist())
        shape = len(packed), width
        made = {name: np.full(shape, fill, np.int64) for name, fill in self.columns.items()}
        segments, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, items in enumerate(packed):
            begin = 0
            for segment, item in enumerate(items, 1):
                place = slice(begin, begin := begin + int(lengths[item]))
                for name, array in made.items():
                    array[row, place] = self.table.ragged(name)[numbers[item]]
                segments[row, place] = segment
                positions[row, place] = np.arange(lengths[item])
        attention = (segments > 0).astype(np.int64)
        # A row that attends to nothing makes NaN in some attention kernels: fillers keep one.
        attention[:, 0] = 1
        examples = np.full((len(packed), max(1, *map(len, packed))), -1, np.int64)
        for row, items in enumerate(packed):
            examples[row, : len(items)] = numbers[items]
        made |= {
            "attention_mask": attention,
            "segment_ids": segments,
            "position_ids": positions,
            "segment_index": examples,
            "index": examples[:, 0].copy(),
        }
        return {name: torch.from_numpy(array) for name, array in made.items()}


def _packed(lengths: Sequence[int]) -> tuple[list[list[int]], int]:
    """Return the items of each row, and the width, up to half beyond the longest item.

    Of some such widths it is the one that leaves the least padding.
    """
    longest = max(lengths, default=1)
    widths = range(longest, longest + longest // 2 + 1, max(1, longest // 16))
    tried = [(pack_lengths(lengths, width) or [[]], width) for width in widths]
    return min(tried, key=lambda made: len(made[0]) * made[1])
