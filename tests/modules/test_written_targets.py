"""Targets that a teacher, or the student itself, has written in place of those of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lmkit.modules import LogitLoss, teacher_texts
from lmkit.modules.written_targets import (
    OWN_WORDS,
    takes_turn,
    with_own_words,
    with_targets,
    write_targets,
)
from tests import lessons
from tests.cases import make_trainer, weights
from tests.lessons import Seen, fit
from tests.modules.test_distillation_losses import divergence

WRITERS = ("seq2seq", "causal_lm")


class Prepared(Callback):
    """Keeps the prepared batches of a fit and what its steps came to."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.batches.append(module._prepared)
        self.losses.append(float(outputs["loss"]))


def start(name: str, folder: Path, **settings: Any) -> tuple[Any, Any]:
    """A fitted student of a task, and a batch of it."""
    module, seen = lessons.student(name, learning_rate=0.0, **settings), Seen()
    fit(module, lessons.data(name, folder), seen, max_steps=1)
    return module.eval(), seen.batches[0]


def greedy(network: Any, ids: torch.Tensor, count: int) -> list[int]:
    """The most probable continuation, one token at a time, up to the end."""
    written: list[int] = []
    for _ in range(count):
        with torch.no_grad():
            logits = network(input_ids=torch.cat([ids, torch.tensor([written]).long()], 1)).logits
        written.append(int(logits[0, -1].argmax()))
        if written[-1] == network.config.eos_token_id:
            break
    return written


