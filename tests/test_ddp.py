"""Two gloo processes: the ranks stay identical, and are one process on the joined batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import nn

from lmkit.modules import LMModule
from tests import tiny
from tests.cases import CASES, CORE, Case, make_trainer, weights

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks with gloo")


class RanksAgree(Callback):
    """Fails the fit when the ranks' weights differ after a step; switches dropout off."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        for module in pl_module.network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.world_size > 1:
            ours = nn.utils.parameters_to_vector(pl_module.parameters()).detach()
            theirs = trainer.strategy.all_gather(ours)
            assert torch.equal(theirs[0], theirs[1])


def run(
    case: Case, folder: Path, devices: int, accumulate: int = 1
) -> tuple[LMModule, dict[str, float]]:
    seed_everything(5)
    module = case.make_module(
        optimizer={"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}},
    )
    # The fork hands weights back to the network that the parent has.
    module.tokenizer = tiny.tokenizer(case.tokenizer)
    module.configure_model()
    for callback in case.callbacks():
        if surgery := getattr(callback, "surgery", None):
            module.operate(surgery)
    trainer = make_trainer(
        *case.callbacks(),
        RanksAgree(),
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
        max_steps=4,
        accumulate_grad_batches=accumulate,
        val_check_interval=2,
    )
    # 8 rows in all, in batches of different numbers of tokens; an odd number of rows to validate.
    data = case.make_data(folder, batch_size=8 // devices // accumulate, eval_batch_size=4)
    trainer.fit(module, data)
    return module, {name: float(value) for name, value in trainer.callback_metrics.items()}


#: What callbacks do is tried on windows of two batches, each of two ranks.
WINDOWS = [
    pytest.param(
        case,
        accumulate,
        id=f"{accumulate}-{case.name}",
        marks=pytest.mark.slow if accumulate == 1 and case.callbacks() else (),
    )
    for accumulate in (1, 2)
    for case in CORE
]


@pytest.mark.parametrize(("case", "accumulate"), WINDOWS)
def test_two_ranks_are_one_process_on_the_joined_batch(
    case: Case, accumulate: int, tmp_path: Path
) -> None:
    one, expected = run(case, tmp_path, devices=1)
    two, metrics = run(case, tmp_path, devices=2, accumulate=accumulate)
    first, second = weights(one), weights(two)
    for name in first:
        assert torch.allclose(first[name], second[name], atol=1e-5), name
    for name in case.metrics:
        assert metrics[name] == pytest.approx(expected[name], rel=1e-5)


def test_each_rank_draws_its_own_dropout() -> None:
    class Draw(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            draws = trainer.strategy.all_gather(torch.rand(1))
            assert draws[0] != draws[1]

    case = CASES[0]
    trainer = make_trainer(Draw(), devices=2, strategy="ddp_fork", max_steps=2)
    with pytest.warns(UserWarning, match="the fit ran in processes of its own"):
        trainer.fit(case.make_module(), case.make_data(Path.cwd()))
