"""Extractive question answering."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from transformers import AutoModelForQuestionAnswering

import lmkit
from lmkit.datamodules.question_answering import QuestionAnsweringDataModule
from lmkit.functional.question_answering import score_answer, score_answer_or_none
from lmkit.modules.question_answering import QuestionAnsweringModule
from lmkit.types import Batch, StepOutput
from tests import tiny
from tests.cases import make_trainer
from tests.squad import write_questions

MODELS = {
    **tiny.MASKED,
    "xlnet": {"model_type": "xlnet", "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},
}


def make(model: str = "bert", vocab: int = 99, **kwargs: Any) -> QuestionAnsweringModule:
    torch.manual_seed(0)
    module = QuestionAnsweringModule({**MODELS[model], "vocab_size": vocab}, **kwargs)
    module.configure_model()
    return module


def batch_of(rows: int = 4, length: int = 12, padded: bool = True) -> Batch:
    batch = tiny.masked_batch(rows, length)
    if not padded:
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    del batch["labels"]
    types = (torch.arange(length) > 4).long().expand(rows, -1)
    start = torch.arange(rows) % 5 + 2
    labels = {"start_positions": start, "end_positions": start + 1}
    return {**batch, **labels, "token_type_ids": types * batch["attention_mask"]}


def data_on(folder: Path, **kwargs: Any) -> QuestionAnsweringDataModule:
    tiny.tokenizer_folder(folder / "tokenizer")
    settings: dict[str, Any] = {
        "tokenizer": str(folder / "tokenizer"),
        "max_length": 32,
        "doc_stride": 6,
        "max_question_length": 10,
        "batch_size": 4,
        "seed": 3,
    }
    return QuestionAnsweringDataModule(**{**settings, **kwargs})


@pytest.mark.parametrize("name", MODELS)
def test_without_padding_loss_and_gradient_are_those_of_transformers(name: str) -> None:
    module, batch = make(name).eval(), batch_of(padded=False)
    output = module.step(batch)
    output.loss.backward()
    ours = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    names = {"input_ids", "attention_mask", "start_positions", "end_positions"}
    if name not in ("distilbert", "modernbert"):  # these know no types
        names.add("token_type_ids")
    theirs = module.network(**{n: batch[n] for n in names})
    theirs.loss.backward()
    assert output.items == 4 and torch.allclose(output.loss, theirs.loss, atol=1e-6)
    for n, p in module.named_parameters():
        if p.grad is not None:
            assert torch.allclose(ours[n], p.grad, atol=1e-6), n


@pytest.mark.parametrize("name", ["bert", "roberta", "xlnet"])
def test_the_width_of_the_padding_changes_no_loss(name: str) -> None:
    module, batch = make(name).eval(), batch_of()
    wide = {n: t for n, t in batch.items() if t.ndim == 1}
    for n in ("input_ids", "attention_mask", "token_type_ids"):
        wide[n] = torch.cat([batch[n], torch.zeros(4, 5, dtype=torch.int64)], 1)
    with torch.no_grad():
        assert torch.allclose(module.step(batch).loss, module.step(wide).loss, atol=1e-6)


def test_a_batch_without_a_label_has_no_loss_and_no_gradient() -> None:
    module, batch = make(), batch_of()
    none = torch.full((4,), -100)
    output = module.step({**batch, "start_positions": none, "end_positions": none})
    output.loss.backward()
    assert output.loss == 0 and output.items == 0
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


def gold_logits(batch: Batch, shape: tuple[int, ...]) -> torch.Tensor:
    logits = torch.zeros(shape)
    for row, ends in enumerate(zip(batch["start_positions"], batch["end_positions"], strict=True)):
        # A window that does not hold the answer is unsure of its best span.
        sure = 9.0 if ends[0] != batch["null_positions"][row] else 0.5
        for side, end in enumerate(ends):
            logits[row, max(int(end), 0), side] = sure
    return logits.masked_fill(batch["attention_mask"].unsqueeze(-1) == 0, -torch.inf)


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_gold_logits_score_one(threshold: float | None, tmp_path: Path) -> None:
    path = write_questions(tmp_path / "val.json", 13, none=0 if threshold is None else 4)
    data = data_on(tmp_path, val_file=str(path))
    module = make(vocab=300, null_threshold=threshold)
    metrics, tables = module.build_metrics(), module.build_tables()
    for batch in data.val_dataloader():
        logits = gold_logits(batch, (*batch["input_ids"].shape, 2))
        output = StepOutput(torch.tensor(0.0), torch.tensor(1), logits)
        module.update_metrics(metrics, output, batch)
        module.update_tables(tables, output, batch)
    assert metrics["exact_match"].compute() == metrics["f1"].compute() == 1.0
    figures: Any = tables["answers"].compute()
    counts = {name: values["questions"] for name, values in figures.items()}
    answered = {"all": 13.0, "has_answer": 9.0, "no_answer": 4.0}
    assert counts == ({"all": 13.0} if threshold is None else answered)


def fitted(folder: Path, **kwargs: Any) -> tuple[QuestionAnsweringModule, Any]:
    seed_everything(5)
    train = write_questions(folder / "train.json", 12)
    val = write_questions(folder / "val.json", 9, seed=2, none=kwargs.pop("none", 0))
    data = data_on(folder, train_file=str(train), val_file=str(val), eval_batch_size=2)
    module = QuestionAnsweringModule(tiny.MASKED["bert"], learning_rate=1e-3, **kwargs)
    trainer = make_trainer(max_steps=2)
    trainer.fit(module, data)
    return module, (trainer, data)


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_metrics_are_those_of_the_written_answers(threshold: float | None, tmp_path: Path) -> None:
    """Two ways to the same figure: windows scored one by one, and answers of whole questions."""
    module, (_, data) = fitted(
        tmp_path, null_threshold=threshold, none=0 if threshold is None else 3
    )
    (found,) = make_trainer().validate(module, data, verbose=False)
    document = json.loads((tmp_path / "val.json").read_text())
    paragraphs = [p for a in document["data"] for p in a["paragraphs"]]
    asked = [(p["context"], q) for p in paragraphs for q in p["qas"]]
    score = score_answer if threshold is None else score_answer_or_none
    scores = []
    for context, question in asked:
        answer = module(question["question"], context, max_length=32, doc_stride=6)
        if answer["start"] is not None:
            assert context[answer["start"] : answer["end"]] == answer["answer"]
        scores.append(score(answer["answer"], [a["text"] for a in question["answers"]]))
    assert found["val/exact_match"] == pytest.approx(sum(s.exact for s in scores) / len(scores))
    assert found["val/f1"] == pytest.approx(sum(s.f1 for s in scores) / len(scores), abs=1e-6)


def test_two_ranks_give_the_metrics_of_one(tmp_path: Path) -> None:
    module, (_, data) = fitted(tmp_path, null_threshold=0.0, none=3)
    (one,) = make_trainer().validate(module, data, verbose=False)
    trainer = make_trainer(devices=2, strategy="ddp_fork")
    (two,) = trainer.validate(module, data, verbose=False)
    assert two == pytest.approx(one, rel=1e-6)


def test_a_test_has_the_figures_of_questions_with_and_without_an_answer(tmp_path: Path) -> None:
    module, (_, data) = fitted(tmp_path, null_threshold=0.0, none=3)
    (found,) = make_trainer().test(module, data, verbose=False)
    rows = {row["of"]: row for row in module.tables()["answers"]}
    assert [rows[name]["questions"] for name in ("all", "has_answer", "no_answer")] == [9, 6, 3]
    for figure in ("exact_match", "f1"):
        assert rows["all"][figure] == pytest.approx(found[f"test/{figure}"])
    assert set(module.figures()) == {"answers"}


def test_prediction_gives_one_row_a_question(tmp_path: Path) -> None:
    module, _ = fitted(tmp_path, null_threshold=0.0)
    path = write_questions(tmp_path / "ask.json", 5, seed=6, labelled=False)
    batches: Any = make_trainer().predict(
        module, data_on(tmp_path, predict_file=str(path), eval_batch_size=2)
    )
    rows = [row for batch in batches for row in batch]
    assert [len(batch) for batch in batches] == [2, 2, 2]  # the last one is a filler
    document = json.loads(path.read_text())
    contexts = [p["context"] for a in document["data"] for p in a["paragraphs"] for _ in p["qas"]]
    for row, context in zip(rows, contexts, strict=False):
        assert sum(answer["score"] for answer in row["answers"]) == pytest.approx(1.0)
        logits = [answer["logit"] for answer in row["answers"]]
        assert logits == sorted(logits, reverse=True) and len(row["answers"]) == 6
        for answer in row["answers"]:
            if answer["start"] is not None:
                assert context[answer["start"] : answer["end"]] == answer["answer"]
        assert (row["answer"] == "") == (row["null_difference"] > 0)
    places = [[(a["start"], a["end"]) for a in row["answers"]] for row in rows[:5]]
    assert all(len(set(found)) == len(found) for found in places)


def test_an_export_loads_in_plain_transformers_and_answers_as_before(tmp_path: Path) -> None:
    module, _ = fitted(tmp_path, null_threshold=-2.0)
    folder = lmkit.export(module, tmp_path / "out")
    plain = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    ids = torch.randint(5, 99, (2, 9))
    module.eval()
    with torch.no_grad():
        ours, theirs = module.network(ids), plain(ids)
    assert torch.allclose(ours.start_logits, theirs.start_logits, atol=1e-5)
    loaded = QuestionAnsweringModule(str(folder))
    loaded.tokenizer = module.tokenizer
    loaded.configure_model()
    question, context = "fox ?", "the quick brown fox jumps over a lazy dog"
    assert loaded(question, context) == module(question, context)
    assert "null_difference" in loaded(question, context)  # the threshold is in the config
    assert [loaded(question, context)] == loaded([question], [context])


def test_a_classifier_gets_a_head_for_two_ends(tmp_path: Path) -> None:
    data = data_on(tmp_path, train_file=str(write_questions(tmp_path / "t.json", 8)))
    module = QuestionAnsweringModule({**tiny.MASKED["bert"], "num_labels": 3})
    make_trainer(max_steps=1, limit_val_batches=0).fit(module, data)
    assert module.network.qa_outputs.out_features == 2


def test_unanswerable_questions_without_a_threshold_are_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="null_threshold"):
        fitted(tmp_path, none=2)


@pytest.mark.parametrize("setting", ["max_answer_length", "answer_count"])
def test_numbers_outside_their_range_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} must be at least 1, got 0"):
        make(**{setting: 0})


def test_forward_wants_as_many_contexts_as_questions() -> None:
    module = make(vocab=300)
    module.tokenizer = tiny.tokenizer()
    with pytest.raises(ValueError, match="1 questions and 2 contexts"):
        module(["who ?"], ["a", "b"])
    with pytest.raises(ValueError, match="one question and one context"):
        module("who ?", ["a", "b"])
    assert module("who ?", "")["answer"] == ""
