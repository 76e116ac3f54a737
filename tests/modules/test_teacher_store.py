"""A store gives back what was written of each example, and says when it is not the right one."""

import json
import pickle

import numpy as np
import pytest

from lmkit.modules.store_runs import Runs
from lmkit.modules.store_writer import StoreWriter
from lmkit.modules.teacher_store import HalfWrittenError, TeacherStore, store_folder

KEY = {"teacher": "a", "data": {"train": "x", "tokenizer": "t"}, "precision": "float16"}
LENGTHS = np.random.default_rng(0).integers(0, 9, 20)
HIDDEN = [np.random.default_rng(n).normal(size=(k, 3)) for n, k in enumerate(LENGTHS)]
LOGITS = np.random.default_rng(1).normal(size=(20, 5)).astype(np.float32)
IDS = [np.arange(n, n + 4 * k).reshape(k, 2, 2).astype(np.int32) for n, k in enumerate(LENGTHS)]


def fields(numbers):
    return {
        "hidden": [HIDDEN[n] for n in numbers],
        "logits": LOGITS[numbers][:, np.newaxis],
        "ids": Runs(np.concatenate([IDS[n] for n in numbers]), LENGTHS[numbers]),
    }


@pytest.fixture
def store(tmp_path):
    order = np.random.default_rng(2).permutation(20)
    with StoreWriter(tmp_path / "store", 20, KEY) as writer:
        for first in range(0, 20, 3):
            writer.write(order[first : first + 3], fields(order[first : first + 3]))
        return writer.finish()


def test_each_example_has_the_rows_that_were_written_of_it(store):
    assert store.examples == 20 and store.key == KEY
    assert {n: (f.dtype.name, f.shape) for n, f in store.fields.items()} == {
        "hidden": ("float64", (3,)),
        "logits": ("float32", (5,)),
        "ids": ("int32", (2, 2)),
    }
    numbers = np.array([7, -1, 0, 19, 7])
    hidden = store.rows("hidden", numbers, width=12)
    ids = store.rows("ids", numbers)
    assert hidden.shape == (5, 12, 3) and ids.shape == (5, LENGTHS[[7, 0, 19]].max(), 2, 2)
    assert ids.dtype == np.int32
    for row, number in enumerate(numbers):
        count = LENGTHS[number] if number >= 0 else 0
        assert np.array_equal(hidden[row, :count], HIDDEN[number][:count])
        assert np.array_equal(ids[row, :count], IDS[number][:count])
        assert not hidden[row, count:].any() and not ids[row, count:].any()
    assert np.array_equal(store.rows("logits", numbers)[[0, 2]], LOGITS[[7, 0]][:, np.newaxis])
    assert store.counts("ids", numbers).tolist() == [*LENGTHS[[7]], 0, *LENGTHS[[0, 19, 7]]]


def test_examples_of_one_row_stand_end_to_end_wherever_there_is_none_between(store):
    numbers = np.array([[3, 4, -1, 5], [-1, -1, -1, -1], [-1, 6, 19, -1], [8, -1, -1, -1]])
    made = store.segments("hidden", numbers, width=30)
    assert made.shape == (4, 30, 3)
    for row, own in zip(made, numbers, strict=True):
        laid = np.concatenate([np.zeros((0, 3)), *[HIDDEN[n] for n in own if n >= 0]])
        assert np.array_equal(row[: len(laid)], laid) and not row[len(laid) :].any()
    longest = max(sum(LENGTHS[n] for n in own if n >= 0) for own in numbers)
    assert store.segments("hidden", numbers).shape == (4, longest, 3)


def test_no_example_at_all_has_no_rows(store):
    assert store.rows("hidden", np.zeros(0, np.int64), width=4).shape == (0, 4, 3)
    assert store.segments("hidden", np.zeros((2, 0), np.int64), width=4).shape == (2, 4, 3)
    assert store.rows("ids", [-1, -100]).shape == (2, 0, 2, 2)


def test_a_width_that_cuts_a_run_is_refused(store):
    longest = int(LENGTHS.argmax())
    with pytest.raises(
        ValueError, match=r"width must be at least 8, the rows that hidden has .* 7"
    ):
        store.rows("hidden", [longest], width=7)
    with pytest.raises(ValueError, match=r"at least 16"):
        store.segments("hidden", [[longest, longest]], width=15)