def test_a_causal_model_goes_on_with_the_first_part_of_each_row(tmp_path: Path) -> None:
    module, batch = start("causal_lm", tmp_path)
    batch["attention_mask"][1, 9:] = 0
    batch["attention_mask"][2, 1:] = 0
    written = write_targets(module, batch, 0.5, draw=False)
    for row, target in enumerate(written):
        length = int(batch["attention_mask"][row].sum())
        prompt = max(1, length // 2)
        ids = batch["input_ids"][row : row + 1, :prompt]
        assert target == greedy(module.network, ids, length - prompt)
    made = with_targets(module, batch, written, 0.5)
    for row, target in enumerate(written):
        prompt = max(1, int(batch["attention_mask"][row].sum()) // 2)
        whole = batch["input_ids"][row, :prompt].tolist() + target
        assert made["input_ids"][row, : len(whole)].tolist() == whole
        assert int(made["attention_mask"][row].sum()) == len(whole)
        labels = made["labels"][row]
        assert labels[prompt : len(whole)].tolist() == target
        assert (labels[:prompt] == -100).all() and (labels[len(whole) :] == -100).all()


def test_an_encoder_decoder_writes_for_each_source(tmp_path: Path) -> None:
    module, batch = start("seq2seq", tmp_path, beams=1)
    batch = module.prepare(batch)
    written = write_targets(module, batch, 0.5, draw=False)
    network, end = module.network, module.network.config.eos_token_id
    for row, target in enumerate(written):
        real = batch["attention_mask"][row].bool()
        ids = [network.config.decoder_start_token_id]
        while len(ids) - 1 < len(target):
            with torch.no_grad():
                logits = network(
                    input_ids=batch["input_ids"][row : row + 1, real],
                    decoder_input_ids=torch.tensor([ids]),
                ).logits
            ids.append(int(logits[0, -1].argmax()))
        assert target == ids[1:] and (target[-1] == end or len(target) == 16)
    made = with_targets(module, batch, written, 0.5)
    assert [row[row != -100].tolist() for row in made["labels"]] == written
    assert torch.equal(made["input_ids"], batch["input_ids"])


def test_writing_leaves_the_student_in_training(tmp_path: Path) -> None:
    module, batch = start("causal_lm", tmp_path)
    module.train()
    with_own_words(module, batch, 0.5)
    assert module.network.training and all(m.training for m in module.network.modules())


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_written_for_what_fills_up_a_batch(name: str, tmp_path: Path) -> None:
    module, batch = start(name, tmp_path)
    batch = module.prepare(batch)
    batch["index"][2:] = -1
    made = with_own_words(module, batch, 0.5)
    counts = (made["labels"] >= 0).sum(1)
    assert (counts[:2] > 0).all() and not counts[2:].any()


def test_packed_rows_cannot_be_gone_on_with(tmp_path: Path) -> None:
    module = lessons.distill("packed_causal", on_policy=1.0)
    with pytest.raises(ValueError, match="rows that hold several texts cannot be gone on with"):
        fit(module, lessons.data("packed_causal", tmp_path))


@pytest.mark.parametrize("settings", [{"on_policy": 0.5}, {"sequence_level": True}])
def test_a_task_that_writes_no_text_is_named(settings: dict[str, Any], tmp_path: Path) -> None:
    module = lessons.distill("sequence_classification", **settings)
    with pytest.raises(ValueError, match="SequenceClassificationModule writes no text"):
        fit(module, lessons.data("sequence_classification", tmp_path))


def test_the_share_of_steps_is_that_which_was_asked_for() -> None:
    turns = [takes_turn(0.3, 7, step) for step in range(2000)]
    assert sum(turns) / len(turns) == pytest.approx(0.3, abs=0.04)
    assert turns == [takes_turn(0.3, 7, step) for step in range(2000)]
    assert turns != [takes_turn(0.3, 8, step) for step in range(2000)]
    assert not any(takes_turn(0.0, 7, step) for step in range(50))
    assert all(takes_turn(1.0, 7, step) for step in range(50))


@pytest.mark.parametrize("name", WRITERS)
def test_of_own_words_only_the_teachers_judgement_is_learned(name: str, tmp_path: Path) -> None:
    seen = Prepared()
    pupil = {"learning_rate": 0.0}
    how = {"losses": [LogitLoss(weight=1.0)], "hard_weight": 5.0, "on_policy": 1.0}
    module = lessons.distill(name, pupil=pupil, **how)
    fit(module, lessons.data(name, tmp_path), seen)
    batch = seen.batches[0]
    assert OWN_WORDS in batch
    folder = lessons.teacher(name)
    teacher = module.auto_class.from_pretrained(folder, dtype=torch.float64).eval()
    student = module.network.double().eval()
    items = []
    for row in range(len(batch["labels"])):
        real, labels = batch["attention_mask"][row].bool(), batch["labels"][row]
        given = {"input_ids": batch["input_ids"][row : row + 1, real]}
        if name == "seq2seq":
            labels = labels[labels >= 0]
            begin = torch.tensor([student.config.decoder_start_token_id])
            given["decoder_input_ids"] = torch.cat([begin, labels[:-1]]).unsqueeze(0)
            places = range(len(labels))
        else:
            chosen = labels[real] >= 0
            assert torch.equal(labels[real][chosen], given["input_ids"][0][chosen])
            places = [i - 1 for i in (labels >= 0).nonzero().flatten().tolist()]
        with torch.no_grad():
            ours, theirs = student(**given).logits[0], teacher(**given).logits[0]
        items += [divergence(ours[i], theirs[i], 1.0) for i in places]
    assert seen.losses[0] == pytest.approx(float(torch.stack(items).mean()), rel=1e-5)


@pytest.mark.parametrize("name", WRITERS)
def test_turns_alternate_and_go_on_after_an_interruption(name: str, tmp_path: Path) -> None:
    def make() -> Any:
        return lessons.distill(name, on_policy=0.5, pupil={"dropout": 0.1, "learning_rate": 1e-3})

    class SaveAt(Prepared):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            super().on_train_batch_end(trainer, module, outputs)
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    whole, seen = make(), SaveAt()
    fit(whole, lessons.data(name, tmp_path), seen, max_steps=6)
    assert {OWN_WORDS in batch for batch in seen.batches} == {True, False}
    resumed = make()
    fit(resumed, lessons.data(name, tmp_path), ckpt_path=tmp_path / "a.ckpt", max_steps=6)
    ours, theirs = weights(whole), weights(resumed)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_a_student_learns_the_texts_that_its_teacher_wrote(
    name: str, cache: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))
    seen, raw = Prepared(), Seen()
    how: dict[str, Any] = {"sequence_level": True, "cache": cache, "cache_precision": "fp32"}
    module = lessons.distill(name, pupil={"learning_rate": 0.0}, **how)
    fit(module, lessons.data(name, tmp_path), seen, raw)
    folder = lessons.teacher(name)
    teacher = lessons.LESSONS[name].module(folder)  # with the beams of its own
    teacher.tokenizer = module.tokenizer
    teacher.configure_model()
    teacher.eval()
    for batch, before in zip(seen.batches, raw.batches, strict=True):
        prepared = module.task_module.prepare(before)
        expected = write_targets(teacher, prepared, 0.5, draw=False)
        expected = [
            row if n >= 0 else [] for n, row in zip(before["index"].tolist(), expected, strict=True)
        ]
        assert [row[row >= 0].tolist() for row in batch["labels"]] == expected
        module.eval()
        module.task_module.training = False
        with torch.no_grad():
            plain = module.task_module.step({k: v for k, v in batch.items() if "teacher" not in k})
        assert plain.items == sum(map(len, expected))
    (found,) = make_trainer().validate(module, lessons.data(name, tmp_path), verbose=False)
    alone = lessons.student(name, learning_rate=0.0)
    alone.tokenizer = module.tokenizer
    alone.configure_model()
    alone.network.load_state_dict(module.network.state_dict())
    (own,) = make_trainer().validate(alone, lessons.data(name, tmp_path), verbose=False)
    assert found["val/loss"] == pytest.approx(own["val/loss"], rel=1e-5)


def test_texts_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))
    rows: list[int] = []

    def counted(module: Any, batch: Any, *how: Any, **named: Any) -> Any:
        rows.append(len(batch["input_ids"]))
        return write_targets(module, batch, *how, **named)

    monkeypatch.setattr(teacher_texts, "write_targets", counted)
    found = []
    for _ in range(2):
        module, seen = lessons.distill("seq2seq", sequence_level=True), Seen()
        fit(module, lessons.data("seq2seq", tmp_path), seen)
        found.append([float(loss) for loss in seen.losses])
        assert sum(rows) == 64  # 60, the last batch filled up
    assert found[0] == found[1]
