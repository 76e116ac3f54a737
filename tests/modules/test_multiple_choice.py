"""Multiple choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from transformers import AutoModelForMultipleChoice

import lmkit
from lmkit.datamodules.multiple_choice import MultipleChoiceDataModule
from lmkit.modules.multiple_choice import MultipleChoiceModule
from lmkit.types import Batch
from tests import tiny
from tests.cases import make_trainer
from tests.choices import write_choices


def make(model: str = "bert", vocab: int = 99, **kwargs: Any) -> MultipleChoiceModule:
    torch.manual_seed(0)
    module = MultipleChoiceModule({**tiny.MASKED[model], "vocab_size": vocab}, **kwargs)
    module.configure_model()
    return module.eval()


def batch_of(rows: int = 3, choices: int = 4, length: int = 9) -> Batch:
    flat = tiny.masked_batch(rows * choices, length)
    shape = (rows, choices, length)
    flat["attention_mask"] = torch.ones_like(flat["attention_mask"])
    flat["attention_mask"][::3, 6:] = 0
    types = (torch.arange(length) > 4).long() * flat["attention_mask"]
    return {
        "input_ids": flat["input_ids"].reshape(shape),
        "attention_mask": flat["attention_mask"].reshape(shape),
        "token_type_ids": types.reshape(shape),
        "choice_mask": torch.ones(rows, choices, dtype=torch.int64),
        "labels": torch.arange(rows) % choices,
        "index": torch.arange(rows),
    }


@pytest.mark.parametrize("name", tiny.MASKED)
def test_loss_and_gradient_are_those_of_transformers(name: str) -> None:
    module, batch = make(name), batch_of()
    output = module.step(batch)
    output.loss.backward()
    ours = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    names = {"input_ids", "attention_mask", "labels"}
    if name not in ("distilbert", "modernbert"):  # these know no types
        names.add("token_type_ids")
    theirs = module.network(**{n: batch[n] for n in names})
    theirs.loss.backward()
    assert output.items == 3 and torch.allclose(output.loss, theirs.loss, atol=1e-6)
    for n, p in module.named_parameters():
        if p.grad is not None:
            assert torch.allclose(ours[n], p.grad, atol=1e-6), n


def test_permuting_the_choices_permutes_the_logits() -> None:
    module, batch = make(), batch_of()
    order = torch.tensor([2, 0, 3, 1])
    turned = {n: t[:, order] if t.ndim > 1 else t for n, t in batch.items()} | {
        "labels": order.argsort()[batch["labels"]]
    }
    with torch.no_grad():
        ours, theirs = module.step(batch), module.step(turned)
    assert ours.logits is not None and theirs.logits is not None
    assert torch.allclose(ours.logits[:, order], theirs.logits, atol=1e-6)
    assert torch.allclose(ours.loss, theirs.loss, atol=1e-6)


def test_choices_that_are_none_change_nothing() -> None:
    module, batch = make(), batch_of()
    padded = {
        n: torch.cat([t, torch.zeros_like(t[:, :2])], 1) if t.ndim > 1 else t
        for n, t in batch.items()
    }
    padded["attention_mask"][:, 4:, 0] = 1
    with torch.no_grad():
        ours, theirs = module.step(batch), module.step(padded)
    assert theirs.logits is not None and theirs.logits[:, 4:].isneginf().all()
    assert torch.allclose(ours.loss, theirs.loss, atol=1e-6)


def test_without_a_label_there_is_no_loss_and_no_gradient() -> None:
    module, batch = make(), batch_of()
    batch["choice_mask"][:, 1:] = 0  # as of fillers
    output = module.step({**batch, "labels": torch.full((3,), -100)})
    output.loss.backward()
    assert output.loss == 0 and output.items == 0
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


def fitted(folder: Path, steps: int = 2, **kwargs: Any) -> tuple[MultipleChoiceModule, Any]:
    seed_everything(5)
    data = MultipleChoiceDataModule(
        train_file=str(write_choices(folder / "train.jsonl", 32)),
        val_file=str(write_choices(folder / "val.jsonl", 9, seed=1)),
        predict_file=str(write_choices(folder / "ask.jsonl", 5, seed=2, labelled=False)),
        tokenizer=tiny.tokenizer_folder(folder / "tokenizer"),
        max_length=32,
        batch_size=4,
        seed=3,
    )
    module = MultipleChoiceModule(tiny.MASKED["bert"], learning_rate=1e-3, **kwargs)
    make_trainer(max_steps=steps).fit(module, data)
    return module, data


def test_metrics_do_not_depend_on_batches_or_ranks(tmp_path: Path) -> None:
    module, data = fitted(tmp_path)
    (one,) = make_trainer().validate(module, data, verbose=False)
    assert {"val/loss", "val/accuracy"} <= set(one)
    data.eval_batch_size = 2
    (small,) = make_trainer().validate(module, data, verbose=False)
    (two,) = make_trainer(devices=2, strategy="ddp_fork").validate(module, data, verbose=False)
    assert small == pytest.approx(one, rel=1e-5) and two == pytest.approx(one, rel=1e-5)


def test_a_test_counts_the_places_of_the_choices(tmp_path: Path) -> None:
    module, data = fitted(tmp_path)
    (found,) = make_trainer().test(module, data, verbose=False)
    rows = module.tables()["places"]
    assert sum(row["right"] for row in rows) == sum(row["chosen"] for row in rows) == 9
    hits = sum(row["accuracy"] * row["right"] for row in rows)
    assert hits == pytest.approx(9 * found["test/accuracy"])
    assert set(module.figures()) == {"places"}


def test_an_export_chooses_as_the_module_does(tmp_path: Path) -> None:
    module, data = fitted(tmp_path)
    folder = lmkit.export(module, tmp_path / "out")
    plain = AutoModelForMultipleChoice.from_pretrained(folder).eval()
    rows = [row for b in make_trainer().predict(module, data) or [] for row in b]  # type: ignore[union-attr]
    assert len(rows) == 8  # of which three are fillers
    for number in range(5):
        asked = data.inputs(number)
        words = [f"which word ? {choice}" for choice in asked["choices"]]
        rows_in = module.tokenizer(
            [asked["context"]] * len(words),
            words,
            padding=True,
            return_tensors="pt",
            return_token_type_ids=True,
        )
        with torch.no_grad():
            logits = plain(**{name: t.unsqueeze(0) for name, t in rows_in.items()}).logits[0]
        assert rows[number]["probabilities"] == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)
        found = module(asked["question"], asked["choices"], asked["context"])
        assert found["probabilities"] == pytest.approx(rows[number]["probabilities"], abs=1e-5)
        assert found["answer"] == asked["choices"][rows[number]["choice"]]


def test_forward_takes_lists_and_refuses_uneven_ones() -> None:
    module = make(vocab=300)
    module.tokenizer = tiny.tokenizer()
    one = module("who ?", ["a fox", "a dog"])
    assert module(["who ?"], [["a fox", "a dog"]]) == [one]
    with pytest.raises(ValueError, match="1 questions, 2 lists of choices and 1 contexts"):
        module(["who ?"], [["a", "b"], ["c", "d"]])
