"""Two gloo processes distil as one does, whatever a loss reaches."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lmkit.modules import AttentionLoss, HiddenLoss, LogitLoss, RelationLoss
from tests import lessons, tiny
from tests.cases import weights
from tests.lessons import fit

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks with gloo")
NAME = "sequence_classification"
SGD = {"optimizer": {"class_path": "torch.optim.SGD"}, "learning_rate": 0.1, "schedule": "constant"}


def run(name: str, folder: Path, devices: int, labelled: bool, **settings: Any) -> dict[str, Any]:
    module = lessons.distill(name, pupil=SGD, **settings)
    module.tokenizer = tiny.tokenizer(lessons.LESSONS[name].tokenizer)
    torch.manual_seed(5)
    module.configure_model()
    make = lessons.data if labelled else lessons.half_labelled
    data = make(name, folder, batch_size=8 // devices)
    strategy = "ddp_fork" if devices > 1 else "auto"
    fit(module, data, devices=devices, strategy=strategy, max_steps=4)
    return weights(module)


@pytest.mark.parametrize(
    ("losses", "hard"),
    [
        ([RelationLoss(student_layer=1)], 0.0),
        ([AttentionLoss()], 0.0),
        ([HiddenLoss(layers="skip")], 0.0),
        ([HiddenLoss(stop=0.5), LogitLoss(start=0.5)], 0.0),
        ([LogitLoss(stop=0.5)], 0.5),
    ],
    ids=["relations", "attention", "hidden", "stages", "logits"],
)
def test_two_ranks_are_one_process(losses: Any, hard: float, tmp_path: Path) -> None:
    how = {"losses": losses, "hard_weight": hard}
    one = run(NAME, tmp_path, 1, True, **how)
    two = run(NAME, tmp_path, 2, True, **how)
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[k], two[k], atol=1e-5) for k in one)


def test_a_rank_may_have_no_label(tmp_path: Path) -> None:
    how = {"losses": [LogitLoss(), HiddenLoss()], "hard_weight": 0.5}
    one = run(NAME, tmp_path, 1, False, **how)
    two = run(NAME, tmp_path, 2, False, **how)
    assert all(torch.allclose(one[k], two[k], atol=1e-5) for k in one)
