"""Rows without a label in the batches of every task: they count in no loss and move no weight."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lmkit.modules import LMModule
from tests import tiny
from tests.cases import CASES, Case, make_trainer, named, weights

NAMES = (
    "sequence_classification",
    "regression",
    "token_classification",
    "question_answering",
    "multiple_choice",
)
BY_NAME = {case.name: case for case in CASES}


def several_labels(folder: Path) -> dict[str, Any]:
    """Texts with any number of two labels."""
    files = {}
    for split, count in (("train", 40), ("val", 13)):
        rows = [
            {"text": text, "labels": [kind for bit, kind in enumerate(("a", "b")) if n >> bit & 1]}
            for n, text in enumerate(tiny.sentences(count))
        ]
        path = folder / f"{split}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        files[f"{split}_file"] = str(path)
    return files


SEVERAL = replace(
    BY_NAME["sequence_classification"],
    name="several_labels",
    model={**tiny.MASKED["bert"], **named("a", "b")},
    files=several_labels,
    data_settings={"task": "multi_label"},
)
TASKS = [*(BY_NAME[name] for name in NAMES), SEVERAL]
every_task = pytest.mark.parametrize("case", TASKS, ids=lambda case: case.name)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*training examples have no label:UserWarning"),
    pytest.mark.filterwarnings("ignore:Metric `Spearman:UserWarning"),
]


def fitted(case: Case, folder: Path, **settings: Any) -> tuple[LMModule, Any]:
    """A module and its data; the rows of its validation are also there without their labels."""
    assert case.files
    unlabelled = case.files(folder)["val_file"]
    data = case.make_data(folder, **{"unlabelled_file": unlabelled, **settings})
    module = case.make_module(dropout=0.0, weight_decay=0.0)
    make_trainer(max_steps=1).fit(module, data)
    return module, data


def outcome(module: LMModule, batch: dict[str, torch.Tensor]) -> tuple[Any, dict[str, Any]]:
    module.zero_grad()
    output = module.step(module.prepare(batch))
    output.loss.backward()  # type: ignore[no-untyped-call]
    return output, {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


@every_task
def test_rows_without_a_label_change_neither_loss_nor_gradient(case: Case, tmp_path: Path) -> None:
    module, data = fitted(case, tmp_path)
    collate, count = data.train_dataloader().collate, len(data.table("train"))
    first, last = torch.arange(4), torch.arange(count - 3, count)
    alone, expected = outcome(module, collate(0, first))
    assert alone.items > 0 and alone.loss > 0
    mixed, found = outcome(module, collate(0, torch.cat([last[:1], first, last[1:]])))
    assert mixed.items == alone.items
    assert torch.allclose(mixed.loss, alone.loss, atol=1e-6)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-6), name


@every_task
def test_a_batch_without_any_label_has_no_loss_and_a_gradient_of_zero(
    case: Case, tmp_path: Path
) -> None:
    module, data = fitted(case, tmp_path)
    rows = torch.arange(len(data.table("train")))[-3:]
    output, gradients = outcome(module, data.train_dataloader().collate(0, rows))
    assert output.loss == 0 and output.items == 0
    assert gradients and not any(gradient.any() for gradient in gradients.values())


@every_task
@pytest.mark.parametrize("batches", [1, 2])
def test_a_fit_on_rows_without_a_label_alone_moves_nothing(
    case: Case, batches: int, tmp_path: Path
) -> None:
    """The classes are those that the network names."""
    module, data = fitted(case, tmp_path, train_file=None)
    before = weights(module)
    trainer = make_trainer(max_steps=2, accumulate_grad_batches=batches, gradient_clip_val=1.0)
    trainer.fit(module, data)
    assert trainer.global_step == 2 and trainer.callback_metrics["train/loss"] == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(module).items())
