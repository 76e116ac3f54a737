"""Several teachers, how they are weighed, and options that do not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lmkit.modules import AttentionLoss, FlowLoss, HiddenLoss, LogitLoss, RelationLoss
from tests import lessons
from tests.lessons import Seen, fit
from tests.modules.test_distillation_losses import run, taken_apart

NAME = "sequence_classification"


def two(name: str = NAME, **config: Any) -> list[str]:
    return [lessons.teacher(name), lessons.teacher(name, seed=8, **config)]


def loss_of(name: str, folder: Path, **settings: Any) -> tuple[float, Any, Seen]:
    seen = Seen()
    how: dict[str, Any] = {"hard_weight": 0.0, "losses": [LogitLoss(weight=1.0)], **settings}
    module = lessons.distill(name, pupil={"learning_rate": 0.0}, **how)
    fit(module, lessons.data(name, folder), seen, max_steps=1)
    return seen.losses[0].item(), module, seen


def said(name: str, module: Any, seen: Seen, folders: list[str]) -> list[tuple[Any, Any, Any]]:
    """Of each text the student's logits, those of all teachers, and the text."""
    cls = module.auto_class
    teachers = [cls.from_pretrained(f, dtype=torch.float64).eval() for f in folders]
    student = module.network.double().eval()
    with torch.no_grad():
        return [
            (
                run(student, text).logits[0],
                torch.stack([run(each, text).logits[0].flip(-1) for each in teachers]),
                text,
            )
            for text in taken_apart(seen.batches[0])
        ]


@pytest.mark.parametrize("weights", [None, [3.0, 1.0], "confidence"])
def test_probabilities_of_teachers_are_averaged_as_asked(weights: Any, tmp_path: Path) -> None:
    found, module, seen = loss_of(NAME, tmp_path, teacher=two(), teacher_weights=weights)
    expected = []
    for ours, theirs, text in said(NAME, module, seen, two()):
        if weights == "confidence":
            losses = -theirs.log_softmax(-1)[:, int(text["labels"])]
            shares = 1 - losses.softmax(0)  # of two the factor 1 / (K - 1) is 1
        else:
            shares = torch.tensor(weights or [1.0, 1.0]).double()
        shares = shares / shares.sum()
        q = (shares.unsqueeze(1) * (theirs / 2).softmax(-1)).sum(0)
        p = (ours / 2).softmax(-1)
        expected.append(4 * (q * (q / p).log()).sum())
    assert found == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


def test_of_values_the_mean_is_learned(tmp_path: Path) -> None:
    folders = two("regression")
    how = {"teacher": folders, "teacher_weights": [1.0, 3.0]}
    found, module, seen = loss_of("regression", tmp_path, **how)
    errors = [
        (ours - (theirs[0] + 3 * theirs[1]) / 4) ** 2
        for ours, theirs, _ in said("regression", module, seen, folders)
    ]
    assert found == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)


def test_of_labels_the_mean_of_each_probability_is_learned(tmp_path: Path) -> None:
    folders = two("multi_label")
    found, module, seen = loss_of("multi_label", tmp_path, teacher=folders)
    expected = []
    for ours, theirs, _ in said("multi_label", module, seen, folders):
        q, p = (theirs / 2).sigmoid().mean(0), (ours / 2).sigmoid()
        each = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
        expected.append(4 * each.mean())
    assert found == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


def test_the_logits_themselves_are_averaged_where_they_are_compared(tmp_path: Path) -> None:
    how = {"teacher": two(), "losses": [LogitLoss(weight=1.0, divergence="mse")]}
    found, module, seen = loss_of(NAME, tmp_path, **how)
    errors = [
        (ours - theirs.mean(0)).square().mean()
        for ours, theirs, _ in said(NAME, module, seen, two())
    ]
    assert found == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)


def test_a_loss_of_the_inside_has_a_teacher_of_its_own(tmp_path: Path) -> None:
    alone = loss_of(NAME, tmp_path, teacher=two()[1], losses=[HiddenLoss()])[0]
    both = {"teacher": two(), "losses": [HiddenLoss(teacher=1)]}
    assert loss_of(NAME, tmp_path, **both)[0] == alone
    first = {"teacher": two(), "losses": [HiddenLoss(teacher=0)]}
    assert loss_of(NAME, tmp_path, **first)[0] != alone


