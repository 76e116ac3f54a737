"""Layers begin to learn from the head downwards; what is frozen does not move at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from lmkit.callbacks import GradualUnfreezingCallback
from lmkit.modules import LMModule
from lmkit.surgery.depth import parameter_depths
from tests.cases import CASES, make_trainer, weights

CASE = CASES[0]


class Moved(Callback):
    """Which depths moved in each step."""

    def __init__(self) -> None:
        self.steps: list[set[int]] = []
        self.before: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.before = {n: p.detach().clone() for n, p in pl_module.network.named_parameters()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        depths = parameter_depths(pl_module.network)
        now = dict(pl_module.network.named_parameters())
        self.steps.append({depths[n] for n in now if not torch.equal(now[n], self.before[n])})


def fit(folder: Path, *callbacks: Callback, **kwargs: Any) -> tuple[LMModule, Trainer]:
    seed_everything(7)
    ckpt_path = kwargs.pop("ckpt_path", None)
    module = CASE.make_module(weight_decay=0.1)
    trainer = make_trainer(*callbacks, **kwargs)
    trainer.fit(module, CASE.make_data(folder, batch_size=4), ckpt_path=ckpt_path)
    return module, trainer


def test_layers_begin_one_after_the_other(tmp_path: Path) -> None:
    moved = Moved()
    module, _ = fit(tmp_path, GradualUnfreezingCallback(0, interval=2), moved, max_steps=8)
    top = max(parameter_depths(module.network).values())
    # The head's decoder is tied to the embeddings, and counts as these.
    for step, depths in enumerate(moved.steps):
        assert depths == set(range(max(0, top - step // 2), top + 1))
    assert all(p.requires_grad for p in module.parameters())


def test_without_an_interval_the_rest_stays_frozen(tmp_path: Path) -> None:
    moved = Moved()
    module, _ = fit(tmp_path, GradualUnfreezingCallback(1, interval=None), moved, max_steps=5)
    top = max(parameter_depths(module.network).values())
    assert all(depths == {top - 1, top} for depths in moved.steps)


@pytest.mark.parametrize("interval", [3, 0.3])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, interval: float) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "four.ckpt")

    whole, _ = fit(tmp_path, GradualUnfreezingCallback(0, interval), Save(), max_steps=9)
    resumed, _ = fit(
        tmp_path,
        GradualUnfreezingCallback(0, interval),
        max_steps=9,
        ckpt_path=tmp_path / "four.ckpt",
    )
    ours, theirs = weights(whole), weights(resumed)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_somebody_else_froze_stays_frozen(tmp_path: Path) -> None:
    class Freeze(Callback):
        def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
            pl_module.configure_model()
            pl_module.network.get_input_embeddings().requires_grad_(False)

    module, _ = fit(tmp_path, Freeze(), GradualUnfreezingCallback(0, interval=1), max_steps=6)
    assert not module.network.get_input_embeddings().weight.requires_grad


def test_a_run_too_short_to_unfreeze_everything_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="the lowest layers stay frozen"):
        fit(tmp_path, GradualUnfreezingCallback(0, interval=50), max_steps=2)


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"layers": -1}, "layers"), ({"interval": 0}, "interval"), ({"interval": 1.5}, "interval")],
)
def test_numbers_outside_their_range_are_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=f"{word} must be"):
        GradualUnfreezingCallback(**settings)
