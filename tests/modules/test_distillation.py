"""What a distillation trains, keeps and leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

import lmkit
from lmkit.callbacks import LoRACallback
from lmkit.modules import (
    AttentionLoss,
    HiddenLoss,
    LMModule,
    LogitLoss,
    RelationLoss,
)
from lmkit.types import Batch, Objective, StepOutput
from tests import lessons
from tests.cases import make_trainer, weights
from tests.lessons import fit

NAME = "sequence_classification"
SGD = {"optimizer": {"class_path": "torch.optim.SGD"}, "learning_rate": 0.1}
#: Losses of what is inside.
LOSSES: dict[str, Any] = {
    "logits": LogitLoss(),
    "hidden": HiddenLoss(),
    "attention": AttentionLoss(),
    "relations": RelationLoss(),
}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("name", [NAME, "token_classification", "masked_lm", "seq2seq"])
def test_without_a_loss_against_the_teacher_it_is_the_students_own_training(
    name: str, tmp_path: Path
) -> None:
    settings = {"dropout": 0.1, "learning_rate": 1e-2}
    alone = lessons.student(name, **settings)
    fit(alone, lessons.data(name, tmp_path), max_steps=6)
    taught = lessons.distill(name, pupil=settings, losses=[], hard_weight=1.0)
    fit(taught, lessons.data(name, tmp_path), max_steps=6)
    assert same(alone.network.state_dict(), taught.network.state_dict())


@pytest.mark.parametrize("name", lessons.LESSONS)
def test_every_task_trains_and_validates(name: str, tmp_path: Path) -> None:
    module = lessons.distill(name, losses=[LogitLoss(), hidden(name)])
    trainer = fit(module, lessons.data(name, tmp_path), val_check_interval=2)
    names = {"val/loss", "val/teacher_divergence", "train/loss", "distillation/loss_logits"}
    names |= {"distillation/loss_hidden", "distillation/loss_hard"}
    if name != "regression":
        names.add("val/agreement")
    assert names <= trainer.callback_metrics.keys()
    assert all(value.isfinite() for key, value in trainer.callback_metrics.items() if key in names)


def hidden(name: str) -> HiddenLoss:
    return HiddenLoss(stack="decoder" if name in ("denoising", "seq2seq") else "")


@pytest.mark.parametrize("loss", ["hidden", "attention", "relations"])
def test_a_loss_of_the_inside_alone_trains(loss: str, tmp_path: Path) -> None:
    module = lessons.distill(NAME, losses=[LOSSES[loss]], hard_weight=0.0)
    trainer = fit(module, lessons.data(NAME, tmp_path), max_steps=1)
    before = weights(module)
    fit(module, lessons.data(NAME, tmp_path), max_steps=2)
    moved = {name for name, tensor in weights(module).items() if not tensor.equal(before[name])}
    assert any("encoder" in name for name in moved)
    assert not any("classifier" in name for name in moved)
    assert trainer.callback_metrics["train/loss"] > 0


def test_weights_that_no_loss_reaches_are_frozen_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loss = RelationLoss(student_layer=1)
    module = lessons.distill(NAME, losses=[loss], hard_weight=0.0, pupil={"weight_decay": 0.1})
    with caplog.at_level("INFO"):
        fit(module, lessons.data(NAME, tmp_path))
    frozen = {name for name, p in module.network.named_parameters() if not p.requires_grad}
    assert any(name.startswith("bert.encoder.layer.1.") for name in frozen)
    assert (
        "classifier.weight" in frozen
        and "bert.encoder.layer.0.attention.output.dense.weight" in frozen
    )
    assert "bert.encoder.layer.0.attention.self.query.weight" not in frozen
    assert "classifier.weight" in caplog.text


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ValueError, match="hard_weight"):
        lessons.distill(NAME, losses=[], hard_weight=0.0)


def test_projections_are_trained_clipped_saved_and_not_exported(tmp_path: Path) -> None:
    module = lessons.distill(NAME, losses=[HiddenLoss()], hard_weight=0.0, pupil=SGD)
    norms: list[float] = []

    class Norm(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            pl_module.configure_gradient_clipping(optimizer, 1e-3, "norm")
            norms.append(float(pl_module.projections["0_0_0"].weight.grad.norm()))

    module.configure_model()
    begun = module.projections["0_1_2"].weight.clone()
    assert torch.equal(begun, torch.eye(24, 16))
    trainer = fit(module, lessons.data(NAME, tmp_path), Norm())
    assert set(module.projections) == {"0_0_0", "0_1_2", "0_2_4"}
    grouped = {id(p) for g in trainer.optimizers[0].param_groups for p in g["params"]}
    assert all(id(p) in grouped for p in module.projections.parameters())
    assert not torch.equal(module.projections["0_1_2"].weight, begun)
    assert all(0 < norm <= 1e-3 for norm in norms)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    kinds = {key.split(".")[0] for key in saved}
    assert kinds == {"network", "projections"}
    plain = module.auto_class.from_pretrained(lmkit.export(module, tmp_path / "out"))
    assert plain.state_dict().keys() == module.network.state_dict().keys()


def test_there_is_no_projection_where_the_widths_agree_unless_asked(tmp_path: Path) -> None:
    equal = lessons.teacher(NAME, hidden_size=16)
    for loss, count in ((HiddenLoss(), 0), (HiddenLoss(projection=True), 3)):
        module = lessons.distill(NAME, teacher=equal, losses=[loss])
        module.configure_model()
        assert len(module.projections) == count
    module = lessons.distill(NAME, losses=[HiddenLoss(distance="similarity")])
    module.configure_model()
    assert not module.projections
    module = lessons.distill(NAME, losses=[HiddenLoss(layers="dynamic")])
    module.configure_model()
    assert list(module.projections) == ["0_all"]


@pytest.mark.parametrize("loss", ["attention", "logits"])
def test_attention_stays_fast_but_for_maps_and_is_given_back(loss: str, tmp_path: Path) -> None:
    kinds: set[str] = set()

    class Look(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            kinds.add(pl_module.network.config._attn_implementation)
            kinds.add(pl_module.teachers._live[0].network.config._attn_implementation)

    module = lessons.distill(NAME, losses=[LOSSES[loss]])
    fit(module, lessons.data(NAME, tmp_path), Look())
    assert kinds == {"lmkit_maps" if loss == "attention" else "lmkit"}
    assert module.network.config._attn_implementation == "sdpa"


def test_a_network_that_shows_no_maps_is_named(tmp_path: Path) -> None:
    pupil = {"config": {"attn_implementation": "eager"}}
    module = lessons.distill(NAME, losses=[AttentionLoss()], pupil=pupil)
    with pytest.raises(ValueError, match="'bert' gave nothing for attention"):
        fit(module, lessons.data(NAME, tmp_path))


def test_a_wrapper_that_asks_twice_asks_the_teacher_once(tmp_path: Path) -> None:
    module = lessons.distill(NAME, losses=[LogitLoss(), HiddenLoss()])
    asked: list[int] = []

    def twice(objective: Objective, batch: Batch) -> StepOutput:
        if pl_training(module):
            asked.append(0)
            assert torch.equal(objective(batch).loss, objective(batch).loss)
        return objective(batch)

    def counted(batch: Batch, training: bool) -> Any:
        asked.append(1)
        return read(batch, training)

    module.objective_wrappers.append(twice)
    read, module.teachers.read = module.teachers.read, counted
    fit(module, lessons.data(NAME, tmp_path))
    assert asked == [1, 0, 1, 0, 1, 1][: len(asked)] and asked[:4] == [1, 0, 1, 0]


def pl_training(module: LMModule) -> bool:
    return module.training


def test_a_low_rank_student_learns_by_its_adapters_alone(tmp_path: Path) -> None:
    module = lessons.distill(NAME, losses=[LogitLoss(), HiddenLoss(), RelationLoss()])
    before: dict[str, Any] = {}

    class Look(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            before.update(weights(pl_module))

    trainer = fit(module, lessons.data(NAME, tmp_path), LoRACallback("low", rank=2), Look())
    after = weights(module)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert any("low" in name for name in moved) and any("projections" in name for name in moved)
    assert not any("base_layer" in name for name in moved)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = lmkit.load(tmp_path / "a.ckpt")
    assert same(weights(loaded), after)
    assert lmkit.export(module, tmp_path / "out", merge=True).is_dir()


def test_a_checkpoint_loads_predicts_and_exports_without_its_teacher(tmp_path: Path) -> None:
    folder = Path(lessons.teacher(NAME)).rename(tmp_path / "teacher")
    lessons.teacher.cache_clear()
    module = lessons.distill(NAME, teacher=str(folder), losses=[LogitLoss(), HiddenLoss()])
    trainer = fit(module, lessons.data(NAME, tmp_path))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    folder.rename(tmp_path / "away")
    loaded: Any = lmkit.load(tmp_path / "a.ckpt")
    assert same(weights(loaded), weights(module))
    plain: Any = lmkit.load(lmkit.export(loaded, tmp_path / "out"))
    assert type(plain) is type(module.task_module)
    texts = ["a lazy dog", "the stars and moons ."]
    assert loaded(texts) == plain(texts)
    data = lessons.data(NAME, tmp_path, predict_file=str(tmp_path / "val-rows.csv"))
    rows = [make_trainer().predict(each, data) for each in (loaded, plain)]
    assert rows[0] == rows[1] and len(rows[0]) == 2
    with pytest.warns(UserWarning, match="teacher.*goes on without what compares"):
        (metrics,) = make_trainer().validate(loaded, data, verbose=False)
    assert metrics["val/loss"] > 0 and "val/agreement" not in metrics
    with pytest.raises(ValueError, match=r"the teacher .*teacher.* cannot be loaded"):
        fit(loaded, data, ckpt_path=tmp_path / "a.ckpt", max_steps=4)
    (tmp_path / "away").rename(folder)
    (metrics,) = make_trainer().validate(loaded, data, verbose=False)
    assert "val/agreement" in metrics
    assert same(weights(loaded), weights(module))


def test_a_teacher_with_other_weights_is_refused_on_resume(tmp_path: Path) -> None:
    module = lessons.distill(NAME)
    fit(module, lessons.data(NAME, tmp_path)).save_checkpoint(tmp_path / "a.ckpt")
    other = lessons.distill(NAME, teacher=lessons.teacher(NAME, seed=8))
    with pytest.raises(ValueError, match=r"the teacher .* has other weights than the one"):
        fit(other, lessons.data(NAME, tmp_path), ckpt_path=tmp_path / "a.ckpt", max_steps=4)


def test_nothing_of_a_teacher_is_in_checkpoint_or_optimizer(tmp_path: Path) -> None:
    module = lessons.distill(NAME)
    trainer = fit(module, lessons.data(NAME, tmp_path))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    alone = lessons.student(NAME)
    fit(alone, lessons.data(NAME, tmp_path))
    assert saved["state_dict"].keys() == alone.state_dict().keys()
    assert {id(p) for g in trainer.optimizers[0].param_groups for p in g["params"]} == {
        id(p) for p in module.network.parameters()
    }


def test_what_is_wrapped_between_two_fits_is_found_where_it_is_now(tmp_path: Path) -> None:
    module = lessons.distill("sequence_classification", losses=[RelationLoss()], hard_weight=0.0)
    fit(module, lessons.data("sequence_classification", tmp_path))
    lora = LoRACallback("low", rank=2, targets=["query", "key", "value"])
    fit(module, lessons.data("sequence_classification", tmp_path), lora)
    last = [p for n, p in module.named_parameters() if "lora_B" in n and "layer.1." in n]
    assert last and all(p.abs().max() > 0 for p in last)
