"""A teacher whose words are read from disk teaches as one that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import lmkit
from lmkit.modules import AttentionLoss, HiddenLoss, LogitLoss, RelationLoss
from lmkit.modules.teacher import Teacher
from tests import lessons, tiny
from tests.cases import make_trainer, weights
from tests.lessons import Seen, fit

NAME = "sequence_classification"
#: Those whose rows are the same in each epoch.
FIXED = [n for n in lessons.LESSONS if n not in ("masked_lm", "chunks", "denoising")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of a teacher had."""
    calls: list[int] = []
    run = Teacher.run

    def counted(self: Teacher, batch: Any, places: Any) -> Any:
        calls.append(len(batch["input_ids"]))
        return run(self, batch, places)

    monkeypatch.setattr(Teacher, "run", counted)
    return calls


def hidden(name: str) -> list[Any]:
    stack: Any = "decoder" if name == "seq2seq" else ""
    return [LogitLoss(), HiddenLoss(stack=stack), RelationLoss(stack=stack)]


def fitted(name: str, folder: Path, **settings: Any) -> tuple[Any, list[float], Any]:
    seen, how = Seen(), {"losses": hidden(name), **settings}
    data = how.pop("data", {})
    steps = {k: how.pop(k) for k in ("max_steps", "val_check_interval", "ckpt_path") if k in how}
    module = lessons.distill(name, pupil={"dropout": 0.1}, **how)
    trainer = fit(module, lessons.data(name, folder, **data), seen, **{"max_steps": 3, **steps})
    return module, [loss.item() for loss in seen.losses], trainer


@pytest.mark.parametrize("name", FIXED)
def test_what_is_read_is_what_was_said(name: str, tmp_path: Path) -> None:
    how = {"val_check_interval": 3}
    live, losses, first = fitted(name, tmp_path, **how)
    cached, again, second = fitted(name, tmp_path, cache=True, cache_precision="fp32", **how)
    assert again == pytest.approx(losses, rel=1e-4)
    ours, theirs = weights(live), weights(cached)
    assert all(torch.allclose(ours[k], theirs[k], atol=1e-3) for k in ours)
    for field in ("val/teacher_divergence", "val/agreement", "val/loss"):
        if field in first.callback_metrics:
            expected = float(first.callback_metrics[field])
            assert float(second.callback_metrics[field]) == pytest.approx(expected, rel=1e-3)


def test_half_precision_is_near(tmp_path: Path) -> None:
    _, losses, _ = fitted(NAME, tmp_path)
    _, again, _ = fitted(NAME, tmp_path, cache=True)
    assert again == pytest.approx(losses, rel=2e-3) and again != losses


def test_a_teacher_reads_each_row_once_and_is_gone(tmp_path: Path, asked: list[int]) -> None:
    module, losses, _ = fitted(NAME, tmp_path, cache=True)
    assert not module.teachers._live
    assert sum(asked) >= 60 + 13
    asked.clear()
    _, again, _ = fitted(NAME, tmp_path, cache=True, max_steps=3)
    assert asked == [] and again == losses


def test_the_order_of_the_rows_is_not_that_of_the_store(tmp_path: Path, asked: list[int]) -> None:
    fitted(NAME, tmp_path, cache=True)
    asked.clear()
    data = {"seed": 11, "batch_size": 4}
    _, cached, _ = fitted(NAME, tmp_path, cache=True, cache_precision="fp16", data=data)
    assert asked == []
    _, live, _ = fitted(NAME, tmp_path, data=data)
    assert cached == pytest.approx(live, rel=2e-3)


def test_another_teacher_or_other_rows_are_read_anew(tmp_path: Path, asked: list[int]) -> None:
    fitted(NAME, tmp_path, cache=True)
    for how in (
        {"teacher": lessons.teacher(NAME, seed=8)},
        {"cache_precision": "fp32"},
        {"losses": [HiddenLoss(layers="last")]},
        {"data": {"max_length": 12}},
    ):
        asked.clear()
        fitted(NAME, tmp_path, cache=True, **how)
        assert asked, how


