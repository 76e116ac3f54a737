"""Examples that share rows: none is lost, none sees another, and little is padding."""

import numpy as np
import pytest
import torch

from lmkit.datamodules.example_table import ExampleTable
from lmkit.datamodules.packed_batches import PackedCollator

DRAW = np.random.default_rng(0)
IDS = [DRAW.integers(5, 99, length).tolist() for length in DRAW.integers(3, 40, 64)]
TABLE = ExampleTable.of({"input_ids": IDS, "labels": [[n - 5 for n in row] for row in IDS]})
COLLATE = PackedCollator(TABLE, 0, {"labels": -100})


def texts(batch, name="input_ids"):
    """The column of each text of each row."""
    found = []
    for row, segments in zip(batch[name], batch["segment_ids"], strict=True):
        for segment in range(1, int(segments.max()) + 1):
            found.append(row[segments == segment].tolist())
    return found


@pytest.mark.parametrize("rows", [[3], [0, 1, 2, 3, 4], [*range(64)], [-1, 5, -1, 9]])
def test_each_example_stands_in_one_row_once(rows):
    batch = COLLATE(0, torch.tensor(rows))
    real = sorted(IDS[row] for row in rows if row >= 0)
    assert sorted(texts(batch)) == real
    assert sorted(texts(batch, "labels")) == sorted([n - 5 for n in row] for row in real)
    for places in texts(batch, "position_ids"):
        assert places == list(range(len(places)))
    padding = batch["segment_ids"] == 0
    assert (batch["input_ids"][padding] == 0).all() and (batch["labels"][padding] == -100).all()
    assert torch.equal(batch["attention_mask"], (~padding).long())
    assert {len(tensor) for tensor in batch.values()} == {len(batch["index"])}
    own = [n for n in batch["segment_index"].flatten().tolist() if n >= 0]
    assert texts(batch) == [IDS[n] for n in own]
    assert (batch["segment_index"] >= 0).sum(1).equal(batch["segment_ids"].amax(1))
    assert batch["segment_index"][:, 0].equal(batch["index"])
    assert {row[0] for row in texts(batch)} >= {IDS[n][0] for n in batch["index"].tolist()}


def test_a_batch_has_little_padding_and_no_row_much_longer_than_its_longest_example():
    lengths = [len(row) for row in IDS]
    for first in range(0, 64, 16):
        batch = COLLATE(0, torch.arange(first, first + 16))
        assert batch["input_ids"].shape[1] <= 1.5 * max(lengths[first : first + 16])
        assert batch["attention_mask"].float().mean() > 0.85


def test_fillers_alone_are_a_row_of_padding_that_attends_to_one_place():
    batch = COLLATE(0, torch.tensor([-1, -1]))
    assert batch["index"].tolist() == [-1] and batch["segment_ids"].tolist() == [[0]]
    assert batch["segment_index"].tolist() == [[-1]]
    assert batch["attention_mask"].tolist() == [[1]] and batch["labels"].tolist() == [[-100]]