@pytest.mark.parametrize(
    ("field", "numbers", "message"),
    [
        ("state", [0], r"no field 'state'; there are hidden, logits, ids"),
        ("hidden", [20], r"numbers must lie below 20, the examples of the store, got 20"),
    ],
)
def test_what_is_not_there_is_said(store, field, numbers, message):
    with pytest.raises(ValueError, match=message):
        store.rows(field, numbers)


def test_what_was_read_is_the_readers_and_the_store_stays(store):
    made = store.rows("hidden", [3, 4])
    made += 1
    assert not np.array_equal(store.rows("hidden", [3, 4]), made)


def test_a_store_travels_as_its_path(store):
    again = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 1000
    assert np.array_equal(again.rows("hidden", [7]), store.rows("hidden", [7]))


def test_a_store_that_is_not_there_is_not_found(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="no store of a teacher"):
            TeacherStore.open(folder)


def test_a_half_written_store_says_how_far_it_is(tmp_path):
    with StoreWriter(tmp_path, 20, KEY) as writer:
        with pytest.raises(HalfWrittenError, match="0 of 20 examples"):
            TeacherStore.open(tmp_path)
        writer.write([3, 4, 5], fields(np.array([3, 4, 5])))
        writer.commit()
        writer.write([6], fields(np.array([6])))
        with pytest.raises(HalfWrittenError, match="half written: 3 of 20 examples are there"):
            TeacherStore.open(tmp_path, KEY)


@pytest.mark.parametrize("name", ["hidden.bin", "logits.index.npy"])
def test_a_damaged_store_is_refused_and_made_anew(store, name, caplog):
    path = store.path / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(HalfWrittenError, match=rf"damaged: {name} has .* bytes.*remove the folder"):
        TeacherStore.open(store.path)
    path.unlink()
    with pytest.raises(HalfWrittenError, match=f"damaged: {name} is missing"):
        TeacherStore.open(store.path)
    with StoreWriter(store.path, 20, KEY) as writer:
        assert writer.position == 0 and writer.lacks(range(20)).all()
        assert f"made anew: {name} is missing" in caplog.text
        writer.write(range(20), fields(np.arange(20)))
        again = writer.finish()
    assert np.array_equal(again.rows("logits", range(20))[:, 0], LOGITS)


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', '{"version": 0, "key": {}}'])
def test_a_file_that_is_none_of_a_store_is_said_and_left_alone(tmp_path, text):
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(HalfWrittenError, match=r"meta\.json is damaged, or is that of something"):
        TeacherStore.open(tmp_path)
    with pytest.raises(HalfWrittenError, match=r"meta\.json is damaged"):
        StoreWriter(tmp_path, 20, KEY)
    assert [path.name for path in tmp_path.iterdir()] == ["meta.json"]


def test_another_key_names_the_entries_that_differ(store):
    other = json.loads(json.dumps(KEY)) | {"teacher": "b", "layers": [1]}
    other["data"]["train"] = "y"
    with pytest.raises(ValueError) as error:
        TeacherStore.open(store.path, other)
    assert "data.train is 'x' in the store and should be 'y'" in str(error.value)
    assert "layers is None in the store and should be [1]" in str(error.value)
    assert "teacher is 'a' in the store and should be 'b'" in str(error.value)
    assert "tokenizer" not in str(error.value) and "precision" not in str(error.value)
    assert TeacherStore.open(store.path, KEY).key == TeacherStore.open(store.path).key
    with pytest.raises(ValueError, match="made of something else: layers"):
        StoreWriter(store.path, 20, KEY | {"layers": [1]})


def test_a_key_has_one_folder_whatever_the_order_of_its_entries(tmp_path):
    folder = store_folder(tmp_path, KEY)
    assert folder == store_folder(tmp_path, dict(reversed(KEY.items())))
    assert folder.parent == tmp_path / "teachers"
    changes = ({"teacher": "b"}, {"data": {"train": "y", "tokenizer": "t"}}, {"more": 1})
    assert len({folder, *(store_folder(tmp_path, KEY | change) for change in changes)}) == 4
    assert store_folder(tmp_path, {"a": (1, 2)}) == store_folder(tmp_path, {"a": [1, 2]})
    with pytest.raises(TypeError, match="key must be plain data"):
        store_folder(tmp_path, {"teacher": object()})


def test_runs_without_any_row_are_kept(tmp_path):
    with StoreWriter(tmp_path, 2, KEY) as writer:
        writer.write([0, 1], {"tokens": Runs(np.zeros((0, 4), np.float16), [0, 0])})
        store = writer.finish()
    assert store.rows("tokens", [0, 1], width=2).tolist() == np.zeros((2, 2, 4)).tolist()
