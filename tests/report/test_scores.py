"""What models say of the same items is compared item by item, whatever the order of batches."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lmkit
from lmkit.modules import LMModule
from lmkit.report.quality import rows_for
from lmkit.report.scores import Said, compare, say_of_rows, say_of_texts
from lmkit.trimming import trim_vocabulary
from tests import tiny
from tests.cases import CASES, make_trainer

TASKS = {
    case.name: case
    for case in CASES
    if case.name
    in (
        "masked_lm",
        "causal_lm",
        "sequence_classification",
        "regression",
        "token_classification",
        "question_answering",
        "multiple_choice",
        "seq2seq",
    )
}


def trained(name: str, folder: Path) -> LMModule:
    module = TASKS[name].make_module()
    make_trainer(max_steps=2).fit(module, TASKS[name].make_data(folder))
    return module.eval()


def shaken(module: LMModule, scale: float = 0.3) -> LMModule:
    """A copy that says something else."""
    other = copy.copy(module)
    other.network = copy.deepcopy(module.network)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in other.network.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return other


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def said(kind: str, logits: Any, examples: Any = None, ragged: bool = False) -> Said:
    tensor = torch.as_tensor(logits, dtype=torch.float32)
    numbers = torch.arange(len(tensor)) if examples is None else torch.as_tensor(examples)
    return Said(kind, tensor, numbers, ragged)


def test_classes_are_compared_as_numpy_does() -> None:
    draw = np.random.default_rng(0)
    ours, theirs = draw.normal(size=(50, 7)), draw.normal(size=(50, 7))
    made = compare(said("classes", theirs), said("classes", ours))
    q, p = softmax(theirs), softmax(ours)
    assert made.agreement == pytest.approx((ours.argmax(-1) == theirs.argmax(-1)).mean())
    assert made.divergence == pytest.approx((q * np.log(q / p)).sum(-1).mean(), rel=1e-5)
    assert made.items == 50


def test_labels_and_values_are_compared_as_numpy_does() -> None:
    draw = np.random.default_rng(1)
    ours, theirs = draw.normal(size=(40, 3)), draw.normal(size=(40, 3))
    made = compare(said("labels", theirs), said("labels", ours))
    q, p = 1 / (1 + np.exp(-theirs)), 1 / (1 + np.exp(-ours))
    gaps = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
    assert made.agreement == ((ours > 0) == (theirs > 0)).all(-1).mean()
    # Of the labels of an item the mean, as distillation has it.
    assert made.divergence == pytest.approx(gaps.mean(-1).mean(), rel=1e-5)
    values = compare(said("value", theirs[:, :1]), said("value", ours[:, :1]))
    assert values.agreement is None
    assert values.divergence == pytest.approx(((ours - theirs)[:, 0] ** 2).mean(), rel=1e-5)


def test_a_model_agrees_with_itself_and_a_constant_changes_nothing() -> None:
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    same = compare(said("classes", logits), said("classes", logits))
    assert (same.agreement, same.items) == (1.0, 20) and same.divergence == 0.0
    moved = compare(said("classes", logits), said("classes", logits + 4.0))
    assert moved.agreement == 1.0 and moved.divergence == pytest.approx(0.0, abs=1e-6)


def test_items_with_classes_of_their_own_are_filled_up() -> None:
    gone = -torch.inf
    dense = said("classes", [[1.0, 0.0, gone], [0.0, 2.0, 1.0]], ragged=True)
    other = said("classes", [[0.5, 0.5, gone, gone], [0.0, 1.0, 2.0, gone]], ragged=True)
    made = compare(dense, other)
    q = [softmax(np.array([1.0, 0.0])), softmax(np.array([0.0, 2.0, 1.0]))]
    p = [softmax(np.array([0.5, 0.5])), softmax(np.array([0.0, 1.0, 2.0]))]
    expected = np.mean([(a * np.log(a / b)).sum() for a, b in zip(q, p, strict=True)])
    assert made.divergence == pytest.approx(expected, rel=1e-5)
    assert made.agreement == 0.5


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (said("labels", torch.zeros(3, 2)), "one model says classes and the other labels"),
        (said("classes", torch.zeros(3, 2), [0, 1, 3]), "it reads other tokens, and the items are"),
        (said("classes", torch.zeros(2, 2)), "it reads other tokens"),
        (said("classes", torch.zeros(3, 4)), "it has 4 classes or tokens to choose from, and the"),
    ],
)
def test_what_is_not_the_same_is_not_compared(other: Said, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(said("classes", torch.zeros(3, 2)), other)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_says_its_scores_of_each_example(name: str, tmp_path: Path) -> None:
    module = trained(name, tmp_path)
    rows = rows_for(TASKS[name].make_data(tmp_path), module)
    made = say_of_rows(module, rows, "val")
    assert made.examples.tolist() == sorted(made.examples.tolist())
    assert set(made.examples.tolist()) == set(range(rows.row_count("val"))) or name in (
        "masked_lm",
        "question_answering",
    )
    assert compare(made, made).divergence == 0.0
    other = compare(made, say_of_rows(shaken(module), rows, "val"))
    assert other.divergence > 0 and other.items == len(made.logits)


@pytest.mark.parametrize("name", ["masked_lm", "token_classification"])
def test_only_what_has_a_label_is_an_item(name: str, tmp_path: Path) -> None:
    module = trained(name, tmp_path)
    rows = rows_for(TASKS[name].make_data(tmp_path, eval_batch_size=5), module)
    made = say_of_rows(module, rows, "val")
    labelled = [int((batch["labels"] != -100).sum()) for batch in rows.val_dataloader()]
    assert len(made.logits) == sum(labelled) > 0


@pytest.mark.parametrize("name", ["sequence_classification", "multiple_choice", "causal_lm"])
def test_the_order_of_batches_does_not_count(name: str, tmp_path: Path) -> None:
    module = trained(name, tmp_path)
    data = TASKS[name].make_data(tmp_path)
    one = say_of_rows(module, rows_for(data, module), "val")
    again = rows_for(TASKS[name].make_data(tmp_path, eval_batch_size=3), module)
    other = say_of_rows(module, again, "val")
    assert torch.equal(one.examples, other.examples)
    real = one.logits.isfinite()
    assert (one.logits[real] - other.logits[real]).abs().max() < 1e-5


def test_only_the_examples_that_are_wanted_are_kept(tmp_path: Path) -> None:
    module = trained("token_classification", tmp_path)
    rows = rows_for(TASKS["token_classification"].make_data(tmp_path), module)
    whole = say_of_rows(module, rows, "val")
    wanted = torch.tensor([1, 4])
    some = say_of_rows(module, rows, "val", wanted)
    mine = torch.isin(whole.examples, wanted)
    assert torch.equal(some.logits, whole.logits[mine]) and set(some.examples.tolist()) == {1, 4}


def test_a_trimmed_model_is_compared_by_its_own_tokens(tmp_path: Path) -> None:
    module = trained("sequence_classification", tmp_path)
    folder = lmkit.export(module, tmp_path / "dense")
    small = lmkit.load(folder)
    trim_vocabulary(small, tiny.sentences(60))
    data = TASKS["sequence_classification"].make_data(tmp_path)
    dense = say_of_rows(module, rows_for(data, module), "val")
    made = compare(dense, say_of_rows(small, rows_for(data, small), "val"))
    assert (made.agreement, made.items) == (1.0, len(dense.logits))
    assert made.divergence == pytest.approx(0.0, abs=1e-9)
    assert data.tokenizer is None  # what was given stays as it is


def reference(module: LMModule, text: str) -> Tensor:
    assert module.tokenizer is not None
    ids = torch.tensor([module.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        logits: Tensor = module.network(input_ids=ids).logits
    return logits[0]


@pytest.mark.parametrize(
    "name", ["masked_lm", "causal_lm", "sequence_classification", "regression"]
)
def test_plain_texts_are_read_one_like_the_other(name: str, tmp_path: Path) -> None:
    module = trained(name, tmp_path)
    texts = tiny.sentences(20, seed=9)
    made = say_of_texts(module, texts)
    per_text = name in ("sequence_classification", "regression")
    assert made.kind == ("value" if name == "regression" else "classes")
    for number, text in enumerate(texts):
        mine = made.logits[made.examples == number]
        expected = reference(module, text)
        expected = expected.unsqueeze(0) if per_text else expected
        assert mine.shape == expected.shape and (mine - expected).abs().max() < 1e-5
    assert compare(made, say_of_texts(shaken(module), texts)).divergence > 0


@pytest.mark.parametrize("name", ["question_answering", "multiple_choice", "seq2seq"])
def test_tasks_with_more_than_a_text_want_data(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has more to a row than one text: give a data module"):
        say_of_texts(trained(name, tmp_path), ["a text"])


def test_of_a_large_vocabulary_some_examples_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = trained("causal_lm", tmp_path)
    rows = rows_for(TASKS["causal_lm"].make_data(tmp_path, eval_batch_size=2), module)
    whole = say_of_rows(module, rows, "val")
    monkeypatch.setattr("lmkit.report.scores._MOST", 1)
    some = say_of_rows(module, rows, "val")
    assert 0 < len(some.logits) < len(whole.logits)
    both = say_of_rows(module, rows, "val", some.examples.unique())
    assert torch.equal(both.logits, some.logits)