def test_teachers_may_have_their_classes_in_different_orders(tmp_path: Path) -> None:
    module, folder = lessons.student(NAME), tmp_path / "other"
    fit(module, lessons.data(NAME, tmp_path), max_steps=1)
    module.network.save_pretrained(folder)  # in the student's order
    how = {"teacher": [lessons.teacher(NAME), str(folder)]}
    _, taught, _ = loss_of(NAME, tmp_path, **how)
    assert [each.order for each in taught.teachers.alignments] == [[2, 1, 0], None]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"teacher": []}, "teacher must name a checkpoint, a folder or a hub model"),
        ({"teacher": ""}, "teacher must name"),
        ({"losses": [HiddenLoss(teacher=1)]}, "HiddenLoss: teacher=1, but .* there are 1"),
        ({"losses": [RelationLoss(teacher=-1)]}, "RelationLoss: teacher=-1"),
        ({"teacher": ["a", "b"], "teacher_weights": [1.0]}, "one number .* for each of 2"),
        ({"teacher_weights": [-1.0]}, "teacher_weights must be"),
        ({"teacher": ["a", "b"], "teacher_weights": [0.0, 0.0]}, "teacher_weights"),
        ({"teacher_weights": "trust"}, "teacher_weights must be .*'trust'"),
        ({"teacher_precision": "fp16"}, "teacher_precision must be .*'fp16'"),
        ({"cache_precision": "bf16"}, "cache_precision must be .*'bf16'"),
        ({"wrong_weight": 1.5}, r"wrong_weight must lie in \[0, 1\], got 1.5"),
        ({"on_policy": -0.1}, r"on_policy must lie in \[0, 1\]"),
        ({"on_policy": 0.5, "cache": True}, "on_policy has new texts in each step: set no cache"),
        ({"on_policy": 0.5, "sequence_level": True}, "set no sequence_level"),
        ({"teacher": ["a", "b"], "sequence_level": True}, "sequence_level is for one teacher"),
        ({"prompt_share": 1.0}, r"prompt_share must lie in \(0, 1\)"),
        ({"cache_top_k": 5}, "cache_top_k is of a cache"),
        ({"cache": True, "cache_top_k": 0}, "cache_top_k must be at least 1"),
        ({"cache": True, "cache_top_k": 2, "teacher": ["a", "b"]}, "cache_top_k is for one"),
        ({"cache": True, "cache_top_k": 2, "wrong_weight": 0.5}, "wrong_weight .* cache_top_k"),
        ({"hard_weight": -0.5}, "hard_weight must be at least 0, got -0.5"),
        ({"final_hard_weight": -0.5}, "final_hard_weight must be at least 0"),
        ({"hard_start": 1.0}, "hard_start"),
    ],
)
def test_options_outside_their_range_are_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        lessons.distill(NAME, **{"teacher": "t", **settings})


def test_confidence_is_for_classes(tmp_path: Path) -> None:
    how = {"teacher": two("regression"), "teacher_weights": "confidence"}
    with pytest.raises(ValueError, match="teacher_weights='confidence' is for classes"):
        loss_of("regression", tmp_path, **how)


@pytest.mark.parametrize("name", ["regression", "multi_label"])
def test_to_be_wrong_is_for_classes(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"wrong_weight .*is for classes"):
        loss_of(name, tmp_path, wrong_weight=0.5)


@pytest.mark.parametrize("name", ["regression", "multi_label"])
def test_another_divergence_is_for_classes(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="divergence='reverse' is for classes"):
        loss_of(name, tmp_path, losses=[LogitLoss(divergence="reverse")])


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (HiddenLoss(layers=[[1, 5]]), r"pair \[1, 5\].*the teacher 4"),
        (HiddenLoss(stack="encoder"), "stack='encoder' is for an encoder-decoder"),
        (RelationLoss(student_layer=3), "RelationLoss: there is no pair of layers 3 and -1"),
        (RelationLoss(teacher_layer=-5), "the student has 2 layers and the teacher 4"),
        (RelationLoss(student_layer=0), "no pair of layers 0"),
        (AttentionLoss(layers=[[1, 0]]), "AttentionLoss: .* embeddings .* have no attention"),
        (AttentionLoss(layers=[[0, 0]]), "AttentionLoss: .* embeddings"),
        (FlowLoss(layers=[[1, 1]]), "FlowLoss: .* at least two pairs"),
        (FlowLoss(), "FlowLoss: .*width"),
    ],
)
def test_layers_that_are_not_there_are_named_before_the_first_step(
    loss: Any, says: str, tmp_path: Path
) -> None:
    seen = Seen()
    module = lessons.distill(NAME, losses=[loss])
    with pytest.raises(ValueError, match=says):
        fit(module, lessons.data(NAME, tmp_path), seen)
    assert module.trainer.optimizers == []


def test_the_stack_of_an_encoder_decoder_has_to_be_said(tmp_path: Path) -> None:
    module = lessons.distill("seq2seq", losses=[HiddenLoss()])
    with pytest.raises(ValueError, match="set stack to 'encoder' or 'decoder'"):
        fit(module, lessons.data("seq2seq", tmp_path))
