"""What an optimizer keeps is cut as the weights are, and nothing dead stays anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import lmkit
from lmkit.callbacks.checkpoint import CheckpointCallback
from lmkit.callbacks.removal import (
    cut_states,
    drop_empty_groups,
    forget_best,
    remove_in_fit,
)
from lmkit.callbacks.structured_pruning import StructuredPruningCallback
from lmkit.callbacks.weight_averages import averaged_modules
from lmkit.surgery.cuts import Slice
from lmkit.surgery.structured_pruning import removal
from lmkit.surgery.units import find_units
from tests.callbacks.fitted import fit_task

TASK = "sequence_classification"
CUTS = {"w": Slice("w", ((0, torch.tensor([2, 0])),)), "b": Slice("b")}


def stepped(kind: Any, **how: Any) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    weights = {"w": nn.Parameter(torch.randn(4, 3)), "b": nn.Parameter(torch.randn(3))}
    optimizer: torch.optim.Optimizer = kind(list(weights.values()), lr=0.1, **how)
    for _ in range(2):
        optimizer.zero_grad()
        (weights["w"].square().sum() + weights["b"].sum()).backward()
        optimizer.step()
    return weights, optimizer


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.RMSprop, {"centered": True}),
        (torch.optim.Adagrad, {}),
    ],
)
def test_all_moments_are_cut_and_counts_stay(kind: Any, how: dict[str, Any]) -> None:
    weights, optimizer = stepped(kind, **how)
    before = {
        n: {k: v.clone() if isinstance(v, Tensor) else v for k, v in optimizer.state[p].items()}
        for n, p in weights.items()
    }
    cut_states(optimizer, weights, CUTS)
    checked = 0
    for key, value in optimizer.state[weights["w"]].items():
        old = before["w"][key]
        if isinstance(value, Tensor) and value.dim():
            assert torch.equal(value, old[[2, 0]])
            checked += 1
        else:
            assert value == old
    assert checked >= 1
    now = optimizer.state[weights["b"]]
    assert all(
        torch.equal(v, before["b"][k]) if isinstance(v, Tensor) else v == before["b"][k]
        for k, v in now.items()
    )
    weights["w"].data = weights["w"].data[[2, 0]]
    weights["w"].grad = None
    weights["w"].square().sum().backward()
    optimizer.step()  # and it goes on


def test_moments_of_another_shape_begin_anew() -> None:
    weights, optimizer = stepped(torch.optim.Adafactor)
    assert optimizer.state[weights["w"]]
    with pytest.warns(UserWarning, match="Adafactor keeps row_var of the shape .* begins anew"):
        cut_states(optimizer, weights, CUTS)
    assert not optimizer.state[weights["w"]] and optimizer.state[weights["b"]]


def test_weights_that_are_gone_leave_no_state_and_no_empty_group() -> None:
    first, second, third = (nn.Parameter(torch.ones(2)) for _ in range(3))
    groups = [{"params": [first]}, {"params": [second, third], "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    schedule = LambdaLR(optimizer, [lambda s: 1.0, lambda s: 0.5**s])
    (first.sum() + second.sum() + third.sum()).backward()
    optimizer.step()
    schedule.step()
    drop_empty_groups(optimizer, {id(first), id(third)}, [schedule])
    assert [group["params"] for group in optimizer.param_groups] == [[second]]
    assert set(optimizer.state) == {second}
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.5**2)
    assert schedule.base_lrs == [0.5] and schedule.get_last_lr() == [pytest.approx(0.125)]
    drop_empty_groups(optimizer, set(), [schedule])
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_and_the_patience_begin_anew_with_the_smaller_network(
    mode: Any, tmp_path: Path
) -> None:
    class Score(Callback):
        """Says that the dense network is the better one, whatever comes."""

        def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            score = float(trainer.global_step) + 100 * (trainer.global_step >= 4)
            pl_module.log("score", score if mode == "min" else -score)

    keep = CheckpointCallback(dirpath=str(tmp_path / "kept"), monitor="score", mode=mode)
    how_long: dict[str, Any] = {"patience": 3, "check_on_train_epoch_end": False}
    stop = EarlyStopping("score", mode=mode, **how_long)
    pruning = StructuredPruningCallback(ffn=16, start=0.0, end=0.5, interval=1)
    how: dict[str, Any] = {"max_steps": 8, "val_check_interval": 1, "enable_checkpointing": True}
    module, trainer, _ = fit_task(TASK, tmp_path, Score(), keep, stop, pruning, **how)
    # Of the dense ones the first is best, and of the small ones the first too.
    assert Path(keep.best_model_path).name == "best-step=4.ckpt"
    assert (tmp_path / "kept/best-step=1.ckpt").is_file()
    assert trainer.global_step == 7
    loaded = lmkit.load(keep.best_model_path)
    assert loaded.ledger == module.ledger
    trainer.test(module, trainer.datamodule, ckpt_path="best", weights_only=True, verbose=False)
    forget_best([stop, keep, object()])
    assert not keep.best_model_path and stop.wait_count == 0


def test_weights_stay_the_objects_that_they_were(tmp_path: Path) -> None:
    """So that whatever else knows them goes on, such as what freezes and unfreezes them."""
    known: dict[str, nn.Parameter] = {}

    class Remove(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                known.update(pl_module.network.named_parameters(remove_duplicate=False))
                units = find_units(pl_module.network)
                kept = {u.name: list(range(u.count // 2)) for u in units}
                remove_in_fit(trainer, pl_module, removal(pl_module.network, kept))
                assert not list(averaged_modules(trainer.callbacks, pl_module))

    module, trainer, look = fit_task("masked_lm", tmp_path, Remove(), max_steps=4)
    now = dict(module.network.named_parameters(remove_duplicate=False))
    assert now.keys() == known.keys() and all(now[name] is known[name] for name in now)
    # A tie stays one.
    assert (
        module.network.get_output_embeddings().weight
        is now["bert.embeddings.word_embeddings.weight"]
    )
    held = [p for g in trainer.optimizers[0].param_groups for p in g["params"]]
    assert {id(p) for p in held} == {id(p) for p in module.parameters()}
    name = "network.bert.encoder.layer.0.output.dense.weight"
    assert look.before[name].shape == (16, 32) and module.state_dict()[name].shape == (16, 16)
    assert len(module.ledger) == 1
