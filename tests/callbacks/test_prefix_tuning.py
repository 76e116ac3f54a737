"""Prefixes are learned on every task whose network takes them, and nothing frozen moves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging

import lmkit
from lmkit.callbacks.prefix_tuning import PrefixTuningCallback
from lmkit.modules import LMModule
from lmkit.surgery.tuning import head_parameters
from tests.cases import CASES, make_trainer, weights

pytest.importorskip("peft")

BY_NAME = {case.name: case for case in CASES}
#: Tasks, with the data settings that keep texts in rows of their own.
TASKS: dict[str, dict[str, Any]] = {
    "masked_lm": {"batching": "bucket", "eval_batching": "bucket"},
    "causal_lm": {"batching": "bucket", "eval_batching": "bucket"},
    "sequence_classification": {},
    "token_classification": {},
    "question_answering": {},
    "multiple_choice": {},
}


def fit(
    task: str, folder: Path, *callbacks: Callback, **how: Any
) -> tuple[LMModule, Any, dict[str, torch.Tensor]]:
    """Fit a few steps; returns module, trainer and the weights at the start."""
    before: dict[str, torch.Tensor] = {}

    class Look(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            before.update(weights(pl_module))

    seed_everything(7)
    ckpt_path, data = how.pop("ckpt_path", None), how.pop("data", {})
    module = BY_NAME[task].make_module()
    trainer = make_trainer(*callbacks, Look(), **{"max_steps": 4, **how})
    rows = BY_NAME[task].make_data(folder, **TASKS.get(task, {}), **data)
    trainer.fit(module, rows, ckpt_path=ckpt_path)
    return module, trainer, before


def moved(module: LMModule, before: dict[str, torch.Tensor]) -> set[str]:
    now = weights(module)
    return {name for name in now if not torch.equal(now[name], before[name])}


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_prefix_and_head_learn_and_nothing_else_moves(
    task: str, projection: bool, tmp_path: Path
) -> None:
    callback = PrefixTuningCallback(length=3, projection=projection)
    module, trainer, before = fit(task, tmp_path, callback)
    head = {f"network.{name}" for name in head_parameters(module.network)}
    learned = moved(module, before) - {n for n in before if not n.startswith("network.")}
    prefix = {name for name in before if ".prefixes." in name}
    assert prefix <= learned and learned - prefix <= head
    assert bool(head) == bool(learned - prefix)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded, ours = lmkit.load(tmp_path / "last.ckpt"), weights(module)
    theirs = weights(loaded)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    (found,) = make_trainer().validate(loaded, trainer.datamodule, verbose=False)
    assert [found] == make_trainer().validate(module, trainer.datamodule, verbose=False)
    assert math.isfinite(found["val/loss"])


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "two.ckpt")

    def callback() -> PrefixTuningCallback:
        return PrefixTuningCallback(length=3, projection=True)

    task = "sequence_classification"
    module, _, _ = fit(task, tmp_path, callback(), Save())
    again, _, _ = fit(task, tmp_path, callback(), ckpt_path=tmp_path / "two.ckpt")
    ours, theirs = weights(module), weights(again)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("task", ["sequence_classification", "causal_lm"])
def test_it_learns_with_averaged_weights_in_bf16(task: str, tmp_path: Path) -> None:
    module, _, before = fit(
        task,
        tmp_path,
        PrefixTuningCallback(length=3),
        EMAWeightAveraging(decay=0.5),
        precision="bf16-mixed",
    )
    assert any(".prefixes." in name for name in moved(module, before))
    assert all(p.isfinite().all() for p in module.parameters())


def test_what_does_not_go_with_it_is_refused_in_setup(tmp_path: Path) -> None:
    packed = {"batching": "pack"}
    data = BY_NAME["masked_lm"].make_data(tmp_path, **{**TASKS["masked_lm"], **packed})
    with pytest.raises(ValueError, match="pass batching='bucket'"):
        make_trainer(PrefixTuningCallback()).fit(BY_NAME["masked_lm"].make_module(), data)
    with pytest.raises(ValueError, match="at most 63"):
        fit("sequence_classification", tmp_path, PrefixTuningCallback(3), data={"max_length": 64})
    with pytest.raises(ValueError, match="prefix of 600 is too long"):
        fit("sequence_classification", tmp_path, PrefixTuningCallback(600))
    with pytest.raises(ValueError, match="encoder-decoder"):
        fit("seq2seq", tmp_path, PrefixTuningCallback())
