"""Where a teacher may come from, and what is refused in its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import lmkit
from lmkit.modules import CausalLMModule, HiddenLoss, SequenceClassificationModule
from lmkit.modules.teacher import Teacher, class_order, teacher_shape
from tests import lessons, tiny
from tests.cases import named
from tests.lessons import Seen, fit

NAME = "sequence_classification"
ORDER = named("trees", "moons", "fox")


def saved(folder: Path, auto_class: Any, **config: Any) -> str:
    """Save a plain network with a head, by transformers alone."""
    settings = {**tiny.MASKED["bert"], "vocab_size": 300, **ORDER, **config}
    kind = settings.pop("model_type")
    torch.manual_seed(3)
    made = auto_class.from_config(AutoConfig.for_model(kind, **settings))
    made.save_pretrained(folder)
    return str(folder)


def trained(folder: Path, **settings: Any) -> tuple[Any, Any]:
    """Fit a classifier, and return it with the Trainer."""
    module = lessons.student(NAME, learning_rate=1e-3, **settings)
    return module, fit(module, lessons.data(NAME, folder))


def first_loss(folder: Path, teacher: Any, **settings: Any) -> float:
    seen = Seen()
    fit(lessons.distill(NAME, teacher=teacher, **settings), lessons.data(NAME, folder), seen)
    return seen.losses[0].item()


def test_a_checkpoint_an_export_and_a_plain_folder_are_one_teacher(tmp_path: Path) -> None:
    module, trainer = trained(tmp_path)
    trainer.save_checkpoint(tmp_path / "teacher.ckpt")
    lmkit.export(module, tmp_path / "export")
    module.network.save_pretrained(tmp_path / "plain")
    names = ("teacher.ckpt", "export", "plain")
    losses = [first_loss(tmp_path, str(tmp_path / name)) for name in names]
    assert losses[0] > 0.1 and losses == [losses[0]] * 3


def test_a_checkpoint_that_began_from_a_base_without_a_head_is_a_teacher(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", AutoModel, vocab_size=153)
    module = SequenceClassificationModule(base, learning_rate=1e-3)
    trainer = fit(module, lessons.data(NAME, tmp_path))
    trainer.save_checkpoint(tmp_path / "teacher.ckpt")
    assert first_loss(tmp_path, str(tmp_path / "teacher.ckpt")) > 0


def test_the_student_of_a_distillation_is_a_teacher_by_its_checkpoint(tmp_path: Path) -> None:
    module = lessons.distill(NAME)
    trainer = fit(module, lessons.data(NAME, tmp_path))
    trainer.save_checkpoint(tmp_path / "student.ckpt")
    teacher = Teacher(str(tmp_path / "student.ckpt"), module.task_module)
    assert teacher.facts.tokenizer
    kept = teacher.network.state_dict()
    assert all(torch.equal(kept[k], v) for k, v in module.network.state_dict().items())
    assert first_loss(tmp_path, str(tmp_path / "student.ckpt")) > 0


def test_a_teacher_never_trains_and_has_no_gradient(tmp_path: Path) -> None:
    module = lessons.distill(NAME, losses=None)
    fit(module, lessons.data(NAME, tmp_path), max_steps=1)
    (teacher,) = module.teachers._live
    before = {name: tensor.clone() for name, tensor in teacher.network.state_dict().items()}
    fit(module, lessons.data(NAME, tmp_path), max_steps=10, gradient_clip_val=0.1)
    assert module.teachers._live == [teacher]
    after = teacher.network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(p.grad is None and not p.requires_grad for p in teacher.network.parameters())


def test_a_teacher_answers_in_evaluation_mode_whoever_called_train(tmp_path: Path) -> None:
    module = lessons.distill(NAME)
    fit(module, lessons.data(NAME, tmp_path), max_steps=1)
    (teacher,) = module.teachers._live
    batch = next(iter(lessons_loader(module)))
    expected = teacher.read(batch, ())["logits"]
    module.train()
    assert not teacher.network.training
    teacher.module.train()
    for layer in teacher.network.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.5
    assert torch.equal(teacher.read(batch, ())["logits"], expected)
    assert not teacher.network.training


def lessons_loader(module: Any) -> Any:
    return module.trainer.datamodule.train_dataloader()


def test_a_teacher_in_bf16_is_held_so_and_near_to_itself(tmp_path: Path) -> None:
    module = lessons.distill(NAME, teacher_precision="bf16", losses=[HiddenLoss()])
    trainer = fit(module, lessons.data(NAME, tmp_path), max_steps=1)
    (teacher,) = module.teachers._live
    assert {p.dtype for p in teacher.network.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert trainer.callback_metrics["train/loss"].isfinite()
    full = first_loss(tmp_path, lessons.teacher(NAME))
    half = first_loss(tmp_path, lessons.teacher(NAME), teacher_precision="bf16")
    assert half != full and half == pytest.approx(full, rel=0.02)


def refused(folder: Path, teacher: Any, says: str, **settings: Any) -> None:
    with pytest.raises(ValueError, match=says):
        first_loss(folder, teacher, **settings)


def test_a_teacher_that_is_not_there_is_named(tmp_path: Path) -> None:
    refused(tmp_path, str(tmp_path / "gone"), "the teacher .*gone.* cannot be loaded")
    refused(tmp_path, str(tmp_path / "gone.ckpt"), "no teacher at .*gone.ckpt")
    (tmp_path / "empty").mkdir()
    refused(tmp_path, str(tmp_path / "empty"), "empty.* holds no config.json")


def test_a_teacher_with_other_classes_is_refused_and_they_are_named(tmp_path: Path) -> None:
    names = named("fox", "moons", "stars")
    folder = saved(tmp_path / "t", AutoModelForSequenceClassification, **names)
    refused(tmp_path, folder, "lacks 'trees'; the student lacks 'stars'")


def test_a_teacher_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "base", AutoModel)
    refused(tmp_path, folder, "has no trained head: classifier")
    masked = saved(tmp_path / "masked", AutoModelForMaskedLM)
    refused(tmp_path, masked, "has no trained head")


def test_such_a_teacher_serves_for_what_is_inside_it(tmp_path: Path) -> None:
    folder = saved(tmp_path / "base", AutoModel)
    assert first_loss(tmp_path, folder, losses=[HiddenLoss()]) > 0


def test_a_teacher_of_another_task_is_refused(tmp_path: Path) -> None:
    tagger = saved(tmp_path / "tagger", AutoModelForTokenClassification)
    refused(tmp_path, tagger, "tagger is for BertForTokenClassification and the student for Seq")
    kind = "multi_label_classification"
    several = saved(tmp_path / "s", AutoModelForSequenceClassification, problem_type=kind)
    refused(tmp_path, several, "multi_label")
    module = lessons.student("token_classification")
    trainer = fit(module, lessons.data("token_classification", tmp_path / "tags"), max_steps=1)
    trainer.save_checkpoint(tmp_path / "tags.ckpt")
    says = "is a TokenClassificationModule and the student a SequenceClassificationModule"
    refused(tmp_path, str(tmp_path / "tags.ckpt"), says)


def test_a_teacher_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "t", AutoModelForSequenceClassification)
    tiny.tokenizer("bpe").save_pretrained(folder)
    refused(tmp_path, folder, "has another tokenizer than the student")


def test_a_plain_folder_of_several_labels_needs_no_word_on_it(tmp_path: Path) -> None:
    folder = Path(lessons.teacher("multi_label"))
    plain = saved(tmp_path / "plain", AutoModelForSequenceClassification, **named("b", "a"))
    config = json.loads((Path(plain) / "config.json").read_text())
    assert config.get("problem_type") is None and folder.is_dir()
    seen = Seen()
    module = lessons.distill("multi_label", teacher=plain)
    fit(module, lessons.data("multi_label", tmp_path), seen)
    assert seen.losses[0] > 0


def test_the_shape_of_a_teacher_is_known_without_its_weights(tmp_path: Path) -> None:
    shape = teacher_shape(lessons.teacher("denoising"), lessons.student("denoising"))
    assert shape.depths == {"encoder": 4, "decoder": 4}
    assert shape.widths == {"encoder": 24, "decoder": 24}
    with pytest.raises(ValueError, match=r"no teacher at nowhere\.ckpt"):
        teacher_shape("nowhere.ckpt", lessons.student("denoising"))


@pytest.mark.parametrize(
    ("ours", "theirs", "order"),
    [
        (["a", "b"], ["a", "b"], None),
        (["a", "b", "c"], ["c", "a", "b"], [1, 2, 0]),
        (["a", "b"], ["LABEL_0", "LABEL_1"], None),
        (["LABEL_0", "LABEL_1"], ["b", "a"], None),
    ],
)
def test_classes_are_matched_by_name(
    ours: list[str], theirs: list[str], order: list[int] | None
) -> None:
    assert class_order(ours, theirs, "t") == order


def test_numbered_classes_of_another_count_are_refused() -> None:
    with pytest.raises(ValueError, match="the teacher t has other classes"):
        class_order(["a", "b"], ["LABEL_0", "LABEL_1", "LABEL_2"], "t")


def test_a_teacher_that_mixes_up_packed_texts_is_refused(tmp_path: Path) -> None:
    settings = {"model_type": "mpt", "d_model": 16, "n_layers": 2, "n_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    teacher = CausalLMModule({**settings, "max_seq_len": 64, "vocab_size": 300, **ends})
    teacher.configure_model()
    teacher.network.save_pretrained(tmp_path / "mpt")
    how: dict[str, Any] = {"teacher": str(tmp_path / "mpt")}
    with pytest.raises(ValueError, match=r"the teacher .*mpt: .* does not keep texts apart"):
        fit(
            lessons.distill("packed_causal", **how),
            lessons.data("packed_causal", tmp_path),
        )
    fit(lessons.distill("causal_lm", **how), lessons.data("causal_lm", tmp_path))


@pytest.mark.parametrize("name", ["packed_causal", "masked_lm"])
def test_a_teacher_in_bf16_reads_packed_texts(name: str, tmp_path: Path) -> None:
    module = lessons.distill(name, teacher_precision="bf16")
    fit(module, lessons.data(name, tmp_path), max_steps=1)
    assert module.teachers._live[0].network.dtype == torch.bfloat16
