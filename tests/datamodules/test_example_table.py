"""Tables of encoded examples: in memory, on disk, in workers, and as batches."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lmkit.datamodules.example_collator import ExampleCollator
from lmkit.datamodules.example_table import ExampleTable, Ragged

COLUMNS = {
    "input_ids": [[5, 6, 300], [], [70_000]],
    "labels": np.array([1, 0, 2]),
    "scores": np.array([[0.5, 1.0], [0.0, 0.0], [1.0, 0.0]], np.float32),
    "text": ["naïve 🙂", "", "c\nd"],
    "pair": ["", "", ""],
}


def check(table):
    assert len(table) == 3 and "labels" in table and "types" not in table
    ids = table.ragged("input_ids")
    assert [ids[row].tolist() for row in range(3)] == COLUMNS["input_ids"]
    assert ids.lengths.tolist() == [3, 0, 1] and len(ids) == 3
    assert table.array("labels").tolist() == [1, 0, 2]
    assert np.array_equal(table.array("scores"), COLUMNS["scores"])
    assert [table.text("text", row) for row in range(3)] == COLUMNS["text"]
    assert table.text("pair", 2) == "" and table.meta == {"classes": {"é": 2}}


@pytest.fixture
def saved(tmp_path):
    ExampleTable.of(COLUMNS, {"classes": {"é": 2}}).save(tmp_path / "kept" / "train")
    return tmp_path / "kept" / "train"


def test_a_table_is_the_same_in_memory_and_on_disk(saved):
    check(ExampleTable.of(COLUMNS, {"classes": {"é": 2}}))
    check(ExampleTable.open(saved))


def test_a_table_travels_to_workers(saved):
    kept = ExampleTable.open(saved)
    check(pickle.loads(pickle.dumps(kept)))
    check(pickle.loads(pickle.dumps(ExampleTable.of(COLUMNS, {"classes": {"é": 2}}))))
    assert len(pickle.dumps(kept)) < 500


@pytest.mark.parametrize("how", ["memory", "disk"])
def test_a_worker_makes_the_batch_that_this_process_makes(saved, how):
    table = ExampleTable.open(saved) if how == "disk" else ExampleTable.of(COLUMNS)
    collate = ExampleCollator(table, 9, flat={"labels": -100})
    rows = [torch.tensor([2, 0]), torch.tensor([1, -1])]
    loader = DataLoader(
        rows,
        batch_size=None,
        collate_fn=Bound(collate),
        num_workers=1,
    )
    for batch, expected in zip(loader, map(Bound(collate), rows), strict=True):
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


class Bound:
    """A collator at epoch 0."""

    def __init__(self, collate):
        self.collate = collate

    def __call__(self, rows):
        return self.collate(0, rows)


def test_an_empty_table_is_kept_too(tmp_path):
    ExampleTable.of({"input_ids": [], "text": []}).save(tmp_path / "none")
    assert len(ExampleTable.open(tmp_path / "none")) == 0


@pytest.mark.parametrize("damage", ["missing", "cut", "no meta", "bad meta", "other meta", "gone"])
def test_a_damaged_table_is_not_opened(saved, damage):
    if damage == "missing":
        (saved / "input_ids.bounds.npy").unlink()
    elif damage == "cut":
        path = saved / "input_ids.npy"
        path.write_bytes(path.read_bytes()[:-2])
    elif damage == "no meta":
        (saved / "meta.json").unlink()
    elif damage == "bad meta":
        (saved / "meta.json").write_text('{"meta": {')
    elif damage == "other meta":
        (saved / "meta.json").write_text('["columns"]')
    with pytest.raises(FileNotFoundError, match="no whole table of examples"):
        ExampleTable.open(saved / "not" if damage == "gone" else saved)


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"one length, got \{'input_ids': 2, 'labels': 1\}"):
        ExampleTable.of({"input_ids": [[1], [2]], "labels": np.array([1])})


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([], np.int8),
        ([-128, 127], np.int8),
        ([128], np.int16),
        ([-32_769], np.int32),
        ([2**31], np.int64),
    ],
)
def test_rows_are_kept_in_the_smallest_type(values, kind):
    rows = Ragged.of([values, []])
    assert rows.values.dtype == kind and rows[0].tolist() == values and rows[1].tolist() == []


def test_rows_are_padded_and_cut_to_a_width():
    rows = Ragged.of([[1, 2, 3], [], [4]])
    padded = rows.padded(np.array([0, -1, 1, 2]), 2, fill=-100)
    assert padded.tolist() == [[1, 2], [-100, -100], [-100, -100], [4, -100]]
    assert padded.dtype == np.int64


def test_texts_of_lone_surrogates_are_kept():
    table = ExampleTable.of({"input_ids": [[1]], "text": ["a\ud800b"]})
    assert table.text("text", 0) == "a\ud800b"


def test_a_batch_has_padding_mask_and_fillers():
    table = ExampleTable.of({**COLUMNS, "types": [[0, 0, 1], [], [0]]})
    fill = {"labels": -100, "scores": float("nan")}
    collate = ExampleCollator(table, 9, ragged={"types": 0}, flat=fill)
    batch = collate(0, torch.tensor([0, 2, -1]))
    assert batch["input_ids"].tolist() == [[5, 6, 300], [70_000, 9, 9], [9, 9, 9]]
    # A filler attends to one place, so that no kernel makes NaN of it.
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 0, 0]]
    assert batch["types"].tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert batch["labels"].tolist() == [1, 2, -100]
    assert (
        batch["scores"][:2].tolist() == [[0.5, 1.0], [1.0, 0.0]]
        and batch["scores"][2].isnan().all()
    )
    assert batch["index"].tolist() == [0, 2, -1]
    assert table.array("labels").tolist() == [1, 0, 2]  # the fill is not written into the table


def test_a_batch_of_fillers_has_one_column():
    batch = ExampleCollator(ExampleTable.of(COLUMNS), 9)(0, torch.tensor([-1, -1]))
    assert batch["input_ids"].tolist() == [[9], [9]] and batch["attention_mask"].all()
