"""Questions with choices, in the layouts of the usual data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from lmkit.datamodules.multiple_choice import MultipleChoiceDataModule
from tests import tiny
from tests.choices import write_choices


def make(folder: Path, rows: list[dict[str, Any]] | None = None, **kwargs: Any) -> Any:
    tiny.tokenizer_folder(folder / "tokenizer")
    path = folder / "train.jsonl"
    if rows is None:
        write_choices(path, 20)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {
        "tokenizer": str(folder / "tokenizer"),
        "max_length": 32,
        "batch_size": 4,
        "seed": 3,
        "val_fraction": 0,
    }
    if "source" not in kwargs:
        settings["train_file"] = str(path)
    return MultipleChoiceDataModule(**{**settings, **kwargs})


def read(data: Any) -> list[tuple[str, str, tuple[str, ...], int | None]]:
    seen: list[Any] = []
    own = data.read
    data.read = lambda *given: seen.extend(own(*given)) or list(seen)
    data.setup()
    return [tuple(question[:4]) for question in seen]


LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "swag": (
        {"startphrase": "x", "sent1": "A dog", "sent2": "It", "ending0": "sat", "ending1": "ran"},
        {"label": 1},
    ),
    "race": ({"article": "A dog", "question": "It", "options": ["sat", "ran"]}, {"answer": "B"}),
    "hellaswag": ({"ctx": "A dog", "question": "It", "endings": ["sat", "ran"]}, {"label": "1"}),
    "arc": (
        {
            "context": "A dog",
            "question": "It",
            "choices": {"text": ["sat", "ran"], "label": ["1", "2"]},
        },
        {"answerKey": "2"},
    ),
    "letters": ({"context": "A dog", "question": "It", "B": "ran", "A": "sat"}, {"label": "ran"}),
    "copa": (
        {"premise": "A dog", "question": "It", "choice1": "sat", "choice2": "ran"},
        {"label": 1.0},
    ),
    "listed": (
        {"context": "A dog", "question": "It", "choices": [{"text": "sat"}, {"text": "ran"}]},
        {"label": "b"},
    ),
    "written": ({"context": "A dog", "question": "It", "choices": '["sat", "ran"]'}, {"label": 1}),
}


@pytest.mark.parametrize(("row", "label"), LAYOUTS.values(), ids=LAYOUTS)
def test_all_layouts_say_the_same(
    row: dict[str, Any], label: dict[str, Any], tmp_path: Path
) -> None:
    assert read(make(tmp_path, [{**row, **label}])) == [("A dog", "It", ("sat", "ran"), 1)]


def test_columns_can_be_named_and_labels_begin_at_one(tmp_path: Path) -> None:
    row = {"scene": "A dog", "x": "sat", "y": "ran", "right": 1, "label": 0}
    columns = {"context_column": "scene", "choice_columns": ["y", "x"], "label_column": "right"}
    data = make(tmp_path, [row], first_label=1, **columns)
    assert read(data) == [("A dog", "", ("ran", "sat"), 0)]


def test_blank_choices_are_none(tmp_path: Path) -> None:
    row = {"question": "It", "choice0": "sat", "choice1": "", "choice2": "ran", "label": 2}
    assert read(make(tmp_path, [row])) == [("", "It", ("sat", "ran"), 1)]


def test_class_labels_of_a_data_set_are_read(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "sent1": datasets.Value("string"),
            "ending0": datasets.Value("string"),
            "ending1": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["0", "1"]),
        }
    )
    columns = {"sent1": ["A dog"], "ending0": ["sat"], "ending1": ["ran"], "label": [1]}
    data = make(tmp_path, source=datasets.Dataset.from_dict(columns, features=features))
    assert read(data) == [("A dog", "", ("sat", "ran"), 1)]


GOOD = {"question": "It", "choices": ["sat", "ran"], "label": 0}
BAD = {
    "no label": ({"question": "It", "choices": ["a", "b"]}, "no column of labels"),
    "label beyond": ({**GOOD, "label": 2}, "2 names none of 2 choices.*first is 0.*first_label"),
    "label of no kind": ({**GOOD, "label": "cat"}, "no number, letter or text"),
    "label missing": ({**GOOD, "label": None}, "None is no number"),
    "one choice": ({**GOOD, "choices": ["a", " "]}, "two or more choices, got 1"),
    "no choices": ({"question": "It", "label": 0}, "no column of choices"),
    "no question": ({"choices": ["a", "b"], "label": 0}, "neither a context nor a question"),
    "blank is right": ({**GOOD, "choices": ["", "a", "b"]}, "number 0, is blank"),
    "a text": ({**GOOD, "choices": "a or b"}, "a text and no list of choices"),
}


@pytest.mark.parametrize(("row", "fault"), BAD.values(), ids=BAD)
def test_a_bad_row_is_named_or_skipped(row: dict[str, Any], fault: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"train\.jsonl, line 2: .*{fault}"):
        make(tmp_path, [GOOD, row]).setup()
    data = make(tmp_path, [GOOD, row], on_bad_row="skip")
    data.setup()
    assert data.statistics["train/examples"] == 1


def test_a_batch_holds_every_choice_and_masks_what_is_lacking(tmp_path: Path) -> None:
    rows = [{**GOOD, "choices": ["sat"] * count + ["ran"]} for count in (1, 4, 2)]
    data = make(tmp_path, rows, batch_size=4)
    (batch,) = data.train_dataloader()
    counts = {0: 2, 1: 5, 2: 3, -1: 1}
    assert batch["input_ids"].shape[:2] == (4, 5)
    for place, row in enumerate(batch["index"].tolist()):
        real = batch["choice_mask"][place].bool()
        assert int(real.sum()) == counts[row] and real[: counts[row]].all()
        assert batch["labels"][place] == (0 if row >= 0 else -100)
        assert (batch["attention_mask"][place, :, 0] == 1).all()
        if row < 0:
            continue
        for choice, text in enumerate(rows[row]["choices"]):
            ids = batch["input_ids"][place, choice]
            mask = batch["attention_mask"][place, choice].bool()
            expected = tiny.tokenizer()("It", text, return_token_type_ids=True)
            assert ids[mask].tolist() == expected["input_ids"]
            types = batch["token_type_ids"][place, choice]
            assert types[mask].tolist() == expected["token_type_ids"]
            assert not types[~mask].any() and (ids[~mask] == tiny.tokenizer().pad_token_id).all()


def test_predictions_need_no_label(tmp_path: Path) -> None:
    path = tmp_path / "ask.jsonl"
    path.write_text(json.dumps({"question": "It", "choices": ["sat", "ran"]}) + "\n")
    data = make(tmp_path, predict_file=str(path))
    (batch,) = data.predict_dataloader()
    assert batch["index"].tolist() == [0, -1, -1, -1] and (batch["labels"] == -100).all()
    assert data.inputs(0) == {"question": "It", "choices": ["sat", "ran"]}


def test_long_texts_are_cut_and_counted(tmp_path: Path) -> None:
    long = " ".join(tiny.sentences(5))
    data = make(tmp_path, [GOOD, {**GOOD, "question": long}], max_length=16)
    data.setup()
    assert data.statistics["train/truncated"] == 1
    assert all(torch.tensor(b["input_ids"].shape[2]) <= 16 for b in data.train_dataloader())


def test_questions_without_a_label_stand_behind_the_others(tmp_path: Path) -> None:
    path = tmp_path / "more.jsonl"
    rows: list[dict[str, Any]] = [{**GOOD, "label": "which?"}, {**GOOD, "choices": ["a", "b", "c"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = make(tmp_path, [GOOD] * 3, unlabelled_file=str(path))
    data.setup()
    assert data.table("train").array("labels").tolist() == [0, 0, 0, -100, -100]
    assert data.unlabelled_rows == data.statistics["train/unlabelled"] == 2
    alone = make(tmp_path, train_file=None, unlabelled_file=str(path))
    alone.setup()
    assert alone.table("train").array("labels").tolist() == [-100, -100]
