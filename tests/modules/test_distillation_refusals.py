"""Teachers without a head, in another order or asked twice, and caches that were damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from transformers import AutoModel

from lmkit.modules import HiddenLoss, LogitLoss
from tests import lessons
from tests.lessons import fit

NAME = "sequence_classification"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))


def headless(name: str, folder: Path) -> str:
    """Save the teacher of a task without its head, and without what it was made for."""
    network = AutoModel.from_pretrained(lessons.teacher(name))
    for entry in ("id2label", "label2id", "problem_type"):
        network.config.__dict__.pop(entry, None)
    network.config.num_labels = 2
    network.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("name", [NAME, "token_classification", "question_answering"])
def test_a_teacher_without_a_head_teaches_by_its_inside_and_is_no_judge(
    name: str, cache: bool, tmp_path: Path
) -> None:
    teacher = headless(name, tmp_path / "teacher")
    module = lessons.distill(name, teacher=teacher, losses=[HiddenLoss()], cache=cache)
    trainer = fit(module, lessons.data(name, tmp_path), val_check_interval=2)
    assert trainer.callback_metrics["distillation/loss_hidden"] > 0
    assert not {"val/agreement", "val/retention"} & set(trainer.callback_metrics)


def test_a_folder_for_the_cache_goes_with_a_logger(tmp_path: Path) -> None:
    module = lessons.distill(NAME, cache=True, cache_folder=str(tmp_path / "own"))
    fit(module, lessons.data(NAME, tmp_path), logger=CSVLogger(tmp_path / "logs"))
    assert list((tmp_path / "own" / "teachers").iterdir())


@pytest.mark.parametrize("others", [[1, 0], [0], [0, 0]])
def test_a_resumed_run_has_its_teachers_in_their_order(others: list[int], tmp_path: Path) -> None:
    both = [lessons.teacher(NAME), lessons.teacher(NAME, seed=8)]
    trainer = fit(lessons.distill(NAME, teacher=both), lessons.data(NAME, tmp_path))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    changed = lessons.distill(NAME, teacher=[both[number] for number in others])
    with pytest.raises(ValueError, match=r"other weights|had the teachers"):
        fit(changed, lessons.data(NAME, tmp_path), ckpt_path=tmp_path / "last.ckpt", max_steps=3)


def no_list(folder: Path) -> None:
    (folder / "meta.json").unlink()


def zeros(folder: Path) -> None:
    path = folder / "logits.index.npy"
    path.write_bytes(bytes(path.stat().st_size))


def a_file(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("no store")


@pytest.mark.parametrize("harm", [no_list, zeros, a_file])
def test_what_was_damaged_in_the_cache_is_asked_for_anew(harm: Any, tmp_path: Path) -> None:
    found = []
    for hurt in (False, True):
        if hurt:
            harm(min((tmp_path / "cache" / "teachers").iterdir()))
        module = lessons.distill(NAME, cache=True, losses=[LogitLoss()])
        seen = lessons.Seen()
        if hurt:
            with pytest.warns(UserWarning, match="asked for anew"):
                fit(module, lessons.data(NAME, tmp_path), seen)
        else:
            fit(module, lessons.data(NAME, tmp_path), seen)
        found.append(torch.stack(seen.losses))
    assert torch.equal(*found)


def test_rows_that_are_too_long_are_told_before_the_teacher_reads(tmp_path: Path) -> None:
    short = {"max_position_embeddings": 12}
    module = lessons.distill(NAME, pupil={"config": short}, cache=True)
    with pytest.raises(ValueError, match="has 12 positions"):
        fit(module, lessons.data(NAME, tmp_path))
    assert not (tmp_path / "cache" / "teachers").exists()


def test_an_unknown_map_of_layers_is_named_as_the_option_is() -> None:
    with pytest.raises(ValueError, match="layers must be one of uniform, last, skip, dynamic"):
        HiddenLoss(layers="middle")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["HardLoss", "FeatureLoss", "DistillationLoss"])
def test_what_is_no_loss_against_a_teacher_is_refused(name: str) -> None:
    spec: Any = {"class_path": f"lmkit.modules.{name}", "init_args": {}}
    with pytest.raises((ValueError, TypeError), match=name):
        lessons.distill(NAME, teacher="anywhere", losses=[spec])
