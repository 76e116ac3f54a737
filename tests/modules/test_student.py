"""Which student a distillation trains: layers of its teacher, another network, or plain data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lmkit
from lmkit.modules import (
    DistillationModule,
    HiddenLoss,
    LMModule,
    LogitLoss,
    MaskedLMModule,
    Seq2SeqModule,
    SequenceClassificationModule,
)
from lmkit.modules.student import student_from_spec, student_to_spec
from tests import lessons, tiny
from tests.cases import make_trainer, weights
from tests.lessons import fit

NAME = "sequence_classification"


def cut(name: str, layers: Any, folder: Path, **settings: Any) -> Any:
    """Fit, without a step, a student that begins as layers of its teacher."""
    teacher = lessons.teacher(name)
    student = lessons.LESSONS[name].module(teacher, learning_rate=0.0)
    module = DistillationModule(student, teacher, student_layers=layers, **settings)
    fit(module, lessons.data(name, folder), max_steps=1)
    return module


def plain(name: str) -> dict[str, torch.Tensor]:
    cls = lessons.LESSONS[name].module.auto_class
    state: dict[str, torch.Tensor] = cls.from_pretrained(lessons.teacher(name)).state_dict()
    return state


@pytest.mark.parametrize(
    ("layers", "kept"),
    [([0, 3], [0, 3]), (2, [0, 3]), (3, [0, 1, 3]), (1, [0]), ([1, 2], [1, 2]), (None, range(4))],
)
def test_a_student_begins_as_layers_of_its_teacher(layers: Any, kept: Any, tmp_path: Path) -> None:
    module, theirs = cut(NAME, layers, tmp_path), plain(NAME)
    prefix = "bert.encoder.layer."
    expected = {name: t for name, t in theirs.items() if not name.startswith(prefix)}
    for new, old in enumerate(kept):
        for name, tensor in theirs.items():
            if name.startswith(f"{prefix}{old}."):
                expected[name.replace(f"{prefix}{old}.", f"{prefix}{new}.")] = tensor
    ours = module.network.state_dict()
    assert ours.keys() == expected.keys() and "classifier.weight" in ours
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    assert module.network.config.num_hidden_layers == len(list(kept))


@pytest.mark.parametrize(
    ("layers", "depths"),
    [
        ({"encoder": [0, 2], "decoder": [1]}, (2, 1)),
        ({"decoder": 2}, (4, 2)),
        (3, (3, 3)),
        ([0, 1], (2, 2)),
    ],
)
def test_each_stack_of_an_encoder_decoder_is_cut_as_asked(
    layers: Any, depths: tuple[int, int], tmp_path: Path
) -> None:
    module = cut("seq2seq", layers, tmp_path, losses=[LogitLoss(), HiddenLoss(stack="decoder")])
    config = module.network.config
    assert (config.num_layers, config.num_decoder_layers) == depths
    exported = lmkit.export(module, tmp_path / "out")
    loaded = module.auto_class.from_pretrained(exported)
    assert loaded.state_dict().keys() == module.network.state_dict().keys()


def test_a_student_of_all_layers_agrees_with_its_teacher(tmp_path: Path) -> None:
    teacher = lessons.teacher(NAME)
    student = SequenceClassificationModule(teacher, learning_rate=0.0, dropout=0.0)
    module = DistillationModule(student, teacher, losses=[LogitLoss(), HiddenLoss()], hard_weight=0)
    trainer = fit(module, lessons.data(NAME, tmp_path), max_steps=1)
    assert trainer.callback_metrics["train/loss"] == pytest.approx(0.0, abs=1e-9)
    (found,) = make_trainer().validate(module, lessons.data(NAME, tmp_path), verbose=False)
    assert found["val/agreement"] == 1.0 and found["val/retention"] == 1.0
    assert found["val/teacher_divergence"] == pytest.approx(0.0, abs=1e-7)


def test_a_cut_student_goes_on_loads_and_keeps_its_depth(tmp_path: Path) -> None:
    def make() -> Any:
        teacher = lessons.teacher(NAME)
        student = SequenceClassificationModule(teacher, learning_rate=1e-3)
        return DistillationModule(student, teacher, student_layers=2)

    whole, resumed = make(), make()
    fit(whole, lessons.data(NAME, tmp_path), max_steps=4)
    fit(make(), lessons.data(NAME, tmp_path), max_steps=2)
    first = make()
    trainer = fit(first, lessons.data(NAME, tmp_path), max_steps=4, limit_train_batches=2)
    assert trainer.global_step == 4
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = lmkit.load(tmp_path / "a.ckpt")
    assert all(torch.equal(t, weights(loaded)[k]) for k, t in weights(first).items())
    assert loaded.hparams["student_layers"] == 2
    how = {"max_steps": 6, "limit_train_batches": 2, "ckpt_path": tmp_path / "a.ckpt"}
    fit(resumed, lessons.data(NAME, tmp_path), **how)
    assert resumed.network.config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ([0, 4], "student_layers.*0 to 3"),
        (9, r"student_layers.*\[1, 4\]"),
        ([], "student_layers"),
        ([2, 1], "student_layers.*increasing"),
        ({"encoder": [0]}, "student_layers.*encoder-decoder"),
    ],
)
def test_layers_that_are_not_there_are_named(layers: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        cut(NAME, layers, tmp_path)


@pytest.mark.parametrize("kind", ["electra", "distilbert", "roberta"])
def test_a_student_may_be_of_another_architecture(kind: str, tmp_path: Path) -> None:
    """Its width and depth too; there is nothing in common but tokens and classes."""
    names = {k: v for k, v in lessons.LESSONS[NAME].model.items() if "label" in k}
    student = SequenceClassificationModule({**tiny.MASKED[kind], **names})
    losses = [LogitLoss(), HiddenLoss()]
    module = DistillationModule(student, lessons.teacher(NAME), losses=losses)
    trainer = fit(module, lessons.data(NAME, tmp_path))
    assert trainer.callback_metrics["train/loss"].isfinite()


def test_born_again_a_student_of_the_teachers_size_learns_from_scratch(tmp_path: Path) -> None:
    teacher = lessons.teacher(NAME)
    student = SequenceClassificationModule(teacher, pretrained=False, learning_rate=1e-3)
    module = DistillationModule(student, teacher)
    fit(module, lessons.data(NAME, tmp_path))
    ours, theirs = module.network.state_dict(), plain(NAME)
    assert {k: t.shape for k, t in ours.items()} == {k: t.shape for k, t in theirs.items()}
    key = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.allclose(ours[key], theirs[key], atol=0.05)


def test_a_student_is_plain_data_and_back() -> None:
    student = SequenceClassificationModule(tiny.MASKED["bert"], label_smoothing=0.1)
    spec = json.loads(json.dumps(student_to_spec(student)))
    assert spec["class_path"] == "lmkit.modules.SequenceClassificationModule"
    back = student_from_spec(spec)
    assert type(back) is type(student) and dict(back.hparams) == dict(student.hparams)
    short = student_from_spec({"class_path": "MaskedLMModule", "init_args": {"model": "x"}})
    assert type(short) is MaskedLMModule


def test_the_optimizer_is_that_which_the_student_asks_for(tmp_path: Path) -> None:
    pupil = {
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.5}},
        "learning_rate": 0.125,
        "schedule": "constant",
        "weight_decay": 0.25,
    }
    module = lessons.distill(NAME, pupil=pupil)
    trainer = fit(module, lessons.data(NAME, tmp_path))
    (optimizer,) = trainer.optimizers
    assert type(optimizer).__name__ == "SGD" and optimizer.param_groups[0]["momentum"] == 0.5
    assert optimizer.param_groups[0]["lr"] == 0.125
    assert optimizer.param_groups[0]["weight_decay"] == 0.25


def test_what_is_no_student_is_refused(tmp_path: Path) -> None:
    built = lessons.student(NAME, config={"vocab_size": 99})
    built.configure_model()
    with pytest.raises(ValueError, match="must be a module that was just made"):
        DistillationModule(built, "t")
    with pytest.raises(TypeError, match="student must be a task module"):
        DistillationModule("bert", "t")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="names no task module"):
        DistillationModule({"class_path": "NoModule"}, "t")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="names no task module"):
        DistillationModule({"class_path": "LMModule"}, "t")  # type: ignore[arg-type]
    inner = student_to_spec(lessons.distill(NAME, teacher="t"))
    with pytest.raises(ValueError, match="must be a task module itself"):
        DistillationModule(inner, "t")  # type: ignore[arg-type]


def test_a_student_keeps_what_its_task_alone_knows(tmp_path: Path) -> None:
    module = lessons.distill("seq2seq", pupil={"label_smoothing": 0.1, "beams": 3})
    assert isinstance(module.task_module, Seq2SeqModule) and isinstance(module, LMModule)
    fit(module, lessons.data("seq2seq", tmp_path))
    assert module.network.generation_config.num_beams == 3
    note = json.loads((lmkit.export(module, tmp_path / "o") / "lmkit.json").read_text())
    assert note["module"] == "Seq2SeqModule" and note["settings"]["label_smoothing"] == 0.1
