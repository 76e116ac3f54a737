"""Windows of questions as tables and batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lmkit.datamodules.question_answering import QuestionAnsweringDataModule
from lmkit.functional.question_answering import codes_to_text
from tests import tiny
from tests.squad import write_questions


def make(folder: Path, **kwargs: Any) -> QuestionAnsweringDataModule:
    tiny.tokenizer_folder(folder / "tokenizer")
    settings: dict[str, Any] = {
        "train_file": str(write_questions(folder / "train.json", 24)),
        "val_file": str(write_questions(folder / "val.json", 9, seed=1, none=3)),
        "tokenizer": str(folder / "tokenizer"),
        "max_length": 32,
        "doc_stride": 6,
        "max_question_length": 10,
        "batch_size": 4,
        "seed": 3,
    }
    return QuestionAnsweringDataModule(**{**settings, **kwargs})


def asked(path: Path) -> list[dict[str, Any]]:
    document = json.loads(path.read_text())
    paragraphs = [p for article in document["data"] for p in article["paragraphs"]]
    return [{**qa, "context": p["context"]} for p in paragraphs for qa in p["qas"]]


def test_gold_labels_point_at_the_gold_text(tmp_path: Path) -> None:
    data = make(tmp_path)
    data.setup()
    rows = asked(tmp_path / "train.json")
    table, held = data.table("train"), set()
    for row in range(len(table)):
        number = int(table.array("question")[row])
        answers = rows[number]["answers"]
        start, end = (int(table.array(f"{e}_positions")[row]) for e in ("start", "end"))
        if start == table.array("null_positions")[row]:
            assert end == start
            continue
        first, last = table.ragged("char_start")[row][start], table.ragged("char_end")[row][end]
        assert rows[number]["context"][first:last] == answers[0]["text"]
        held.add(number)
    assert held == set(range(len(rows)))


def test_windows_cover_every_token_of_the_context(tmp_path: Path) -> None:
    data = make(tmp_path)
    data.setup()
    table, rows = data.table("val"), asked(tmp_path / "val.json")
    seen: dict[int, set[tuple[int, int]]] = {}
    for row in range(len(table)):
        columns = (table.ragged(name)[row].tolist() for name in ("char_start", "char_end"))
        seen.setdefault(int(table.array("question")[row]), set()).update(zip(*columns, strict=True))
    assert len(table) > len(rows)
    for number, found in seen.items():
        context = rows[number]["context"]
        covered = {place for start, end in found if start >= 0 for place in range(start, end)}
        assert covered == {i for i, c in enumerate(context) if not c.isspace()}


def test_batches_carry_texts_and_fillers_carry_nothing(tmp_path: Path) -> None:
    data = make(tmp_path, val_file=str(write_questions(tmp_path / "two.json", 3, none=3)))
    rows = asked(tmp_path / "two.json")
    for batch in data.val_dataloader():
        for place, number in enumerate(batch["question"].tolist()):
            texts = [codes_to_text(codes) for codes in batch["answer_codes"][place]]
            covered = codes_to_text(batch["context_codes"][place])
            if batch["index"][place] < 0:
                assert number == -1 and not any(texts) and not covered
                assert batch["start_positions"][place] == batch["end_positions"][place] == -100
                continue
            begin = int(batch["context_start"][place])
            assert rows[number]["context"][begin:].startswith(covered)
            assert [t for t in texts if t] == [a["text"] for a in rows[number]["answers"]]
            if not rows[number]["answers"]:
                assert batch["start_positions"][place] == batch["null_positions"][place]


def test_training_batches_hold_windows_and_labels_alone(tmp_path: Path) -> None:
    batch = next(iter(make(tmp_path).train_dataloader()))
    assert set(batch) == {
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "start_positions",
        "end_positions",
        "index",
    }


def test_all_windows_of_a_question_are_in_one_batch_of_a_prediction(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "ask.json", 5, seed=4, labelled=False)
    data = make(tmp_path, predict_file=str(path), train_file=None, val_file=None, batch_size=2)
    batches = list(data.predict_dataloader())
    assert [batch["index"].tolist() for batch in batches] == [[0, 1], [2, 3], [4, -1]]
    windows = data.table("predict").array("question")
    for batch in batches:
        for place, number in enumerate(batch["index"].tolist()):
            count = int((batch["owner"] == place).sum())
            assert count == max(1, int((windows == number).sum()))
            assert (batch["question"][batch["owner"] == place] == number).all()
    assert data.inputs(3) == {k: asked(path)[3][k] for k in ("id", "question")}


def test_questions_and_those_without_an_answer_are_counted(tmp_path: Path) -> None:
    data = make(tmp_path)
    data.setup()
    assert data.statistics["train/questions"] == 24 and data.statistics["train/unanswerable"] == 0
    assert data.statistics["val/questions"] == 9 and data.statistics["val/unanswerable"] == 3
    assert data.has_unanswerable and data.network_settings() == {"num_labels": 2}


def test_an_answer_that_is_not_in_its_context_stops_the_run_or_is_skipped(tmp_path: Path) -> None:
    document = json.loads(write_questions(tmp_path / "bad.json", 4).read_text())
    wrong = document["data"][0]["paragraphs"][0]["qas"][0]
    wrong["answers"] = [{"text": "unicorn", "answer_start": 0}]
    (tmp_path / "bad.json").write_text(json.dumps(document, indent=1))
    path = str(tmp_path / "bad.json")
    with pytest.raises(
        ValueError, match=rf"bad\.json, line \d+: question {wrong['id']!r}.*unicorn"
    ):
        make(tmp_path, train_file=path).setup()
    data = make(tmp_path, train_file=path, on_bad_row="skip")
    data.setup()
    assert data.statistics["train/questions"] == 3


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"doc_stride": 32}, "doc_stride must lie in"),
        ({"doc_stride": 25}, "windows that share doc_stride=25 need more"),
        ({"question_column": "ask"}, "no column 'ask' .question_column"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    settings: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=fault):
        make(tmp_path, **settings).setup()


def test_the_order_of_an_epoch_is_that_of_its_seed(tmp_path: Path) -> None:
    ours, theirs = ([b["index"].tolist() for b in make(tmp_path).train_dataloader()] for _ in "ab")
    assert ours == theirs


def test_xquad_is_read_split_and_labelled(data_folder: Path, tmp_path: Path) -> None:
    path = data_folder / "xquad-en" / "xquad.en.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    data = make(tmp_path, train_file=str(path), val_file=None, max_length=384, doc_stride=128)
    data.setup()
    counts = [int(data.statistics[f"{split}/questions"]) for split in ("train", "val")]
    assert sum(counts) == 1190 and torch.tensor(counts).min() > 80


def test_no_context_is_on_both_sides_of_the_hold_out(tmp_path: Path) -> None:
    data = make(tmp_path, val_file=None, val_fraction=0.3)
    data.setup()
    counts = [int(data.statistics[f"{split}/questions"]) for split in ("train", "val")]
    assert sum(counts) == 24 and all(count % 2 == 0 for count in counts) and min(counts) > 0


@pytest.mark.parametrize("labelled", [True, False])
def test_questions_whose_answers_are_not_known_stand_behind_the_others(
    labelled: bool, tmp_path: Path
) -> None:
    path = write_questions(tmp_path / "more.json", 5, seed=4, none=2, labelled=labelled)
    plain, data = make(tmp_path), make(tmp_path, unlabelled_file=str(path))
    for one in (plain, data):
        one.setup()
    before, after = plain.table("train"), data.table("train")
    count, more = len(before), data.unlabelled_rows
    assert len(after) == count + more and more >= 5
    for name in ("start_positions", "end_positions"):
        assert after.array(name)[:count].tolist() == before.array(name).tolist()
        assert (after.array(name)[count:] == -100).all()
    numbers = after.array("question")[count:]
    assert sorted(set(numbers.tolist())) == list(range(24, 29))
    assert data.statistics["train/questions"] == 29 and data.statistics["train/unanswerable"] == 0
    assert data.statistics["train/unlabelled"] == more
    val = [{n: d.statistics[n] for n in d.statistics if n[:3] == "val"} for d in (plain, data)]
    assert val[0] == val[1]
    assert data.fingerprint != plain.fingerprint


def test_questions_whose_answers_are_not_known_are_enough(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "more.json", 5, seed=4)
    data = make(tmp_path, train_file=None, val_file=None, unlabelled_file=str(path))
    data.setup()
    assert len(data.table("train")) == data.unlabelled_rows and not data.has_unanswerable
    assert data.val_dataloader() == []