def test_a_test_is_not_told_what_was_said_of_the_validation(tmp_path: Path) -> None:
    """Its rows have the same numbers."""
    rows = ["text,label", *(f"{text},moons" for text in tiny.sentences(9, seed=5))]
    (tmp_path / "test.csv").write_text("\n".join(rows) + "\n")
    found = []
    for cache in (False, True):
        module, _, _ = fitted(NAME, tmp_path, cache=cache, cache_precision="fp32", losses=None)
        data = lessons.data(NAME, tmp_path, test_file=str(tmp_path / "test.csv"))
        (metrics,) = make_trainer().test(module, data, verbose=False)
        names = ("teacher_divergence", "agreement", "retention")
        found.append({n: metrics[f"test/{n}"] for n in names if f"test/{n}" in metrics})
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_a_resumed_run_reads_the_same(tmp_path: Path) -> None:
    class SaveAt(lessons.Seen):
        def on_train_batch_end(self, trainer: Any, *given: Any) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    whole = lessons.distill(NAME, pupil={"dropout": 0.1}, cache=True, losses=hidden(NAME))
    fit(whole, lessons.data(NAME, tmp_path), SaveAt(), max_steps=4)
    resumed, _, _ = fitted(NAME, tmp_path, cache=True, max_steps=4, ckpt_path=tmp_path / "a.ckpt")
    ours, theirs = weights(whole), weights(resumed)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_rows_without_a_label_are_read_too(tmp_path: Path) -> None:
    found = []
    for cache in (False, True):
        seen = Seen()
        module = lessons.distill(NAME, cache=cache, cache_precision="fp32", losses=hidden(NAME))
        fit(module, lessons.half_labelled(NAME, tmp_path), seen, max_steps=5)
        found.append([loss.item() for loss in seen.losses])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_the_most_probable_tokens_and_the_mass_of_the_others(tmp_path: Path) -> None:
    name, losses = "causal_lm", [LogitLoss(weight=1.0)]
    how: dict[str, Any] = {"losses": losses, "hard_weight": 0.0, "max_steps": 1}
    _, whole, _ = fitted(name, tmp_path, **how)
    how |= {"cache": True, "cache_precision": "fp32"}
    _, all_of_them, _ = fitted(name, tmp_path, cache_top_k=300, **how)
    assert all_of_them == pytest.approx(whole, rel=1e-4)
    _, few, _ = fitted(name, tmp_path, cache_top_k=5, **how)
    # What is lumped together can only bring two distributions nearer.
    assert 0 < few[0] < whole[0]
    with pytest.raises(ValueError, match="with cache_top_k the loss is the forward divergence"):
        fitted(name, tmp_path, **{**how, "losses": [LogitLoss(temperature=2.0)]}, cache_top_k=5)


@pytest.mark.parametrize("name", ["masked_lm", "denoising"])
def test_rows_that_are_drawn_anew_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="draws its rows anew in each epoch"):
        fit(lessons.distill(name, cache=True), lessons.data(name, tmp_path))


def test_attention_maps_are_not_written_down(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="attention maps are not written down"):
        fitted(NAME, tmp_path, cache=True, losses=[AttentionLoss()])


def test_classes_come_from_the_data_though_the_teacher_is_asked_before(tmp_path: Path) -> None:
    """The network is not built before the data say which classes there are."""
    student = lmkit.modules.SequenceClassificationModule(tiny.MASKED["bert"])
    module = lmkit.modules.DistillationModule(student, lessons.teacher(NAME), cache=True)
    trainer = fit(module, lessons.data(NAME, tmp_path))
    assert set(module.network.config.label2id) == {"fox", "moons", "trees"}
    assert trainer.callback_metrics["train/loss"].isfinite()


def test_a_teacher_of_other_tokens_reads_whole_texts_by_its_own(tmp_path: Path) -> None:
    folder = Path(lessons.teacher(NAME, vocab_size=300, seed=9))
    other = tmp_path / "other"
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    network.save_pretrained(other)
    tiny.tokenizer("bpe").save_pretrained(other)
    how: dict[str, Any] = {"teacher": str(other), "losses": [LogitLoss()]}
    module, losses, _ = fitted(NAME, tmp_path, cache=True, cache_precision="fp32", **how)
    assert all(loss > 0 for loss in losses) and len(module.tokenizer) != 300
    with pytest.raises(ValueError, match="has another tokenizer than the student"):
        fitted(NAME, tmp_path, **how)
    with pytest.raises(ValueError, match="has another tokenizer than the student"):
        fitted(NAME, tmp_path, cache=True, **{**how, "losses": [HiddenLoss()]})


def test_the_most_probable_classes_are_the_students_own(tmp_path: Path) -> None:
    """The teacher has them in reverse."""
    losses = [LogitLoss(weight=1.0, temperature=1.0)]
    how: dict[str, Any] = {"losses": losses, "hard_weight": 0.0, "max_steps": 1}
    _, whole, _ = fitted(NAME, tmp_path, **how)
    how |= {"cache": True, "cache_precision": "fp32"}
    # Of three classes, two and the mass of the rest are all.
    _, top, _ = fitted(NAME, tmp_path, cache_top_k=2, **how)
    assert top == pytest.approx(whole, rel=1e-4)


def test_the_most_probable_tokens_are_of_one_vocabulary(tmp_path: Path) -> None:
    teacher = lessons.teacher("causal_lm", vocab_size=316)
    how: dict[str, Any] = {"teacher": teacher, "cache": True, "losses": [LogitLoss()]}
    with pytest.raises(ValueError, match="cache_top_k needs one size of the vocabulary"):
        fitted("causal_lm", tmp_path, cache_top_k=5, **how)
    _, losses, _ = fitted("causal_lm", tmp_path, **how)
    assert all(loss > 0 for loss in losses)
