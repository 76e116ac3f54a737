"""A fit trains the factors of (IA)³ on every task, and nothing else of the body."""

from __future__ import annotations

import inspect
import math
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

import lmkit
from lmkit.callbacks import TrainableOnlyCheckpoint
from lmkit.callbacks.ia3 import IA3Callback
from lmkit.callbacks.lora import LoRACallback
from lmkit.surgery.ia3 import IA3
from lmkit.surgery.tuning import head_parameters
from tests import test_ddp
from tests.callbacks.fitted import (
    BY_NAME,
    TASKS,
    SaveAt,
    fit_on_base,
    fit_task,
    moved,
    same,
)
from tests.cases import make_trainer, weights

pytest.importorskip("peft", reason="(IA)³ needs the extra peft")


@pytest.mark.parametrize("task", TASKS)
def test_factors_and_head_learn_and_nothing_else_moves(task: str, tmp_path: Path) -> None:
    module, trainer, look = fit_task(task, tmp_path, IA3Callback())
    learned = moved(module, look)
    head = {f"network.{name}" for name in head_parameters(module.network)}
    factors = {name for name in look.before if "ia3_l" in name}
    assert factors <= learned <= factors | head and bool(head) == bool(learned & head)
    assert not look.asleep
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = lmkit.load(tmp_path / "last.ckpt")
    assert same(loaded, module)
    (found,) = make_trainer().validate(loaded, trainer.datamodule, verbose=False)
    assert [found] == make_trainer().validate(module, trainer.datamodule, verbose=False)
    assert math.isfinite(found["val/loss"])


def test_a_small_checkpoint_holds_factors_and_head_alone(tmp_path: Path) -> None:
    callbacks = IA3Callback(), TrainableOnlyCheckpoint()
    module, trainer, look = fit_on_base(tmp_path, *callbacks)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    # The pooler of the base was loaded, and stands outside of what is trained.
    assert set(kept) & set(look.before) == moved(module, look)
    assert same(lmkit.load(tmp_path / "last.ckpt"), module)


def test_it_learns_with_lora_averaged_weights_and_in_bf16(tmp_path: Path) -> None:
    module, _, look = fit_on_base(
        tmp_path,
        LoRACallback("low", rank=2),
        IA3Callback("factors"),
        EMAWeightAveraging(decay=0.5),
        precision="bf16-mixed",
        accumulate_grad_batches=2,
    )
    parts = {name for name in look.before if "ia3_l" in name or "lora_" in name}
    assert len(parts) == 6 + 8 and parts <= moved(module, look)
    assert all(p.isfinite().all() for p in module.parameters())


def test_resumed_in_a_window_is_uninterrupted(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"accumulate_grad_batches": 2, "data": {"batch_size": 4}}
    task = "token_classification"
    whole, _, _ = fit_task(task, tmp_path, IA3Callback(), SaveAt({3}, tmp_path), **settings)
    path = tmp_path / "3.ckpt"
    resumed, _, _ = fit_task(task, tmp_path, IA3Callback(), ckpt_path=path, **settings)
    assert same(whole, resumed)
    alone, _, _ = fit_task(task, tmp_path, ckpt_path=path, **settings)
    assert same(whole, alone)


@pytest.mark.skipif(sys.platform != "linux", reason="forks with gloo")
def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    case = replace(BY_NAME["question_answering"], callbacks=lambda: [IA3Callback()])
    (one, _), (two, _) = (test_ddp.run(case, tmp_path, devices) for devices in (1, 2))
    first, second = weights(one), weights(two)
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


def test_the_arguments_are_those_of_the_surgery() -> None:
    arguments = inspect.signature(IA3Callback.__init__).parameters
    assert list(arguments)[1:] == [field.name for field in fields(IA3)]
    assert IA3Callback().surgery == IA3()
    settings: dict[str, Any] = {"name": "a", "targets": ["fc1"], "inputs": [], "head": False}
    assert IA3Callback(**settings).surgery == IA3(**settings)
