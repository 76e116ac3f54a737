"""The weighted sum of a distillation's losses: over batches, over a run, and on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lmkit.modules import (
    AttentionLoss,
    DistillationModule,
    FlowLoss,
    HiddenLoss,
    LogitLoss,
    RelationLoss,
)
from tests import lessons
from tests.cases import weights
from tests.lessons import Seen, fit

NAME = "sequence_classification"
SGD = {"optimizer": {"class_path": "torch.optim.SGD"}, "learning_rate": 0.1}
#: Each loss that adds up over batches.
LOSSES: dict[str, Any] = {
    "logits": LogitLoss(),
    "mse": LogitLoss(divergence="mse"),
    "hidden": HiddenLoss(),
    "raw": HiddenLoss(normalize=False, layers="skip"),
    "cosine": HiddenLoss(distance="cosine"),
    "first_token": HiddenLoss(distance="first_token", layers="last"),
    "similarity": HiddenLoss(distance="similarity"),
    "attention": AttentionLoss(),
    "relations": RelationLoss(),
    "flow": FlowLoss(),
}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def teacher_for(loss: Any) -> str:
    """A flow needs a teacher of the student's width."""
    return (
        lessons.teacher(NAME, hidden_size=16)
        if isinstance(loss, FlowLoss)
        else (lessons.teacher(NAME))
    )


class SaveAt(Callback):
    """Saves a checkpoint after a batch."""

    def __init__(self, path: Path, batches: int) -> None:
        self.path, self.batches = path, batches

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == self.batches:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("loss", LOSSES)
def test_half_batches_add_up_to_the_whole(loss: str, tmp_path: Path) -> None:
    made = []
    for size, window in ((8, 1), (4, 2)):
        how = {"teacher": teacher_for(LOSSES[loss]), "losses": [LOSSES[loss]], "hard_weight": 0.5}
        module = lessons.distill(NAME, pupil=SGD, **how)
        data = lessons.data(NAME, tmp_path, batch_size=size)
        fit(module, data, accumulate_grad_batches=window)
        made.append(weights(module))
    one, two = made
    assert all(torch.allclose(one[k], two[k], atol=1e-6) for k in one)


def test_half_batches_of_labelled_and_unlabelled_rows_add_up_to_the_whole(tmp_path: Path) -> None:
    made = []
    for size, window in ((8, 1), (4, 2)):
        module = lessons.distill(NAME, pupil=SGD, losses=[LogitLoss(), HiddenLoss()])
        data = lessons.half_labelled(NAME, tmp_path, batch_size=size)
        fit(module, data, accumulate_grad_batches=window, max_steps=4)
        made.append(weights(module))
    one, two = made
    assert all(torch.allclose(one[k], two[k], atol=1e-6) for k in one)


STAGES = [
    HiddenLoss(stop=0.5),
    LogitLoss(start=0.5, weight=0.5, final_weight=1.0),
]


def test_two_stages_of_one_run_follow_each_other(tmp_path: Path) -> None:
    logged: list[set[str]] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            names = {n for n in trainer.callback_metrics if n.startswith("distillation/")}
            logged.append({n.removeprefix("distillation/loss_") for n in names})

    module = lessons.distill(NAME, losses=STAGES, hard_weight=1.0, hard_start=0.5)
    before = lessons.distill(NAME, losses=STAGES)
    seen = Seen()
    fit(module, lessons.data(NAME, tmp_path), Look(), seen, max_steps=4, log_every_n_steps=1)
    assert logged[0] == {"hard", "hidden"} and "logits" in logged[2]
    assert before.hparams["losses"][0]["init_args"]["stop"] == 0.5


def test_a_schedule_weighs_the_losses_of_each_step(tmp_path: Path) -> None:
    values: list[dict[str, float]] = []

    class Look(Callback):
        def on_train_batch_end(
            self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any
        ) -> None:
            found = {n: float(v) for n, v in trainer.callback_metrics.items()}
            values.append({**found, "loss": float(outputs["loss"])})

    how = {"hard_weight": 1.0, "final_hard_weight": 0.0, "hard_start": 0.25}
    loss = LogitLoss(weight=0.0, final_weight=2.0, start=0.5)
    module = lessons.distill(NAME, losses=[loss], **how)
    fit(module, lessons.data(NAME, tmp_path), Look(), max_steps=4, log_every_n_steps=1)
    expected = [(0.0, 0.0), (1.0, 0.0), (1 - 1 / 3, 0.0), (1 - 2 / 3, 1.0)]
    for found, (hard, soft) in zip(values, expected, strict=True):
        parts = hard * found["distillation/loss_hard"]
        parts += soft * found.get("distillation/loss_logits", 0.0)
        assert found["loss"] == pytest.approx(parts, abs=1e-6)


def test_a_schedule_needs_a_run_with_an_end(tmp_path: Path) -> None:
    module = lessons.distill(NAME, losses=STAGES, pupil={"schedule": "constant"})
    with pytest.raises(ValueError, match="need to know how long it is; set max_steps"):
        fit(module, lessons.data(NAME, tmp_path), max_steps=-1, max_epochs=-1)


@pytest.mark.parametrize("place", [1, 3, 5])
def test_a_run_with_schedules_goes_on_as_if_uninterrupted(place: int, tmp_path: Path) -> None:
    def make() -> DistillationModule:
        how = {"final_hard_weight": 0.1, "hard_start": 0.25, "wrong_weight": 0.5}
        pupil = {"dropout": 0.1, "learning_rate": 1e-2}
        made: DistillationModule = lessons.distill(NAME, losses=STAGES, pupil=pupil, **how)
        return made

    whole = make()
    save = SaveAt(tmp_path / "a.ckpt", place)
    fit(whole, lessons.data(NAME, tmp_path), save, max_steps=6)
    resumed = make()
    fit(resumed, lessons.data(NAME, tmp_path), ckpt_path=tmp_path / "a.ckpt", max_steps=6)
    assert same(weights(whole), weights(resumed))


def test_a_teacher_that_is_wrong_counts_less(tmp_path: Path) -> None:
    losses = {}
    for weight in (1.0, 0.25, 0.0):
        seen = Seen()
        module = lessons.distill(
            NAME, pupil={"learning_rate": 0.0}, hard_weight=0.0, wrong_weight=weight
        )
        fit(module, lessons.data(NAME, tmp_path), seen, max_steps=1)
        losses[weight] = seen.losses[0].item()
    teacher = module.auto_class.from_pretrained(lessons.teacher(NAME)).eval()
    parts = {True: 0.0, False: 0.0}
    texts = lessons.texts_of(seen.batches[0])
    for text in texts:
        given = {name: text[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            ours = (module.network.eval()(**given).logits[0] / 2).log_softmax(-1)
            theirs = (teacher(**given).logits[0].flip(-1) / 2).log_softmax(-1)
        right = bool(theirs.argmax() == text["labels"][0])
        parts[right] += 0.5 * 4 * float((theirs.exp() * (theirs - ours)).sum()) / len(texts)
    assert parts[True] > 0 and parts[False] > 0
    for weight, loss in losses.items():
        assert loss == pytest.approx(parts[True] + weight * parts[False], rel=1e-4)
